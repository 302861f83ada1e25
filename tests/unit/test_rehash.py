"""Bytes that are read again while somebody else decides whether they matter."""

import itertools
import sys
import threading
import time

import pytest
from fakes.artifacts import put_cncf_model

from modelpack.errors import DigestMismatchError, NotFoundError
from modelpack.oci.manifest import image_index
from modelpack.oci.reference import Reference
from modelpack.rehash import BytesReport, Rehash
from modelpack.store import Store

NAME = Reference.parse("registry.example.com/team/tiny:v1")
WEIGHTS = b"GGUF" + bytes(16 << 20)


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "store")


@pytest.fixture
def manifest(store):
    return put_cncf_model(store, str(NAME), WEIGHTS)[0]


class Watched:
    """A Progress whose steps take ``pause`` seconds for each piece, and call ``on_begin`` as they begin."""

    def __init__(self, pause=0.0, on_begin=lambda: None):
        self.read = 0
        self.failed = []
        self.has_begun = threading.Event()
        self._pause, self._on_begin = pause, on_begin

    def step(self, label, *, total=None, unit="B"):
        return self

    def advance(self, amount):
        self.read += amount
        self.has_begun.set()
        time.sleep(self._pause)

    def __enter__(self):
        self._on_begin()
        return self

    def __exit__(self, kind, error, trace):
        self.failed.append(kind is not None)


def rehash(store, manifest, progress):
    return Rehash(store, NAME, manifest.descriptor, progress=progress)


def test_it_reads_all_that_the_manifest_names_without_being_asked_again(store, manifest):
    watched = Watched()
    with rehash(store, manifest, watched) as reading:
        report = reading.report()

    size = sum(blob.size for blob in manifest.blobs)
    assert report == BytesReport(len(manifest.blobs) + 1, size + manifest.descriptor.size)
    assert watched.read == size
    assert not any(watched.failed)


def test_whoever_leaves_early_waits_for_no_hash(store, manifest):
    watched = Watched(pause=0.01)
    with rehash(store, manifest, watched):
        assert watched.has_begun.wait(10)

    assert watched.read < len(WEIGHTS) // 2
    assert any(watched.failed)


def test_two_blobs_are_read_at_a_time(store, manifest):
    together = threading.Barrier(2, timeout=10)
    begun = itertools.count()

    def begin():
        if next(begun) < 2:
            together.wait()

    with rehash(store, manifest, Watched(on_begin=begin)) as reading:
        assert reading.report().blobs == len(manifest.blobs) + 1


@pytest.mark.parametrize("position", [0, -1])
def test_a_changed_blob_is_told_when_the_report_is_asked_for(store, manifest, position):
    path = store.blob_path(manifest.layers[position])
    content = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    with rehash(store, manifest, Watched()) as reading, pytest.raises(DigestMismatchError):
        reading.report()


def test_a_blob_that_is_gone_is_told(store, manifest):
    store.blob_path(manifest.layers[0]).unlink()
    with rehash(store, manifest, Watched()) as reading, pytest.raises(NotFoundError):
        reading.report()


def test_an_index_is_read_with_all_that_it_lists(store, manifest):
    inner = image_index([manifest.descriptor])
    repository = store.repository(NAME.name)
    repository.put_manifest(inner)
    index = image_index([inner.descriptor, manifest.descriptor])
    repository.put_manifest(index, tag="all")

    with rehash(store, index, Watched()) as reading:
        assert reading.report().blobs == len(manifest.blobs) + 3
    store.blob_path(manifest.layers[0]).unlink()
    with rehash(store, index, Watched()) as reading, pytest.raises(NotFoundError):
        reading.report()
    store.blob_path(manifest.descriptor).unlink()
    with pytest.raises(NotFoundError):
        rehash(store, index, Watched())


def test_the_interpreter_is_left_as_it_was(store, manifest):
    before = sys.getswitchinterval()
    with rehash(store, manifest, Watched()):
        pass
    assert sys.getswitchinterval() == before
