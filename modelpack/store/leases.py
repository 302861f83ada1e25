"""What a running process relies on: blobs that it found or wrote and has not yet put into a manifest.

Each process writes the digests it holds into a file of its own and keeps that file locked; the lock ends with the
process, so a lease that nobody holds is a lease of a dead process.
"""

import contextlib
import os
import threading
import uuid
import weakref
from collections.abc import Iterable
from pathlib import Path

from modelpack.errors import InvalidContentError
from modelpack.oci.digest import Digest
from modelpack.store import locks

_PREFIX = "lease-"


class Lease:
    """The digests that this process holds. Its file is made when the first digest is held.

    The caller has the store's lock, shared or not, while it calls ``hold`` and looks whether the blob is there:
    a clean-up, which locks the others out, then either sees the lease or has removed the blob already.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / f"{_PREFIX}{uuid.uuid4().hex}"
        self._held: set[Digest] = set()
        self._file: int | None = None
        self._mutex = threading.Lock()

    def hold(self, digest: Digest) -> None:
        with self._mutex:
            if digest not in self._held:
                self._held.add(digest)
                self._append(f"+{digest.hex}\n")

    def release(self, digests: Iterable[Digest]) -> None:
        """These blobs are in a manifest now, which keeps them."""
        with self._mutex:
            for digest in digests:
                if digest in self._held:
                    self._held.remove(digest)
                    self._append(f"-{digest.hex}\n")

    def _append(self, line: str) -> None:
        if self._file is None:
            self._file = locks.open_locked(self._path)
            weakref.finalize(self, _close, self._path, self._file)
        os.write(self._file, line.encode())


def held_digests(directory: Path) -> set[Digest]:
    """Every digest that a living process holds; removes the leases of dead ones. The caller has the store's lock."""
    held: set[Digest] = set()
    for path in directory.glob(f"{_PREFIX}*"):
        with locks.attempt(path) as abandoned:
            if abandoned:
                with contextlib.suppress(OSError):  # A store may be read-only.
                    path.unlink()
                continue
        own: set[Digest] = set()
        for line in path.read_text(encoding="ascii", errors="replace").splitlines():
            with contextlib.suppress(InvalidContentError):
                (own.add if line.startswith("+") else own.discard)(Digest.from_hex(line[1:]))
        held |= own
    return held


def _close(path: Path, descriptor: int) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
    os.close(descriptor)
