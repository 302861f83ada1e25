"""Every byte of a stored artifact read again, in threads, while the rest of a verification goes on beside it."""

import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

from modelpack.oci.digest import Digest
from modelpack.oci.manifest import Descriptor, Manifest
from modelpack.oci.reference import Reference
from modelpack.progress import SILENT, Progress
from modelpack.store import Store

_THREADS = 2
# Hashing lets go of the interpreter for a fifth of a millisecond at a time, and would wait 5 ms to get it back from a
# thread that imports or judges.
_SWITCH_INTERVAL = 0.0001


@dataclass(frozen=True, slots=True)
class BytesReport:
    """How much was read again and found to be what the manifest promises."""

    blobs: int
    size: int


class Rehash:
    """Hashes the manifest, all that it names or lists, and what was unpacked of it; a context manager.

    It begins when it is made, ``report`` waits for its end, and leaving the context stops what still goes on: nobody
    needs the bytes of what turned out not to be trusted. Raises DigestMismatchError where a manifest is damaged,
    NotFoundError where one is gone.
    """

    def __init__(
        self, store: Store, reference: Reference, descriptor: Descriptor, *, progress: Progress = SILENT
    ) -> None:
        self._store = store
        self._repository = store.repository(reference.name)
        self._descriptor = descriptor
        self._progress = progress
        self._is_over = threading.Event()
        self._manifests = self._fetch_manifests()
        self._blobs = tuple({blob.digest: blob for one in self._manifests for blob in one.blobs}.values())
        self._pool = ThreadPoolExecutor(_THREADS)
        self._checks = self._begin(self._blobs)

    def report(self) -> BytesReport:
        """What was read, once all of it is right. Raises DigestMismatchError, NotFoundError for a blob that is gone."""
        from modelpack.unpack import find_unpacked

        unpacked = find_unpacked(self._store, self._repository, self._descriptor)
        more = self._repository.fetch_manifest(unpacked.descriptor).blobs if unpacked else ()
        for check in [*self._checks, *self._begin(more)]:
            check.result()
        blobs = (*self._blobs, *more)
        size = sum(blob.size for blob in blobs) + sum(len(one.raw) for one in self._manifests)
        return BytesReport(len(blobs) + len(self._manifests), size)

    def _fetch_manifests(self) -> tuple[Manifest, ...]:
        """The artifact's own, and those that an index lists, however deep; each checked as it is read."""
        found: dict[Digest, Manifest] = {}
        rest = [self._descriptor]
        while rest:
            descriptor = rest.pop()
            if descriptor.digest not in found:
                found[descriptor.digest] = manifest = self._repository.fetch_manifest(descriptor)
                rest += manifest.manifests
        return tuple(found.values())

    def _begin(self, blobs: tuple[Descriptor, ...]) -> "list[Future[None]]":
        # The largest first, so that the threads end together.
        return [self._pool.submit(self._check, blob) for blob in sorted(blobs, key=lambda blob: -blob.size)]

    def _check(self, blob: Descriptor) -> None:
        self._store.rehash(blob, progress=self._progress, on_bytes=self._go_on)

    def _go_on(self, _: int) -> None:
        if self._is_over.is_set():
            raise _StoppedError

    def __enter__(self) -> Self:
        self._interval = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_INTERVAL)
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._pool.shutdown(cancel_futures=True)
        sys.setswitchinterval(self._interval)


class _StoppedError(Exception):
    """Nobody waits for this hash any more."""
