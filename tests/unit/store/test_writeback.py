"""Files that reach the disk while they are written."""

import errno
import os
import random
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from store_artifacts import WEIGHT, opener

from modelpack.oci.manifest import Descriptor
from modelpack.oci.target import BlobStream, RangedBlob
from modelpack.store import Store
from modelpack.writeback import Writeback


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


class FailingDisk:
    """An operating system whose next sync of a regular file fails, once, and which keeps showing what it dropped."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._sync = os.fsync
        self.is_broken = True
        monkeypatch.setattr(os, "fsync", self.sync)

    def sync(self, file: int) -> None:
        if self.is_broken and stat.S_ISREG(os.fstat(file).st_mode):
            self.is_broken = False
            raise OSError(errno.EIO, "Input/output error")
        self._sync(file)


def test_what_a_sync_failed_for_is_gone_also_when_the_work_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    FailingDisk(monkeypatch)
    with path.open("r+b") as file, pytest.raises(KeyboardInterrupt):
        write(file.fileno(), then=KeyboardInterrupt)
    assert path.read_bytes() == b""


def test_of_two_errors_of_the_disk_the_one_that_is_told_once_is_told(unsyncable: int) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        write(unsyncable, then=BrokenPipeError)


def test_a_system_without_another_thread_syncs_at_the_end(unsyncable: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    def next_descriptor() -> int:
        descriptor = os.dup(unsyncable)
        os.close(descriptor)
        return descriptor

    before = next_descriptor()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        write(unsyncable)
    assert next_descriptor() == before


@pytest.mark.parametrize("size", [100, 40 << 20], ids=["one stream", "segments"])
def test_what_the_disk_did_not_keep_is_fetched_again(store: Store, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    content = random.Random(size).randbytes(size)
    blob = Descriptor.of(content, WEIGHT)
    asked: list[int] = []

    def open_stream(offset: int) -> BlobStream:
        asked.append(offset)
        return opener(content, chunk=1 << 20)(offset)

    def open_range(start: int, stop: int) -> BlobStream:
        asked.append(start)
        return opener(content[:stop], chunk=1 << 20)(start)

    source = RangedBlob(open_stream, open_range, 2)
    disk = FailingDisk(monkeypatch)
    with pytest.raises(OSError, match="Input/output"):
        store.repository("tiny").write_blob(blob, source)
    assert not disk.is_broken
    assert not store.repository("tiny").has_blob(blob)

    asked.clear()
    store.repository("tiny").write_blob(blob, source)

    assert min(asked) == 0
    store.rehash(blob)
