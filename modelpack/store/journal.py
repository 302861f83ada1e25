"""What is known about a partial file that is filled in several places at once.

A journal is a header and one record per segment that was written, appended and never changed, so that a kill at any
moment costs at most the record that was being written. After a power loss the file may hold less than its journal
says: the checksum of each segment tells which.
"""

import itertools
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from modelpack.oci.manifest import Descriptor

SEGMENT_SIZE = 16 << 20

# Version, digest, size of the blob, size of a segment; segment and CRC-32 of its bytes. Each ends with its own CRC-32.
_HEADER = struct.Struct("<4s32sQI")
_RECORD = struct.Struct("<II")
_CHECK = struct.Struct("<I")
_VERSION = b"mpj1"
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC


class Journal:
    """The segments of one blob that are there. The caller holds the lock of the partial file."""

    def __init__(self, path: Path, descriptor: Descriptor, *, segment_size: int = SEGMENT_SIZE) -> None:
        """Open what an earlier try left, or begin anew where that is of another blob or cannot be read."""
        self.path = path
        self.size = descriptor.size
        self.segment_size = segment_size
        self.checksums: dict[int, int] = {}
        self._file = os.open(path, _FLAGS, 0o600)
        header = _header(descriptor, segment_size)
        content = _read(self._file)
        self.is_new = not content.startswith(header)
        if self.is_new:
            os.ftruncate(self._file, 0)
            os.write(self._file, header)
            return
        length = len(header)
        for segment, checksum in _records(content[length:]):
            self.checksums[segment] = checksum
            length += _RECORD.size + _CHECK.size
        # A record that a kill cut short would put all that follow it out of step.
        os.ftruncate(self._file, length)

    @property
    def count(self) -> int:
        """How many segments the blob has."""
        return -(-self.size // self.segment_size)

    def bounds(self, segment: int) -> tuple[int, int]:
        """Where a segment begins, and where the next one does."""
        return segment * self.segment_size, min((segment + 1) * self.segment_size, self.size)

    def length(self, segment: int) -> int:
        start, stop = self.bounds(segment)
        return stop - start

    def missing(self) -> list[int]:
        return [segment for segment in range(self.count) if segment not in self.checksums]

    def frontier(self) -> int:
        """Bytes from the beginning without a gap."""
        return min((self.bounds(segment)[0] for segment in self.missing()), default=self.size)

    def add(self, segment: int, checksum: int) -> None:
        """A segment has been written. One append is one write: records of several threads do not mix."""
        os.write(self._file, _sealed(_RECORD.pack(segment, checksum)))
        self.checksums[segment] = checksum

    def forget(self, segments: list[int]) -> None:
        """These are to be fetched again; in this process only, since whoever fetches them adds them again."""
        for segment in segments:
            del self.checksums[segment]

    def close(self) -> None:
        os.close(self._file)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def arrived(path: Path, descriptor: Descriptor) -> int:
    """Bytes from the beginning without a gap of a blob that somebody else is fetching; 0 where no journal says so."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return 0
    header = _header(descriptor, SEGMENT_SIZE)
    if not content.startswith(header):
        return 0
    present = {segment for segment, _ in _records(content[len(header) :])}
    whole = next(segment for segment in itertools.count() if segment not in present)
    return min(whole * SEGMENT_SIZE, descriptor.size)


def _header(descriptor: Descriptor, segment_size: int) -> bytes:
    return _sealed(_HEADER.pack(_VERSION, bytes.fromhex(descriptor.digest.hex), descriptor.size, segment_size))


def _records(content: bytes) -> Iterator[tuple[int, int]]:
    step = _RECORD.size + _CHECK.size
    for at in range(0, len(content) - step + 1, step):
        body = content[at : at + _RECORD.size]
        if _sealed(body) != content[at : at + step]:
            return
        yield _RECORD.unpack(body)


def _sealed(content: bytes) -> bytes:
    return content + _CHECK.pack(zlib.crc32(content))


def _read(file: int) -> bytes:
    # 12 bytes a segment: a blob of 1 TB has a journal of 750 KiB.
    content = bytearray()
    while chunk := os.pread(file, 1 << 20, len(content)):
        content += chunk
    return bytes(content)
