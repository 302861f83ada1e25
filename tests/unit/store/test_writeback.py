"""Files that reach the disk while they are written."""

import os
import time
from collections.abc import Iterator

import pytest

from modelpack.store.writeback import Writeback


@pytest.fixture
def unsyncable() -> Iterator[int]:
    """A pipe: the system refuses to sync it, as it does for a disk that breaks."""
    reader, writer = os.pipe()
    yield writer
    os.close(reader)
    os.close(writer)


def write(file: int, *, then: type[BaseException] | None = None) -> None:
    with Writeback(file, every=10) as writeback:
        writeback.wrote(10)
        time.sleep(0.3)
        writeback.wrote(10)  # for a thread that has ended
        if then:
            raise then


def test_a_sync_that_fails_is_not_forgotten(unsyncable: int) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        write(unsyncable)


def test_the_error_of_the_work_comes_first(unsyncable: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(unsyncable, then=KeyboardInterrupt)


def test_a_little_waits_for_the_sync_at_the_end(unsyncable: int) -> None:
    with Writeback(unsyncable, every=10) as writeback:
        writeback.wrote(9)
        time.sleep(0.3)
