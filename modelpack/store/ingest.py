"""Writing blobs: under a temporary name that a later try or another process finds again, hashed while it streams,
then renamed. What is visible under a digest is always whole and right.
"""

import hashlib
import logging
import os
import shutil
import stat
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from modelpack.atomic_file import disk_errors, sync_directory, write_atomically
from modelpack.errors import DigestMismatchError, InsufficientDiskError, InvalidInputError, NotFoundError
from modelpack.file_digest import sha256_of
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import Descriptor
from modelpack.oci.target import OpenBlob, RangedBlob, RangesIgnoredError
from modelpack.store import locks, segments
from modelpack.store.blobs import CHUNK_SIZE, Blobs
from modelpack.store.journal import Journal
from modelpack.writeback import Writeback

_log = logging.getLogger(__name__)

_BLOB_MODE = 0o444  # Written once: a stray editor shall not change what a digest names.
_FICLONE = 0x40049409  # linux/fs.h: share the extents, where the file system can
_ONE_STREAM = 32 << 20  # up to this size, one connection is as fast as several


class Ingest:
    """Brings blobs into a layout. ``partials`` lies on the same file system and holds what is not finished."""

    def __init__(self, blobs: Blobs, partials: Path) -> None:
        self._blobs = blobs
        self._partials = partials

    def write(self, descriptor: Descriptor, open_blob: OpenBlob, on_bytes: Callable[[int], None]) -> None:
        """Store a blob; the contract is that of ``Target.write_blob``.

        ``partials/<hex>`` keeps what has arrived and is its own lock: a second process waits there, and then finds
        the blob. It stays when the stream breaks or the disk is full, and goes when the content is wrong. Where a
        large blob comes over several connections the file has gaps, and ``<hex>.journal`` knows them.
        """
        if self._blobs.has(descriptor):
            on_bytes(descriptor.size)
            return
        partial = self._partials / descriptor.digest.hex
        journal = partial.with_suffix(".journal")
        with locks.locked(partial) as file, disk_errors(partial):
            if self._blobs.has(descriptor):
                journal.unlink(missing_ok=True)
                partial.unlink()
                on_bytes(descriptor.size)
                return
            progress = _HighWater(on_bytes)
            try:
                actual = self._complete(file, journal, descriptor, open_blob, progress)
                if actual != descriptor.digest:
                    raise DigestMismatchError(f"content of {descriptor.digest} has the digest {actual}")
            except DigestMismatchError:
                journal.unlink(missing_ok=True)
                partial.unlink()
                raise
            journal.unlink(missing_ok=True)
            self.publish(file, partial, descriptor.digest)

    def write_small(self, content: bytes, media_type: str) -> Descriptor:
        """Store a small blob from memory."""
        descriptor = Descriptor.of(content, media_type)
        if not self._blobs.has(descriptor):
            write_atomically(self._blobs.path(descriptor.digest), content, mode=_BLOB_MODE)
        return descriptor

    def import_file(
        self,
        path: Path,
        media_type: str,
        *,
        adopt: bool,
        digest: Digest | None,
        on_digest: Callable[[Digest], object],
        on_bytes: Callable[[int], None],
    ) -> Descriptor:
        """Store a file; the contract is that of ``Store.import_file``. ``on_digest`` hears the digest before the blob
        becomes visible under it.
        """
        temporary = self._partials / f"import-{uuid.uuid4().hex}"
        source = _open_regular(path)
        try:
            with disk_errors(path):
                if adopt and os.fstat(source).st_dev == self._partials.stat().st_dev:
                    path.rename(temporary)
                    file = os.dup(source)
                else:
                    file = self._copy(source, temporary)
                    digest = None  # that of a copy is its own
                try:
                    size = os.fstat(file).st_size
                    if digest is None:
                        # The disk writes while the processor hashes.
                        with Writeback(file, every=1) as writeback:
                            writeback.wrote(size)
                            hexadecimal, size = sha256_of(file, on_bytes)
                        digest = Digest.from_hex(hexadecimal)
                    descriptor = Descriptor(media_type, digest, size)
                    on_digest(digest)
                    if not self._blobs.has(descriptor):
                        self.publish(file, temporary, digest)
                finally:
                    os.close(file)
                if adopt:
                    path.unlink(missing_ok=True)
                return descriptor
        finally:
            os.close(source)
            temporary.unlink(missing_ok=True)

    def publish(self, file: int, temporary: Path, digest: Digest) -> None:
        """Make a complete file on the store's file system visible as a blob. The caller has hashed it; ``file`` has
        it open. A file that cannot be synced is gone.
        """
        with disk_errors(temporary):
            os.fchmod(file, _BLOB_MODE)
            os.utime(file)  # A clean-up spares what is young, and an adopted file may be old.
            try:
                os.fsync(file)
            except OSError:
                # The next sync would succeed, and the page cache would still show what no disk holds.
                temporary.unlink(missing_ok=True)
                raise
            temporary.rename(self._blobs.path(digest))
            sync_directory(self._blobs.directory)

    def _complete(
        self, file: int, journal: Path, descriptor: Descriptor, open_blob: OpenBlob, progress: "_HighWater"
    ) -> Digest:
        """Complete a partial file in the way that its source allows; returns the digest of what it then holds."""
        if isinstance(open_blob, RangedBlob) and descriptor.size > _ONE_STREAM:
            try:
                return self._fill_segments(file, journal, descriptor, open_blob, progress)
            except RangesIgnoredError:
                _log.info("%s cannot be read in parts: it comes in one stream", descriptor.digest)
        if journal.exists():
            _close_gaps(file, journal, descriptor)
        resumed = 0 < os.fstat(file).st_size <= descriptor.size
        actual = self._fill(file, descriptor, open_blob, progress)
        if actual != descriptor.digest and resumed:
            # What an earlier try left may have been damaged here (a power loss), which says nothing about
            # the source: ask it once for everything.
            _log.info("the partial blob %s is damaged; starting over", descriptor.digest)
            os.ftruncate(file, 0)
            actual = self._fill(file, descriptor, open_blob, progress)
        return actual

    def _fill_segments(
        self, file: int, path: Path, descriptor: Descriptor, blob: RangedBlob, progress: "_HighWater"
    ) -> Digest:
        """Complete a partial file over several connections. Raises RangesIgnoredError."""
        # Before the segments of a blob are counted that no disk holds.
        check_space(self._partials, descriptor.size - os.fstat(file).st_blocks * 512)
        journal = Journal(path, descriptor)
        try:
            if journal.is_new:
                segments.adopt(file, journal)
            resumed = list(journal.checksums)
            os.ftruncate(file, descriptor.size)
            progress.add(sum(journal.length(segment) for segment in resumed))
            actual = segments.fill(file, journal, blob, progress.add)
            if actual != descriptor.digest:
                # What is not as it was written was damaged here, and is fetched again, alone. Where all is, an earlier
                # try may have had another source: then what it left goes.
                suspect = segments.torn(file, journal) or resumed
                if suspect:
                    _log.info("%d segments of %s are damaged; fetching them again", len(suspect), descriptor.digest)
                    journal.forget(suspect)
                    actual = segments.fill(file, journal, blob, lambda _: progress.add(0))
            return actual
        finally:
            journal.close()

    def _fill(self, file: int, descriptor: Descriptor, open_blob: OpenBlob, progress: "_HighWater") -> Digest:
        """Complete a partial file without gaps in one stream; returns the digest of what it then holds."""
        if os.fstat(file).st_size > descriptor.size:
            os.ftruncate(file, 0)
        hasher, size = hashlib.sha256(), 0
        for chunk in _chunks(file):
            hasher.update(chunk)
            size += len(chunk)
            progress.reached(size)
        if size < descriptor.size:
            check_space(self._partials, descriptor.size - size)
            with Writeback(file) as writeback, open_blob(size) as chunks:
                for chunk in chunks:
                    if size + len(chunk) > descriptor.size:
                        raise DigestMismatchError(
                            f"{descriptor.digest} is longer than the {descriptor.size} bytes promised"
                        )
                    _write_all(file, chunk)
                    writeback.wrote(len(chunk))
                    hasher.update(chunk)
                    size += len(chunk)
                    progress.reached(size)
            if size < descriptor.size:
                raise DigestMismatchError(
                    f"{descriptor.digest} ended after {size} of the {descriptor.size} bytes promised"
                )
        return Digest.from_hex(hasher.hexdigest())

    def _copy(self, source: int, temporary: Path) -> int:
        """Copy into a new file; returns it open and locked."""
        file = locks.open_locked(temporary)
        try:
            if not share_extents(source, file):
                check_space(self._partials, os.fstat(source).st_size)
                copy_contents(source, file)
        except BaseException:
            os.close(file)
            raise
        return file


def check_space(directory: Path, needed: int) -> None:
    """Raises InsufficientDiskError when ``needed`` bytes do not fit where ``directory`` lies."""
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise InsufficientDiskError(f"{needed} bytes are needed in {directory}, and {free} are free")


class _HighWater:
    """Tells only of bytes beyond those already told of, so that starting over does not count twice."""

    def __init__(self, on_bytes: Callable[[int], None]) -> None:
        self._on_bytes = on_bytes
        self._told = 0
        self._lock = threading.Lock()

    def add(self, amount: int) -> None:
        """So many bytes more are there, wherever in the file."""
        with self._lock:
            self._told += amount
        self._on_bytes(amount)

    def reached(self, position: int) -> None:
        if position > self._told:
            self._on_bytes(position - self._told)
            self._told = position


def _close_gaps(file: int, path: Path, descriptor: Descriptor) -> None:
    """Keep of a file with gaps what lies before the first one."""
    journal = Journal(path, descriptor)
    try:
        os.ftruncate(file, 0 if journal.is_new else journal.frontier())
    finally:
        journal.close()
        path.unlink(missing_ok=True)


def _open_regular(path: Path) -> int:
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFoundError(f"no file {path}") from error
    except OSError as error:
        raise InvalidInputError(f"cannot read {path}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise InvalidInputError(f"{path} is not a regular file")
    return file


def _chunks(file: int) -> Iterator[bytes]:
    os.lseek(file, 0, os.SEEK_SET)
    return iter(lambda: os.read(file, CHUNK_SIZE), b"")


def copy_contents(source: int, target: int) -> None:
    """Write all that one open file holds to the end of another."""
    for chunk in _chunks(source):
        _write_all(target, chunk)


def _write_all(file: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(file, view) :]


def share_extents(source: int, target: int) -> bool:
    """Share the extents of ``source``, copied on write: never a hard link, whose owner could change our blob."""
    if sys.platform != "linux":
        return False
    import fcntl

    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False
    return True
