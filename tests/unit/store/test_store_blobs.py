"""How blobs come in: hashed, resumed, whole or not at all."""

import contextlib
import errno
import os
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_artifacts import WEIGHT, opener

from modelpack.errors import (
    DigestMismatchError,
    InsufficientDiskError,
    InvalidInputError,
    NotFoundError,
)
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import Descriptor
from modelpack.oci.target import read_whole
from modelpack.store import Store

CONTENT = bytes(range(256)) * 40
BLOB = Descriptor.of(CONTENT, WEIGHT)


def partials(store: Store) -> list[str]:
    return [path.name for path in store.partials.iterdir()]


def breaking(content: bytes, *, after: int):
    @contextlib.contextmanager
    def open_blob(offset):
        def chunks():
            yield content[offset:after]
            raise ConnectionError("the wire was cut")

        yield chunks()

    return open_blob


def test_a_blob_can_be_read_back_from_any_offset(store: Store) -> None:
    repository = store.repository("me/tiny")
    heard: list[int] = []
    repository.write_blob(BLOB, opener(CONTENT), on_bytes=heard.append)

    assert read_whole(repository, BLOB, limit=1 << 20) == CONTENT
    with repository.read_blob(BLOB, offset=10000) as chunks:
        assert b"".join(chunks) == CONTENT[10000:]
    assert sum(heard) == len(CONTENT)
    assert partials(store) == []


def test_an_empty_blob_is_a_blob(store: Store) -> None:
    empty = Descriptor.of(b"", WEIGHT)
    store.repository("tiny").write_blob(empty, opener(b""))
    assert read_whole(store.repository("tiny"), empty, limit=0) == b""


@pytest.mark.parametrize("wrong", [CONTENT[:-1] + b"x", CONTENT + b"x", CONTENT[:-1], b""])
def test_content_that_is_not_what_was_promised_leaves_nothing(store: Store, wrong: bytes) -> None:
    repository = store.repository("tiny")
    with pytest.raises(DigestMismatchError):
        repository.write_blob(BLOB, opener(wrong))
    assert not repository.has_blob(BLOB)
    assert partials(store) == []


def test_an_endless_blob_is_cut_off_at_the_promised_size(store: Store) -> None:
    taken = 0

    @contextlib.contextmanager
    def open_blob(offset):
        def chunks():
            nonlocal taken
            while taken < 1_000_000:  # Endless enough, and a mistake here does not fill a disk.
                taken += 1000
                yield b"x" * 1000

        yield chunks()

    with pytest.raises(DigestMismatchError, match="longer than"):
        store.repository("tiny").write_blob(BLOB, open_blob)
    assert taken <= len(CONTENT) + 1000


def test_a_broken_transfer_resumes_where_it_stopped(store: Store) -> None:
    repository = store.repository("tiny")
    with pytest.raises(ConnectionError):
        repository.write_blob(BLOB, breaking(CONTENT, after=7000))
    assert not repository.has_blob(BLOB)

    offsets: list[int] = []
    heard: list[int] = []

    def open_blob(offset):
        offsets.append(offset)
        return opener(CONTENT)(offset)

    Store.open(store.root).repository("tiny").write_blob(BLOB, open_blob, on_bytes=heard.append)

    assert offsets == [7000]
    assert sum(heard) == len(CONTENT)
    assert read_whole(repository, BLOB, limit=1 << 20) == CONTENT


def test_a_damaged_partial_blob_is_fetched_again_and_counted_once(store: Store) -> None:
    (store.partials / BLOB.digest.hex).write_bytes(b"\0" * 5000)
    offsets: list[int] = []
    heard: list[int] = []

    def open_blob(offset):
        offsets.append(offset)
        return opener(CONTENT)(offset)

    store.repository("tiny").write_blob(BLOB, open_blob, on_bytes=heard.append)

    assert offsets == [5000, 0]
    assert sum(heard) == len(CONTENT)
    assert read_whole(store.repository("tiny"), BLOB, limit=1 << 20) == CONTENT


def test_a_partial_blob_that_is_too_long_is_started_over(store: Store) -> None:
    (store.partials / BLOB.digest.hex).write_bytes(CONTENT + b"more")
    store.repository("tiny").write_blob(BLOB, opener(CONTENT))
    assert read_whole(store.repository("tiny"), BLOB, limit=1 << 20) == CONTENT


def test_a_complete_partial_blob_asks_the_source_for_nothing(store: Store) -> None:
    (store.partials / BLOB.digest.hex).write_bytes(CONTENT)

    def open_blob(offset):
        raise AssertionError("the source was asked")

    store.repository("tiny").write_blob(BLOB, open_blob)
    assert store.repository("tiny").has_blob(BLOB)


def test_a_blob_larger_than_the_disk_is_refused_before_it_is_fetched(store: Store) -> None:
    huge = Descriptor(WEIGHT, Digest.of(b"huge"), 1 << 50)

    def open_blob(offset):
        raise AssertionError("the source was asked")

    with pytest.raises(InsufficientDiskError, match="are free"):
        store.repository("tiny").write_blob(huge, open_blob)


def test_a_full_disk_keeps_what_has_arrived(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    # The far end here is the operating system: a real full disk needs root.
    write = os.write

    def full(file: int, content: bytes) -> int:
        if len(content) == 1000 and os.fstat(file).st_size >= 5000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, content)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(InsufficientDiskError, match="no space left"):
        store.repository("tiny").write_blob(BLOB, opener(CONTENT))
    monkeypatch.undo()

    assert (store.partials / BLOB.digest.hex).stat().st_size == 5000
    store.repository("tiny").write_blob(BLOB, opener(CONTENT))
    assert store.repository("tiny").has_blob(BLOB)


def test_a_blob_of_the_wrong_size_on_disk_is_replaced(store: Store) -> None:
    store.blobs.path(BLOB.digest).write_bytes(b"short")
    repository = store.repository("tiny")
    assert not repository.has_blob(BLOB)
    repository.write_blob(BLOB, opener(CONTENT))
    store.rehash(BLOB)


def test_rehash_finds_one_flipped_bit(store: Store) -> None:
    store.repository("tiny").write_blob(BLOB, opener(CONTENT))
    store.rehash(BLOB)

    path = store.blob_path(BLOB)
    path.chmod(0o600)
    path.write_bytes(CONTENT[:100] + bytes([CONTENT[100] ^ 1]) + CONTENT[101:])

    with pytest.raises(DigestMismatchError):
        store.rehash(BLOB)


def test_a_symbolic_link_in_the_place_of_a_blob_is_not_followed(store: Store, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(CONTENT)
    store.blobs.path(BLOB.digest).symlink_to(secret)

    assert not store.repository("tiny").has_blob(BLOB)
    with pytest.raises(NotFoundError):
        store.blob_path(BLOB)
    with pytest.raises(Exception, match="cannot be read"), store.repository("tiny").read_blob(BLOB) as chunks:
        list(chunks)


def test_an_imported_file_is_copied_and_the_original_may_change(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(CONTENT)
    descriptor = store.import_file(path, WEIGHT)
    path.write_bytes(b"changed")

    assert descriptor == BLOB
    store.rehash(BLOB)
    assert stat.S_IMODE(store.blob_path(BLOB).stat().st_mode) == 0o444
    assert partials(store) == []


def test_an_adopted_file_moves_without_a_copy(store: Store) -> None:
    with store.workspace() as folder:
        path = folder / "model.gguf"
        path.write_bytes(CONTENT)
        inode = path.stat().st_ino
        descriptor = store.import_file(path, WEIGHT, adopt=True)
        assert not path.exists()
        assert store.blob_path(descriptor).stat().st_ino == inode

        again = folder / "again.gguf"
        again.write_bytes(CONTENT)
        assert store.import_file(again, WEIGHT, adopt=True) == descriptor
        assert not again.exists()
    assert partials(store) == []


def test_an_adopted_file_is_what_its_writer_hashed_and_a_copy_is_what_it_holds(store: Store, tmp_path: Path) -> None:
    with store.workspace() as folder:
        (folder / "model.gguf").write_bytes(CONTENT)
        read: list[int] = []
        adopted = store.import_file(folder / "model.gguf", WEIGHT, adopt=True, digest=BLOB.digest, on_bytes=read.append)
    assert (adopted, read) == (BLOB, [])
    store.rehash(BLOB)

    (tmp_path / "other").write_bytes(b"other")
    assert store.import_file(tmp_path / "other", WEIGHT, digest=BLOB.digest) == Descriptor.of(b"other", WEIGHT)


def test_what_is_imported_must_be_a_regular_file(store: Store, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/hostname")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NotFoundError):
        store.import_file(tmp_path / "absent", WEIGHT)
    for name in ("link", "pipe", "."):
        with pytest.raises(InvalidInputError):
            store.import_file(tmp_path / name, WEIGHT)
    assert partials(store) == []


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=5000), cut=st.integers(0, 5000), chunk=st.integers(1, 5000))
def test_any_content_survives_any_interruption(store: Store, content: bytes, cut: int, chunk: int) -> None:
    blob = Descriptor.of(content, WEIGHT)
    store.blobs.path(blob.digest).unlink(missing_ok=True)
    repository = store.repository("tiny")
    if cut < len(content):
        with pytest.raises(ConnectionError):
            repository.write_blob(blob, breaking(content, after=cut))
    repository.write_blob(blob, opener(content, chunk=chunk))
    assert read_whole(repository, blob, limit=5000) == content
