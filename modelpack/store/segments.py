"""Filling a partial file in several places at once, while one thread hashes what is there from the beginning on.

One connection begins. As long as it alone keeps the hash busy, it stays alone: what it brings is hashed from memory and
written past the page cache. Where it does not, all others join, for a link whose connections are slowed down each: then
the hash runs behind on what the page cache holds, so that the last byte to arrive is nearly the last to be hashed, and
no more than 1 MiB a connection is in memory, besides what waits for the hash.
"""

import hashlib
import os
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from modelpack.errors import UnavailableError
from modelpack.oci.digest import Digest
from modelpack.oci.target import RangedBlob, RangesIgnoredError
from modelpack.store.direct import Writer
from modelpack.store.journal import Journal
from modelpack.store.writeback import Writeback

_BUFFER = 1 << 20
_PER_CONNECTION = 32 << 20  # a connection more for less than this costs more than it brings
_LONGEST_RUN = 4  # segments that one request asks for: a request each would cost a round trip each
_WAITING = 8  # chunks that may wait for the hash
# What a connection alone has to bring in this time, in bytes a second: half of what a processor hashes; or less,
# if what is read comes by the full 1 MiB, so that more is waiting, and it is this machine that is busy.
_WINDOW = 0.25  # seconds
_FAST = 256 << 20
_BUSY = 96 << 20
# How long a connection that has fallen silent may hold up the report of another's failure, in seconds.
_GRACE = 1.0


def fill(file: int, journal: Journal, blob: RangedBlob, on_bytes: Callable[[int], None]) -> Digest:
    """Fetch what ``journal`` misses; returns the digest of what ``file`` then holds.

    ``on_bytes`` hears, in any thread, of every chunk that arrives; what it raises ends the work. Raises
    RangesIgnoredError when no thread writes any more.
    """
    count = min(blob.connections, -(-journal.size // _PER_CONNECTION), len(journal.missing()))
    with Writeback(file) as writeback:
        work = _Work(file, journal, blob, on_bytes, connections=count, writeback=writeback)
        try:
            return work.hash()
        finally:
            work.stop(grace=None if isinstance(work.failure, RangesIgnoredError) else _GRACE)


def adopt(file: int, journal: Journal) -> None:
    """Enter what one stream has left: a beginning without gaps."""
    for segment in journal.missing():
        stop = journal.bounds(segment)[1]
        if os.fstat(file).st_size < stop:
            return
        journal.add(segment, _checksum(file, journal, segment))


def torn(file: int, journal: Journal) -> list[int]:
    """The segments whose bytes are not those that were written."""
    return [
        segment
        for segment, checksum in sorted(journal.checksums.items())
        if _checksum(file, journal, segment) != checksum
    ]


def _checksum(file: int, journal: Journal, segment: int) -> int:
    position, stop = journal.bounds(segment)
    checksum = 0
    while position < stop and (chunk := os.pread(file, min(_BUFFER, stop - position), position)):
        checksum = zlib.crc32(chunk, checksum)
        position += len(chunk)
    return checksum


@dataclass(slots=True)
class _Received:
    """What came over the first connection for a while: bytes, and how many reads were of all that one may bring."""

    size: int = 0
    full: int = 0
    short: int = 0

    def add(self, amount: int) -> None:
        self.size += amount
        self.full, self.short = self.full + (amount >= _BUFFER), self.short + (amount < _BUFFER)


class _Work:
    """What the threads of one blob share."""

    def __init__(
        self,
        file: int,
        journal: Journal,
        blob: RangedBlob,
        on_bytes: Callable[[int], None],
        *,
        connections: int,
        writeback: Writeback,
    ) -> None:
        self._file, self._journal, self._blob, self._on_bytes = file, journal, blob, on_bytes
        self._connections, self._writeback = connections, writeback
        self._changed = threading.Condition()
        self._waiting = journal.missing()[::-1]
        self._stopped = False
        self._threads: list[threading.Thread] = []
        # What comes exactly where the hash has got to goes there from memory, and nobody has to read it again.
        self._handed: deque[memoryview] = deque()
        self._frontier = 0
        self._received = _Received()
        self._alone = not journal.checksums
        self.failure: BaseException | None = None

    def stop(self, *, grace: float | None) -> None:
        """End all connections, and wait so many seconds for each; with None, for as long as it takes."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout=grace)

    def hash(self) -> Digest:
        """Fetch, and hash from the beginning on what comes. Raises what a connection failed with."""
        self._start(1 if self._alone else self._connections)
        begun = time.monotonic()
        hasher = hashlib.sha256()
        position = 0
        while position < self._journal.size:
            begun = self._keep_pace(begun)
            content = self._await(position)
            if content is None:
                position = self._hash_segment(hasher, position)
            else:
                hasher.update(content)
                position += len(content)
        self._await_written()
        return Digest.from_hex(hasher.hexdigest())

    def _start(self, connections: int) -> None:
        while len(self._threads) < connections:
            # Daemons, as in transfer: Ctrl-C shall not wait for a connection that has fallen silent.
            thread = threading.Thread(target=self._fetch_all, name="modelpack-segment", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _keep_pace(self, begun: float) -> float:
        """Let the others join where one alone is slow. Returns since when that is measured."""
        now = time.monotonic()
        if not self._alone or now - begun < _WINDOW:
            return begun
        with self._changed:
            received, self._received = self._received, _Received()
            wanted = _BUSY if received.full > received.short else _FAST
            self._alone = received.size >= wanted * (now - begun)
            self._changed.notify_all()
        if not self._alone:
            self._start(self._connections)
        return now

    def _await(self, position: int) -> memoryview | None:
        """What follows ``position``, from memory; None when the rest of its segment is in the file, or nothing came for
        a while.
        """
        segment = position // self._journal.segment_size
        with self._changed:
            while not self._handed and segment not in self._journal.checksums:
                if self.failure is not None:
                    raise self.failure
                if not self._changed.wait(timeout=_WINDOW if self._alone else None):
                    return None
            if not self._handed:
                return None
            self._changed.notify_all()
            return self._handed.popleft()

    def _await_written(self) -> None:
        """What is hashed from memory may not be in the file yet."""
        with self._changed:
            while len(self._journal.checksums) < self._journal.count:
                if self.failure is not None:
                    raise self.failure
                self._changed.wait()

    def _hash_segment(self, hasher: "hashlib._Hash", position: int) -> int:
        """Hash from the file what is left of a segment, if it is there; returns how far the hash has come."""
        segment = position // self._journal.segment_size
        if segment not in self._journal.checksums:
            return position
        stop = self._journal.bounds(segment)[1]
        buffer = memoryview(bytearray(_BUFFER))
        while position < stop:
            count = os.preadv(self._file, [buffer[: stop - position]], position)
            if not count:
                raise OSError(f"a partial file of {self._journal.size} bytes ends after {position}")
            hasher.update(buffer[:count])
            position += count
        with self._changed:
            self._frontier = position
        return position

    def _hand(self, content: memoryview, position: int) -> None:
        """Give to the hash what it waits for, unless it has enough to do; who is alone waits for it."""
        with self._changed:
            self._received.add(len(content))
            if position != self._frontier:
                return
            while len(self._handed) >= _WAITING:
                if not self._alone or self._stopped:
                    return
                self._changed.wait()
            self._handed.append(content)
            self._frontier += len(content)
            self._changed.notify_all()

    def _fetch_all(self) -> None:
        """One connection's work: the next missing segments, until there are none."""
        # A copy of the descriptor keeps the file, and its lock, for a thread that is left behind in a read.
        file = os.dup(self._file)
        try:
            with Writer(file) as writer:
                while run := self._next():
                    self._fetch(writer, run)
        except BaseException as error:
            with self._changed:
                self.failure = self.failure or error
                self._changed.notify_all()
        finally:
            os.close(file)

    def _next(self) -> range:
        """The first segments that nobody fetches yet, without a gap; empty when there are none, or work has ended.

        Towards the end fewer at a time, so that all connections end at about the same moment.
        """
        with self._changed:
            if not self._waiting or self._stopped or self.failure is not None:
                return range(0)
            longest = max(1, min(_LONGEST_RUN, len(self._waiting) // (2 * self._connections)))
            first = self._waiting.pop()
            stop = first + 1
            while stop - first < longest and self._waiting and self._waiting[-1] == stop:
                stop = self._waiting.pop() + 1
            return range(first, stop)

    def _fetch(self, writer: Writer, run: range) -> None:
        """Write the segments of one request, and enter each as soon as it is whole; less when work has been stopped."""
        position, end = self._journal.bounds(run[0])[0], self._journal.bounds(run[-1])[1]
        segments = iter(run)
        segment, checksum = next(segments), 0
        with self._blob.open_range(position, end) as chunks:
            for chunk in chunks:
                if self._stopped:
                    return
                if position + len(chunk) > end:
                    raise UnavailableError(f"the source sends more than the bytes up to {end} that it was asked for")
                rest = memoryview(chunk)
                self._hand(rest, position)
                while rest:
                    stop = self._journal.bounds(segment)[1]
                    piece, rest = rest[: stop - position], rest[stop - position :]
                    self._write(writer, piece, position)
                    checksum = zlib.crc32(piece, checksum)
                    position += len(piece)
                    if position == stop:
                        writer.flush()
                        self._enter(segment, checksum)
                        segment, checksum = next(segments, segment), 0
                self._on_bytes(len(chunk))
        if position < end:
            raise UnavailableError(f"the source stopped at byte {position}, before {end}")

    def _write(self, writer: Writer, content: memoryview, position: int) -> None:
        if self._alone:
            writer.write_past_cache(content, position)
        else:
            writer.write(content, position)
            self._writeback.wrote(len(content))

    def _enter(self, segment: int, checksum: int) -> None:
        with self._changed:
            self._journal.add(segment, checksum)
            self._changed.notify_all()
