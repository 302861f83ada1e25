"""Advisory locks between processes and threads. A lock dies with the process that holds it, also by kill -9."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
"""What a place that cannot be written to answers, for whatever reason."""

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


@contextlib.contextmanager
def locked(path: Path, *, shared: bool = False, read_only: bool = False) -> Iterator[int]:
    """Hold a lock on ``path``, made if missing and left where it is; yields the open file's descriptor.

    Whoever held the file before may have renamed or removed it: what is locked is the file that is there now. With
    ``read_only`` a file that cannot be opened for writing will do: others may write to it through another mount.
    """
    while True:
        descriptor = _open(path, read_only=read_only)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
            if _is_still(path, descriptor):
                yield descriptor
                return
        finally:
            os.close(descriptor)


def _open(path: Path, *, read_only: bool) -> int:
    try:
        return os.open(path, _FLAGS, 0o600)
    except OSError as error:
        if not read_only or error.errno not in READ_ONLY:
            raise
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)


def open_locked(path: Path) -> int:
    """Make ``path`` and hold its lock until the descriptor that is returned is closed."""
    descriptor = os.open(path, _FLAGS | os.O_EXCL, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def reopen_locked(path: Path) -> int | None:
    """Open a file that exists and hold its lock until the descriptor is closed; None when it is gone or in use."""
    try:
        return _claim(path, os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC))
    except OSError:
        return None


def claim(path: Path) -> int | None:
    """Open a file, made if missing, and hold its lock until the descriptor is closed; None when it is in use."""
    return _claim(path, os.open(path, _FLAGS, 0o600))


def _claim(path: Path, descriptor: int) -> int | None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_still(path, descriptor):
            return descriptor
    except BlockingIOError:
        pass
    os.close(descriptor)
    return None


def hold(descriptor: int) -> None:
    """Lock what ``descriptor`` has open (a file or a directory) until it is closed."""
    fcntl.flock(descriptor, fcntl.LOCK_EX)


@contextlib.contextmanager
def attempt(path: Path) -> Iterator[bool]:
    """Try to lock a file or a directory that exists, without waiting; yields whether it is locked now."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except BlockingIOError:
            free = False
        yield free
    finally:
        os.close(descriptor)


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
