"""Large blobs that come over several connections into one file with gaps."""

import contextlib
import os
import random
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from store_artifacts import WEIGHT, opener

from modelpack.errors import DigestMismatchError, InsufficientDiskError, UnavailableError
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import Descriptor
from modelpack.oci.target import BlobStream, RangedBlob, RangesIgnoredError
from modelpack.store import Store, segments
from modelpack.store.journal import SEGMENT_SIZE, Journal

# Four segments, the last one short.
CONTENT = random.Random(4).randbytes(3 * SEGMENT_SIZE + 1_000_003)
BLOB = Descriptor.of(CONTENT, WEIGHT)
STEP = 1 << 20


class Far:
    """A source in memory that remembers what it was asked for, and misbehaves on demand."""

    def __init__(self, content: bytes = CONTENT) -> None:
        self.content = content
        self.asked: list[int] = []
        self.streams: list[int] = []
        self.before: Callable[[int], None] = lambda position: None
        self.lock = threading.Lock()

    def blob(self, connections: int = 4) -> RangedBlob:
        return RangedBlob(self.open_stream, self.open_range, connections)

    def open_stream(self, offset: int) -> BlobStream:
        self.streams.append(offset)
        return opener(self.content, chunk=STEP)(offset)

    @contextlib.contextmanager
    def open_range(self, start: int, stop: int) -> Iterator[Iterator[bytes]]:
        with self.lock:
            self.asked.append(start // SEGMENT_SIZE)

        def chunks() -> Iterator[bytes]:
            for position in range(start, stop, STEP):
                self.before(position)
                yield self.content[position : min(position + STEP, stop)]

        yield chunks()


def partial(store: Store) -> Path:
    return store.partials / BLOB.digest.hex


def left(store: Store) -> list[str]:
    return sorted(path.name for path in store.partials.iterdir())


def test_a_large_blob_comes_in_segments_and_is_whole(store: Store) -> None:
    far, heard = Far(), []

    store.repository("tiny").write_blob(BLOB, far.blob(), on_bytes=heard.append)

    store.rehash(BLOB)
    assert sorted(far.asked) == [0, 1, 2, 3]
    assert far.streams == []
    assert sum(heard) == len(CONTENT)
    assert left(store) == []


def test_a_small_blob_comes_in_one_stream(store: Store) -> None:
    content = CONTENT[:1000]
    far = Far(content)

    store.repository("tiny").write_blob(Descriptor.of(content, WEIGHT), far.blob())

    assert (far.asked, far.streams) == ([], [0])


def fail_at(position: int) -> Callable[[int], None]:
    def before(at: int) -> None:
        if at == position:
            raise ConnectionError("the wire was cut")

    return before


def test_only_what_is_missing_is_fetched_again(store: Store) -> None:
    far = Far()
    far.before = fail_at(SEGMENT_SIZE + 5 * STEP)
    with pytest.raises(ConnectionError):
        store.repository("tiny").write_blob(BLOB, far.blob(connections=1))
    assert left(store) == sorted([BLOB.digest.hex, f"{BLOB.digest.hex}.journal"])

    again, heard = Far(), []
    store.repository("tiny").write_blob(BLOB, again.blob(connections=1), on_bytes=heard.append)

    assert again.asked == [1, 2, 3]
    assert sum(heard) == len(CONTENT)
    store.rehash(BLOB)


def test_what_one_stream_left_is_used_by_several(store: Store) -> None:
    partial(store).write_bytes(CONTENT[: SEGMENT_SIZE + 5])
    far = Far()

    store.repository("tiny").write_blob(BLOB, far.blob())

    assert sorted(far.asked) == [1, 2, 3]
    store.rehash(BLOB)


def test_what_several_left_is_used_by_one_stream_as_far_as_it_has_no_gap(store: Store) -> None:
    far = Far()

    def before(at: int) -> None:
        if at == SEGMENT_SIZE:
            time.sleep(0.5)  # The others get ahead.
            raise ConnectionError("the wire was cut")

    far.before = before
    with pytest.raises(ConnectionError):
        store.repository("tiny").write_blob(BLOB, far.blob(connections=2))

    again = Far()
    store.repository("tiny").write_blob(BLOB, again.open_stream)

    assert again.streams == [SEGMENT_SIZE]
    store.rehash(BLOB)
    assert left(store) == []


def test_a_source_that_ignores_ranges_is_read_in_one_stream(store: Store) -> None:
    far, heard = Far(), []

    def ignore(position: int) -> None:
        raise RangesIgnoredError("all or nothing")

    far.before = ignore
    store.repository("tiny").write_blob(BLOB, far.blob(), on_bytes=heard.append)

    assert far.streams == [0]
    assert sum(heard) == len(CONTENT)
    store.rehash(BLOB)


def interrupted(store: Store) -> None:
    """Leave the first three segments behind."""
    far = Far()
    far.before = fail_at(3 * SEGMENT_SIZE)
    with pytest.raises(ConnectionError):
        store.repository("tiny").write_blob(BLOB, far.blob(connections=1))


def damage(path: Path, position: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        file.write(content)


def test_a_torn_segment_is_fetched_again_alone(store: Store) -> None:
    interrupted(store)
    # What a power loss leaves of pages that had not reached the disk.
    damage(partial(store), SEGMENT_SIZE + 4096, bytes(4096))
    far, heard = Far(), []

    store.repository("tiny").write_blob(BLOB, far.blob(), on_bytes=heard.append)

    assert far.asked == [3, 1]
    assert sum(heard) == len(CONTENT)
    store.rehash(BLOB)


def test_a_partial_file_that_lost_its_end_is_completed(store: Store) -> None:
    interrupted(store)
    os.truncate(partial(store), SEGMENT_SIZE + 10)
    far = Far()

    store.repository("tiny").write_blob(BLOB, far.blob())

    assert far.asked[0] == 3
    assert sorted(far.asked[1:]) == [1, 2]
    store.rehash(BLOB)


@pytest.mark.parametrize("tail", [b"x", b"\0" * 11, b"garbage that is longer than a record"])
def test_a_journal_whose_last_record_is_torn_is_read_up_to_there(store: Store, tail: bytes) -> None:
    interrupted(store)
    with partial(store).with_suffix(".journal").open("ab") as file:
        file.write(tail)
    far = Far()

    store.repository("tiny").write_blob(BLOB, far.blob())

    assert far.asked == [3]
    store.rehash(BLOB)


def test_a_journal_of_something_else_is_not_believed(store: Store) -> None:
    interrupted(store)
    partial(store).with_suffix(".journal").write_bytes(b"not a journal")
    far = Far()

    store.repository("tiny").write_blob(BLOB, far.blob())

    store.rehash(BLOB)


def test_wrong_content_leaves_nothing_and_is_asked_for_once(store: Store) -> None:
    far = Far(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))

    with pytest.raises(DigestMismatchError, match="has the digest"):
        store.repository("tiny").write_blob(BLOB, far.blob())

    assert sorted(far.asked) == [0, 1, 2, 3]
    assert left(store) == []
    assert not store.repository("tiny").has_blob(BLOB)


def test_wrong_bytes_of_an_earlier_try_are_fetched_again(store: Store) -> None:
    bad = Far(bytes(100) + CONTENT[100:])
    bad.before = fail_at(3 * SEGMENT_SIZE)
    with pytest.raises(ConnectionError):
        store.repository("tiny").write_blob(BLOB, bad.blob(connections=1))

    store.repository("tiny").write_blob(BLOB, Far().blob())

    store.rehash(BLOB)


@pytest.mark.parametrize("length", [-1, 1])
def test_a_source_that_sends_too_much_or_too_little_is_an_error_and_keeps_the_rest(store: Store, length: int) -> None:
    far = Far()

    @contextlib.contextmanager
    def open_range(start: int, stop: int) -> Iterator[Iterator[bytes]]:
        yield iter([far.content[start : stop + length if start else stop]])

    with pytest.raises(UnavailableError, match=r"bytes up to|stopped at"):
        store.repository("tiny").write_blob(BLOB, RangedBlob(far.open_stream, open_range, 1))
    assert not store.repository("tiny").has_blob(BLOB)


def test_a_blob_that_claims_a_size_of_nonsense_costs_no_memory(store: Store) -> None:
    huge = Descriptor(WEIGHT, Digest.of(b"huge"), 1 << 50)
    tracemalloc.start()
    try:
        with pytest.raises(InsufficientDiskError, match="are free"):
            store.repository("tiny").write_blob(huge, Far().blob())
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


def test_a_full_disk_keeps_the_segments_that_fit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    # The far end here is the operating system: a real full disk needs root.
    import errno

    write = os.pwrite

    def full(file: int, content: bytes, position: int) -> int:
        if position >= 2 * SEGMENT_SIZE:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, content, position)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(InsufficientDiskError, match="no space left"):
        store.repository("tiny").write_blob(BLOB, Far().blob(connections=1))
    monkeypatch.undo()

    far = Far()
    store.repository("tiny").write_blob(BLOB, far.blob())
    assert sorted(far.asked) == [2, 3]


def test_a_caller_that_gives_up_ends_all_connections(store: Store) -> None:
    far, heard = Far(), []

    def give_up(amount: int) -> None:
        heard.append(amount)
        if sum(heard) > SEGMENT_SIZE:
            raise KeyboardInterrupt

    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        store.repository("tiny").write_blob(BLOB, far.blob(), on_bytes=give_up)
    assert time.monotonic() - begun < 5
    assert sum(heard) < len(CONTENT)

    store.repository("tiny").write_blob(BLOB, Far().blob())
    store.rehash(BLOB)


def test_a_journal_knows_gaps_and_bounds(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal", BLOB)
    assert (journal.is_new, journal.count, journal.frontier()) == (True, 4, 0)
    journal.add(2, 7)
    journal.add(0, 5)
    journal.close()

    journal = Journal(tmp_path / "journal", BLOB)
    assert not journal.is_new
    assert journal.checksums == {0: 5, 2: 7}
    assert journal.missing() == [1, 3]
    assert journal.frontier() == SEGMENT_SIZE
    assert journal.bounds(3) == (3 * SEGMENT_SIZE, BLOB.size)
    journal.close()


class Small:
    """Forty small segments, asked for over one connection."""

    def __init__(self, tmp_path: Path) -> None:
        self.content = random.Random(6).randbytes(40 * 1000 - 1)
        self.blob = Descriptor.of(self.content, WEIGHT)
        self.asked: list[tuple[int, int]] = []
        self.break_at: int | None = None
        self.journal = Journal(tmp_path / "journal", self.blob, segment_size=1000)
        self.file = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
        os.ftruncate(self.file, len(self.content))

    @contextlib.contextmanager
    def open_range(self, start: int, stop: int) -> Iterator[Iterator[bytes]]:
        self.asked.append((start, stop))

        def chunks() -> Iterator[bytes]:
            # Pieces that do not end where segments do.
            for position in range(start, stop, 700):
                if self.break_at is not None and position >= self.break_at:
                    raise ConnectionError("the wire was cut")
                yield self.content[position : min(position + 700, stop)]

        yield chunks()

    def fill(self) -> Digest:
        blob = RangedBlob(opener(self.content), self.open_range, connections=1)
        return segments.fill(self.file, self.journal, blob, lambda _: None)


def test_one_request_asks_for_several_segments_and_fewer_towards_the_end(tmp_path: Path) -> None:
    small = Small(tmp_path)

    assert small.fill() == small.blob.digest

    lengths = [-(-(stop - start) // 1000) for start, stop in small.asked]
    assert lengths[:8] == [4] * 8
    assert lengths[8:] == [4, 2, 1, 1]
    assert [start for start, _ in small.asked] == [0, *(stop for _, stop in small.asked[:-1])]


def test_a_request_that_breaks_keeps_the_segments_it_has_brought(tmp_path: Path) -> None:
    small = Small(tmp_path)
    small.break_at = 7_100  # in the last segment of the second request
    with pytest.raises(ConnectionError):
        small.fill()
    assert small.journal.missing() == list(range(7, 40))

    small.break_at, small.asked = None, []
    assert small.fill() == small.blob.digest
    assert small.asked[0] == (7_000, 11_000)


def test_a_request_ends_where_something_is_there_already(tmp_path: Path) -> None:
    small = Small(tmp_path)
    os.pwrite(small.file, small.content[2000:3000], 2000)
    small.journal.add(2, zlib.crc32(small.content[2000:3000]))

    assert small.fill() == small.blob.digest

    assert small.asked[:2] == [(0, 2000), (3000, 7000)]
