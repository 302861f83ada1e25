"""Writing past the page cache."""

import errno
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelpack.store.direct import Writer

CONTENT = random.Random(12).randbytes(3_000_000)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield descriptor
    os.close(descriptor)


def write_all(file: int, *lengths: int, past_cache: Callable[[int], bool] = lambda _: True, start: int = 0) -> None:
    """Write CONTENT from ``start`` on, in pieces of these lengths, the last as long as it takes."""
    position = start
    with Writer(file) as writer:
        for number, length in enumerate((*lengths, len(CONTENT))):
            piece = memoryview(CONTENT)[position : position + length]
            (writer.write_past_cache if past_cache(number) else writer.write)(piece, position)
            position += len(piece)
        writer.flush()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(0, 1 << 21), max_size=8),
    past_cache=st.lists(st.booleans(), min_size=9, max_size=9),
    start=st.sampled_from([0, 4096, 1 << 20, 4097]),
)
def test_pieces_of_any_length_in_any_way_give_the_same_file(
    file: int, lengths: list[int], past_cache: list[bool], start: int
) -> None:
    os.ftruncate(file, 0)
    write_all(file, *lengths, past_cache=past_cache.__getitem__, start=start)
    assert os.pread(file, len(CONTENT) + 1, 0) == bytes(start) + CONTENT[start:]


def refusing_sectors(code: int) -> Callable[..., int]:
    """A file system that opens files so, and fails what is written so."""
    write = os.pwrite

    def pwrite(file: int, content: memoryview, position: int) -> int:
        if len(content) >= 4096 and is_direct(file):
            raise OSError(code, os.strerror(code))
        return write(file, content, position)

    return pwrite


def is_direct(file: int) -> bool:
    import fcntl

    return bool(fcntl.fcntl(file, fcntl.F_GETFL) & getattr(os, "O_DIRECT", 0))


def test_a_file_system_that_writes_none_so_gets_it_through_the_cache(file: int, monkeypatch) -> None:
    monkeypatch.setattr(os, "pwrite", refusing_sectors(errno.EINVAL))
    write_all(file, 10_000, 2_000_000)
    assert os.pread(file, len(CONTENT) + 1, 0) == CONTENT


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="this system has no way past the page cache")
def test_a_full_disk_is_an_error(file: int, monkeypatch) -> None:
    monkeypatch.setattr(os, "pwrite", refusing_sectors(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        write_all(file)


def test_a_disk_that_takes_half_of_what_it_is_given_gets_the_rest(file: int, monkeypatch) -> None:
    write = os.pwrite

    def half(file: int, content: memoryview, position: int) -> int:
        return write(file, content[: max(1, len(content) // 2)], position)

    monkeypatch.setattr(os, "pwrite", half)
    write_all(file, 10_000, 2_000_000)
    assert os.pread(file, len(CONTENT) + 1, 0) == CONTENT


def test_what_was_not_flushed_is_not_in_the_file(file: int) -> None:
    with Writer(file) as writer:
        writer.write_past_cache(memoryview(CONTENT)[:5000], 0)
    assert os.fstat(file).st_size in (0, 5000)  # 5000 where no way leads past the page cache
