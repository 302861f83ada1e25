"""Files that are there whole or not at all: a temporary name, fsync, rename, fsync of the directory."""

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from modelpack.errors import InsufficientDiskError


def write_atomically(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Replace ``path`` by ``content``; readers see the old bytes or the new ones. Makes missing parents.

    Raises InsufficientDiskError when the disk is full; the old content then stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with disk_errors(path), os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        Path(temporary).rename(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise
    sync_directory(path.parent)


@contextlib.contextmanager
def disk_errors(what: Path | str) -> Iterator[None]:
    """Turns a full disk into InsufficientDiskError, which names ``what`` was to be written."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InsufficientDiskError(f"no space left to write {what}") from error
        raise


def sync_directory(path: Path) -> None:
    """Make a rename inside ``path`` survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
