"""Writing a file past the page cache, where the system has a way.

A gigabyte that goes through the page cache is copied once more than it has to be, and its sync at the end takes longer
than a fast disk takes for the gigabyte. What is written past it is on the disk at once, and is read from there next
time: a bargain on a disk that is as fast as the bytes come, and on no other.
"""

import errno
import mmap
import os
import time

_BLOCK = 1 << 20
# Sectors have 512 or 4,096 bytes; of whole ones is what open(2), "O_DIRECT", wants addresses, positions and lengths.
_SECTOR = 4096
# What a disk has to take, in bytes a second over so many bytes, to be read from again with no regret.
_FAST = 256 << 20
_STRETCH = 32 << 20


class Writer:
    """Writes into an open file, at any place. Not for several threads. A context manager."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._direct: int | None = None
        self._block: memoryview | None = None
        self._start = self._filled = 0
        self._stretch, self._seconds = 0, 0.0

    def write(self, content: memoryview, position: int) -> None:
        """Through the page cache."""
        self.flush()
        _write_at(self._file, content, position)

    def write_past_cache(self, content: memoryview, position: int) -> None:
        """Past it, as far as that is possible and the disk is fast, and gathered into large blocks.

        What comes next has to follow what came before, until ``flush``, after which all of it is written.
        """
        block = self._open()
        while block is not None and content and (self._filled or position % _SECTOR == 0):
            if not self._filled:
                self._start = position
            taken = content[: _BLOCK - self._filled]
            block[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            content, position = content[len(taken) :], position + len(taken)
            if self._filled == _BLOCK:
                self.flush()
                block = self._open()
        if content:
            _write_at(self._file, content, position)

    def flush(self) -> None:
        if not self._filled or self._block is None:
            return
        content, self._filled = self._block[: self._filled], 0
        whole = len(content) - len(content) % _SECTOR
        try:
            if self._direct is not None:
                begun = time.perf_counter()
                _write_at(self._direct, content[:whole], self._start)
                self._judge(whole, time.perf_counter() - begun)
                content, self._start = content[whole:], self._start + whole
        except OSError as error:
            # Some file systems open a file so, and write none; a full disk has room for a part that is no whole sector.
            if error.errno != errno.EINVAL:
                raise
            self.close()
        _write_at(self._file, content, self._start)

    def _judge(self, amount: int, seconds: float) -> None:
        self._stretch, self._seconds = self._stretch + amount, self._seconds + seconds
        if self._stretch >= _STRETCH:
            if self._stretch < _FAST * self._seconds:
                self.close()
            self._stretch, self._seconds = 0, 0.0

    def close(self) -> None:
        """Give up what has not been flushed."""
        self._filled = 0
        if self._direct is not None:
            os.close(self._direct)
        self._direct = None

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> memoryview | None:
        """Where to gather a block; None where no way leads past the page cache."""
        if self._block is None:
            self._block = memoryview(mmap.mmap(-1, _BLOCK))  # Memory that begins where a page does.
            try:
                # A file of its own, since the flag is for all who share one.
                self._direct = os.open(f"/proc/self/fd/{self._file}", os.O_WRONLY | os.O_CLOEXEC | os.O_DIRECT)
            except (OSError, AttributeError):  # no such file system, no such system
                self._direct = None
        return self._block if self._direct is not None else None


def _write_at(file: int, content: memoryview, position: int) -> None:
    while content:
        written = os.pwrite(file, content, position)
        content, position = content[written:], position + written
