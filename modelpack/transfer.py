"""One graph copy for push, pull and promote: blobs first, then manifests, then what refers to them, the tag last.

What is there already is skipped, so an interrupted copy goes on where it was. Memory stays flat: blobs stream, and
only manifests, each a few KiB, are held.
"""

import contextlib
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence, Set
from dataclasses import dataclass, replace

from modelpack.artifact_graph import read_graph
from modelpack.errors import NotFoundError
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import Descriptor, Manifest
from modelpack.oci.reference import Reference
from modelpack.oci.target import (
    BlobStream,
    LimitedTarget,
    OpenBlob,
    PatientPlace,
    RangedBlob,
    RangedSource,
    Source,
    Target,
    ThrottledSource,
    Written,
)
from modelpack.progress import SILENT, Going, Progress, TransferStep
from modelpack.signing import tagged
from modelpack.store import Store

_JOBS = 4

_TITLES = ("org.opencontainers.image.title", "org.cncf.model.filepath")

# How long the other blobs of a failed copy may take to put down what they hold, in seconds.
_GRACE = 1.0


@dataclass(frozen=True, slots=True)
class CopyResult:
    """What a copy did. ``bytes_copied`` counts whole blobs; ``bytes_resumed`` is how much of that did not have to come
    from the source: an earlier try or another process had brought it. ``bytes_mounted`` did not have to either: the
    target had it in another repository.
    """

    descriptor: Descriptor
    blobs_copied: int
    blobs_skipped: int
    bytes_copied: int
    bytes_resumed: int
    bytes_mounted: int = 0
    referrers_copied: int = 0
    referrers_left: frozenset[Digest] = frozenset()
    """More than anybody who verifies gets to read, too large, or nothing that can be read: not copied."""
    blobs_absent: frozenset[Digest] = frozenset()
    """What the source does not have of what it lists; only what refers to the artifact needs any of it."""


def copy(
    source: Source,
    target: Target,
    descriptor: Descriptor,
    *,
    tag: str | None,
    referrers: bool = True,
    progress: Progress = SILENT,
    jobs: int | None = None,
) -> CopyResult:
    """Copy an artifact, an index with all it lists, and (with ``referrers``) signatures and all that refers to them.

    Of the referrers of one manifest no more than verification reads, 100 signatures and 100 attestations or others, and
    together no more bytes than the artifact has, or 1 GiB; what stays behind is warned of, and named in the result.
    ``tag`` is moved in ``target`` when everything else is there. ``jobs`` is how many blobs, or parts of large ones,
    are read at a time; where nobody says, 4, or what the source knows to be better. Raises what source and target
    raise, InvalidContentError for a graph without reasonable bounds.
    """
    graph = read_graph(source, target, descriptor, referrers=referrers)
    result = copy_blobs(
        source, target, descriptor, graph.blobs(), expendable=graph.expendable(), progress=progress, jobs=jobs
    )
    graph.leave_incomplete(result.blobs_absent)
    if graph.left:
        progress.warn(f"{len(graph.left)} that refer to {descriptor.digest} are too many or too large: left behind")
    if graph.unreadable:
        progress.warn(f"{len(graph.unreadable)} that refer to {descriptor.digest} cannot be read: left behind")
    for manifest in (*graph.manifests.values(), *graph.referrers.values()):
        target.put_manifest(manifest)
    for legacy_tag, manifest in graph.legacy_tags.items():
        tagged.merge_layers(target, legacy_tag, manifest)
    if tag is not None:
        target.put_manifest(graph.manifests[descriptor.digest], tag=tag)
    return replace(
        result,
        referrers_copied=len(graph.referrers) + len(graph.legacy_tags),
        referrers_left=frozenset(graph.left | graph.unreadable),
    )


def copy_blobs(
    source: Source,
    target: Target,
    descriptor: Descriptor,
    blobs: list[Descriptor],
    *,
    expendable: Set[Digest] = frozenset(),
    progress: Progress = SILENT,
    jobs: int | None = None,
) -> CopyResult:
    """Copy blobs of the artifact ``descriptor``, as far as they are missing, and none of its manifests.

    The source may lack those that are ``expendable``. Raises what source and target raise.
    """
    if isinstance(target, LimitedTarget):
        target.check_limits(blobs)
    lines = _Lines(jobs or (source.connections if isinstance(source, ThrottledSource) else _JOBS))
    copied = _copy_blobs(source, target, blobs, expendable=expendable, progress=progress, lines=lines)
    return CopyResult(
        descriptor=descriptor,
        blobs_copied=len(copied),
        blobs_skipped=len(blobs) - len(copied) - len(lines.absent),
        blobs_absent=frozenset(lines.absent),
        bytes_copied=sum(blob.size for blob in copied),
        bytes_resumed=sum(lines.resumed(blob, blob.size) for blob in copied),
        bytes_mounted=sum(blob.size for blob in copied if lines.is_mounted(blob)),
    )


def mount_candidates(store: Store, reference: Reference) -> Callable[[Digest], Sequence[str]]:
    """Which other repositories of the same registry may have a blob: those that the store knows one from.

    The store is read when the first blob is asked for. That it knows a repository does not say that the blob is there.
    """
    found: dict[Digest, list[str]] = {}
    lock = threading.Lock()
    is_read = False

    def candidates(digest: Digest) -> Sequence[str]:
        nonlocal is_read
        with lock:
            if not is_read:
                for other in sorted({stored.reference.name for stored in store.list()}):
                    _note_blobs(store, Reference.parse(other), reference, found)
                is_read = True
        return found.get(digest, ())

    return candidates


def _note_blobs(store: Store, other: Reference, ours: Reference, found: dict[Digest, list[str]]) -> None:
    if other.registry != ours.registry or other.repository == ours.repository:
        return
    repository = store.repository(other.name)
    for tag in repository.list_tags():
        manifest = _fetch_if_present(repository, tag)
        for blob in manifest.blobs if manifest else ():
            names = found.setdefault(blob.digest, [])
            if other.repository not in names:
                names.append(other.repository)


def _fetch_if_present(source: Source, tag: str) -> Manifest | None:
    try:
        return source.fetch_manifest(source.resolve(tag))
    except NotFoundError:
        return None


class _CancelledError(Exception):
    """Another blob failed, or the user gave up; never seen outside this module."""


class _Lines:
    """The connections that a copy may have open at a time, shared by all its blobs; counts what comes over them."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.cancelled = threading.Event()
        self.bytes_read: Counter[Digest] = Counter()
        self.written: dict[Digest, Written] = {}
        self.absent: set[Digest] = set()
        self._open: Counter[Digest] = Counter()
        self._free = threading.Semaphore(count)
        self._lock = threading.Lock()

    def opener(self, source: Source, descriptor: Descriptor) -> OpenBlob:
        """How a target reads a blob: in parts too, where the source gains from that."""

        def open_stream(offset: int) -> BlobStream:
            return self._taken(descriptor, lambda: source.read_blob(descriptor, offset=offset))

        if not isinstance(source, RangedSource):
            return open_stream
        ranged = source
        return RangedBlob(
            open_stream,
            lambda start, stop: self._taken(descriptor, lambda: ranged.open_range(descriptor, start, stop)),
            connections=self.count,
        )

    @contextlib.contextmanager
    def _taken(
        self, descriptor: Descriptor, open_stream: Callable[[], BlobStream]
    ) -> Generator[Iterator[bytes], None, None]:
        while not self._free.acquire(timeout=0.2):
            self.check()
        with self._lock:
            self._open[descriptor.digest] += 1
        try:
            with open_stream() as chunks:
                yield self._counted(descriptor, chunks)
        finally:
            with self._lock:
                self._open[descriptor.digest] -= 1
            self._free.release()

    def going(self, descriptor: Descriptor, done: int, *, retries: int) -> Going:
        with self._lock:
            connections = self._open[descriptor.digest]
        mounted = descriptor.size if self.is_mounted(descriptor) else 0
        return Going(connections, resumed=self.resumed(descriptor, done), retries=retries, mounted=mounted)

    def is_mounted(self, descriptor: Descriptor) -> bool:
        written = self.written.get(descriptor.digest)
        return written is not None and written.is_mounted

    def resumed(self, descriptor: Descriptor, done: int) -> int:
        """How much of what is there of a blob was brought by an earlier try or another process."""
        written = self.written.get(descriptor.digest)
        if written:
            return written.kept
        with self._lock:
            return max(0, done - self.bytes_read[descriptor.digest])

    def _counted(self, descriptor: Descriptor, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            with self._lock:
                self.bytes_read[descriptor.digest] += len(chunk)
            yield chunk

    def check(self) -> None:
        if self.cancelled.is_set():
            raise _CancelledError


def _copy_blobs(
    source: Source,
    target: Target,
    blobs: list[Descriptor],
    *,
    expendable: Set[Digest],
    progress: Progress,
    lines: _Lines,
) -> list[Descriptor]:
    """Copy what is missing; returns what was copied. Raises the first failure."""
    patient = [place for place in (source, target) if isinstance(place, PatientPlace)]

    def copy_one(descriptor: Descriptor) -> bool:
        if target.has_blob(descriptor):
            return False
        with progress.step(_label(descriptor), total=descriptor.size) as step:
            done = 0
            lock = threading.Lock()

            def advance(amount: int) -> None:
                nonlocal done
                lines.check()
                with lock:
                    done += amount
                if isinstance(step, TransferStep):
                    step.tell(lines.going(descriptor, done, retries=sum(place.retries for place in patient)))
                step.advance(amount)

            try:
                written = target.write_blob(descriptor, lines.opener(source, descriptor), on_bytes=advance)
            except NotFoundError:
                if descriptor.digest not in expendable:
                    raise
                lines.absent.add(descriptor.digest)
                return False
            if written:
                lines.written[descriptor.digest] = written
                advance(descriptor.size - done)
        return True

    # The largest first: the small ones fill the gaps at the end.
    ordered = sorted(blobs, key=lambda descriptor: descriptor.size, reverse=True)
    outcomes = _in_parallel(copy_one, ordered, jobs=lines.count, cancelled=lines.cancelled)
    return [descriptor for descriptor, was_copied in zip(ordered, outcomes, strict=True) if was_copied]


def _in_parallel(
    work: Callable[[Descriptor], bool], items: list[Descriptor], *, jobs: int, cancelled: threading.Event
) -> list[bool]:
    """The results of ``work`` in the order of ``items``.

    On daemon threads rather than an executor's: those are joined when the interpreter ends, so that Ctrl-C would wait
    for a connection that has fallen silent.
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for position in range(len(items)):
        waiting.put(position)
    done: queue.SimpleQueue[tuple[int, bool | BaseException]] = queue.SimpleQueue()

    def run() -> None:
        while not cancelled.is_set():
            try:
                position = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((position, work(items[position])))
            except BaseException as error:
                # In this order: what the others say when they are cancelled must come after why.
                done.put((position, error))
                cancelled.set()

    threads = [threading.Thread(target=run, name="modelpack-copy", daemon=True) for _ in range(min(jobs, len(items)))]
    for thread in threads:
        thread.start()
    results = [False] * len(items)
    try:
        for _ in items:
            position, outcome = done.get()
            if isinstance(outcome, BaseException):
                raise outcome
            results[position] = outcome
    finally:
        cancelled.set()
        deadline = time.monotonic() + _GRACE
        for thread in threads:
            thread.join(timeout=max(0.0, deadline - time.monotonic()))
    return results


def _label(descriptor: Descriptor) -> str:
    title = next((descriptor.annotations[key] for key in _TITLES if key in descriptor.annotations), None)
    if title is None:
        return descriptor.digest.short
    return "".join(character if character.isprintable() else "?" for character in title[-60:])
