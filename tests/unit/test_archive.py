"""Layouts in tar files: what we write, what others wrote, and what nobody should have written."""

import hashlib
import json
import os
import tarfile
from pathlib import Path

import pytest
from fakes.artifacts import put_cncf_model
from fakes.tars import entry, make_tar

from modelpack.archive import Archive, ArchiveBuilder
from modelpack.errors import (
    CheckFailedError,
    DigestMismatchError,
    InsufficientDiskError,
    InvalidContentError,
    InvalidInputError,
    NotFoundError,
)
from modelpack.mirror import mirror
from modelpack.oci.manifest import EMPTY_CONFIG, EMPTY_JSON, Descriptor, image_index, image_manifest
from modelpack.oci.reference import Reference
from modelpack.oci.target import read_whole, write_whole
from modelpack.store import Store, create_layout, open_layout
from modelpack.transfer import copy

WEIGHTS = b"GGUF" + bytes(range(256)) * 4000
NAME = "registry.example.com/team/tiny"
LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


@pytest.fixture
def artifact(store):
    """A model with a referrer, a referrer of that, and a legacy signature tag."""
    manifest, _ = put_cncf_model(store, f"{NAME}:v1", WEIGHTS)
    repository = store.repository(NAME)
    referrer = put_small(repository, b"signature", subject=manifest.descriptor)
    put_small(repository, b"countersignature", subject=referrer.descriptor)
    put_small(repository, b"legacy", tag=f"sha256-{manifest.digest.hex}.sig")
    return manifest


def put_small(target, content, *, subject=None, tag=None):
    write_whole(target, EMPTY_JSON, EMPTY_CONFIG.media_type)
    layer = write_whole(target, content, "application/octet-stream")
    manifest = image_manifest(config=EMPTY_CONFIG, layers=[layer], artifact_type="application/x.test", subject=subject)
    target.put_manifest(manifest, tag=tag)
    return manifest


def save(store, path, *names):
    builder = ArchiveBuilder()
    for name in names:
        reference = Reference.parse(name)
        source = store.repository(reference.name)
        mirror(source, builder.repository(reference.name), source.resolve(reference.selector), tag=reference.tag)
    return builder.write(path)


def test_all_that_refers_to_an_artifact_travels_in_a_bundle(store, artifact, tmp_path):
    size = save(store, tmp_path / "b.tar", f"{NAME}:v1")

    assert size == (tmp_path / "b.tar").stat().st_size
    archive = Archive.open(tmp_path / "b.tar")
    assert archive.references == [Reference.parse(f"{NAME}:v1")]
    source = archive.repository(NAME)
    assert source.fetch_manifest(source.resolve("v1")).raw == artifact.raw
    assert source.list_tags() == [f"sha256-{artifact.digest.hex}.sig", "v1"]
    (referrer,) = source.list_referrers(artifact.digest)
    assert len(source.list_referrers(referrer.digest)) == 1
    with source.read_blob(artifact.layers[0], offset=1000) as chunks:
        assert b"".join(chunks) == WEIGHTS[1000:]
    loaded = Store.open(tmp_path / "loaded")
    result = mirror(source, loaded.repository(NAME), source.resolve("v1"), tag="v1")
    assert result.referrers_copied == 3


def test_the_order_in_which_things_were_stored_does_not_show_in_the_bytes(store, artifact, tmp_path):
    put_cncf_model(store, "other:v1", b"GGUF other")
    other = Store.open(tmp_path / "other")
    put_cncf_model(other, "other:v1", b"GGUF other")
    source = store.repository(NAME)
    copy(source, other.repository(NAME), artifact.descriptor, tag="v1")
    for path in other.blobs.directory.iterdir():
        os.utime(path, (1, 1))

    save(store, tmp_path / "a.tar", "other:v1", f"{NAME}:v1")
    save(other, tmp_path / "b.tar", f"{NAME}:v1", "other:v1")

    assert digest_of(tmp_path / "a.tar") == digest_of(tmp_path / "b.tar")


def test_an_index_and_its_manifests_have_one_entry_and_are_all_found(store, tmp_path):
    manifest, _ = put_cncf_model(store, "mine:v1", WEIGHTS)
    repository = store.repository("mine")
    index = image_index([manifest.descriptor])
    repository.put_manifest(index, tag="index")
    builder = ArchiveBuilder()
    copy(repository, builder.repository(), index.descriptor, tag="index")
    builder.write(tmp_path / "a.tar")
    copy(repository, create_layout(tmp_path / "layout"), index.descriptor, tag="index")

    for source in (Archive.open(tmp_path / "a.tar").repository(), open_layout(tmp_path / "layout")):
        assert [entry.name for entry in source.index.entries] == ["index"]
        child = source.resolve(str(manifest.digest))
        assert source.fetch_manifest(child).raw == manifest.raw


def test_a_layout_keeps_tags_and_referrers_of_several_copies(store, artifact, tmp_path):
    layout = create_layout(tmp_path / "layout")
    second, _ = put_cncf_model(store, "other:v2", b"GGUF other")
    for _ in range(2):
        result = copy(store.repository(NAME), layout, artifact.descriptor, tag="v1")
    copy(store.repository("other"), create_layout(tmp_path / "layout"), second.descriptor, tag="v2")

    assert result.blobs_copied == 0
    source = open_layout(tmp_path / "layout")
    assert source.list_tags() == [f"sha256-{artifact.digest.hex}.sig", "v1", "v2"]
    assert len(source.list_referrers(artifact.digest)) == 1
    assert read_whole(source, artifact.layers[0], limit=1 << 30) == WEIGHTS
    with pytest.raises(InvalidContentError, match="not in"):
        layout.put_manifest(image_manifest(config=Descriptor.of(b"x", "a/b"), layers=[]))


def test_a_folder_that_holds_something_else_does_not_become_a_layout(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home/letter").write_text("dear")
    with pytest.raises(InvalidInputError, match="not an empty folder"):
        create_layout(tmp_path / "home")


def test_a_source_that_gives_other_bytes_leaves_no_archive_and_the_old_one(store, artifact, tmp_path):
    save(store, tmp_path / "a.tar", f"{NAME}:v1")
    before = digest_of(tmp_path / "a.tar")
    blob = store.blobs.path(artifact.layers[0].digest)
    blob.chmod(0o600)
    blob.write_bytes(b"EVIL" + WEIGHTS[4:])

    with pytest.raises(DigestMismatchError):
        save(store, tmp_path / "a.tar", f"{NAME}:v1")

    assert digest_of(tmp_path / "a.tar") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "store"]


def test_an_archive_that_does_not_fit_is_not_begun(tmp_path):
    builder = ArchiveBuilder()
    target = builder.repository()
    huge = Descriptor("a/b", Descriptor.of(b"x", "a/b").digest, 1 << 50)
    target.write_blob(huge, lambda offset: pytest.fail("nothing should be read"))
    config = Descriptor.of(EMPTY_JSON, EMPTY_CONFIG.media_type)
    target.write_blob(config, lambda offset: pytest.fail("nothing should be read"))
    target.put_manifest(image_manifest(config=config, layers=[huge]), tag="v1")

    with pytest.raises(InsufficientDiskError):
        builder.write(tmp_path / "a.tar")
    assert list(tmp_path.iterdir()) == []


class Forgetful:
    """A destination that stores everything and lists no referrers, as some registries do."""

    def __init__(self, target):
        self._target = target

    def __getattr__(self, name):
        return getattr(self._target, name)

    def list_referrers(self, subject):
        return []


def test_a_copy_whose_referrers_the_destination_does_not_list_is_a_failure(store, artifact, tmp_path):
    target = Forgetful(Store.open(tmp_path / "far").repository("far"))

    with pytest.raises(CheckFailedError, match="lacks 1 that refer to it"):
        mirror(store.repository(NAME), target, artifact.descriptor, tag="v1")


# What nobody should have written


def good_entries():
    manifest = image_manifest(config=EMPTY_CONFIG, layers=[], artifact_type="application/x.test")
    named = {**manifest.descriptor.to_json(), "annotations": {"org.opencontainers.image.ref.name": "v1"}}
    index = json.dumps({"schemaVersion": 2, "manifests": [named]}).encode()
    return {
        "oci-layout": LAYOUT,
        "index.json": index,
        f"blobs/sha256/{manifest.digest.hex}": manifest.raw,
        f"blobs/sha256/{EMPTY_CONFIG.digest.hex}": EMPTY_JSON,
    }


def write_archive(path, *more, entries=None):
    members = [entry(name, content) for name, content in (good_entries() if entries is None else entries).items()]
    path.write_bytes(make_tar(*members, *more))
    return path


def test_what_others_write_is_read(tmp_path):
    folders = [entry("blobs", type=tarfile.DIRTYPE), entry("manifest.json", b"[]")]
    archive = Archive.open(write_archive(tmp_path / "a.tar", *folders))

    source = archive.repository()
    assert source.resolve("latest") == source.resolve("v1"), "a lone manifest is the latest"
    assert archive.references == [], "a bare tag is no full reference"


@pytest.mark.parametrize(
    ("what", "more"),
    [
        ("unsafe path", entry("../../home/me/.bashrc", b"evil")),
        ("unsafe path", entry("/etc/cron.d/evil", b"evil")),
        ("unsafe path", entry("blobs\\sha256\\x", b"evil")),
        (
            "neither a file nor a folder",
            entry("blobs/sha256/" + "a" * 64, type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        ),
        ("neither a file nor a folder", entry("link", type=tarfile.LNKTYPE, linkname="index.json")),
        ("neither a file nor a folder", entry("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3)),
        ("neither a file nor a folder", entry("fifo", type=tarfile.FIFOTYPE)),
        ("twice", entry("index.json", b"{}")),
        ("twice", entry("./index.json", b"{}")),
        ("twice", entry("blobs//sha256/" + EMPTY_CONFIG.digest.hex, b"{}")),
    ],
)
def test_a_hostile_entry_is_refused(tmp_path, what, more):
    with pytest.raises(InvalidContentError, match=what):
        Archive.open(write_archive(tmp_path / "a.tar", more))


def test_an_archive_that_is_cut_off_is_refused(tmp_path):
    path = write_archive(tmp_path / "a.tar")
    whole = path.read_bytes()
    for size in (2000, 600, 100):
        path.write_bytes(whole[:size])
        with pytest.raises(InvalidContentError, match="ends too early"):
            Archive.open(path)


def test_a_size_that_the_file_does_not_have_is_refused(tmp_path):
    member, _ = entry("blobs/sha256/" + "a" * 64)
    member.size = 1 << 40
    whole = make_tar(*(entry(name, content) for name, content in good_entries().items())).rstrip(b"\0")
    whole += bytes(-len(whole) % 512) + member.tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "a.tar").write_bytes(whole + b"x" * 4096)

    with pytest.raises(InvalidContentError, match="ends too early"):
        Archive.open(tmp_path / "a.tar")


def test_a_million_empty_files_are_refused(tmp_path, monkeypatch):
    block = entry("blobs/sha256/f")[0].tobuf(tarfile.USTAR_FORMAT)
    (tmp_path / "a.tar").write_bytes(b"".join(_numbered(block, number) for number in range(100_002)))

    with pytest.raises(InvalidContentError, match="more than 100000 entries"):
        Archive.open(tmp_path / "a.tar")


def _numbered(block: bytes, number: int) -> bytes:
    header = bytearray(block)
    header[0:20] = f"f{number}".encode().ljust(20, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@pytest.mark.parametrize("name", ["oci-layout", "index.json"])
def test_an_archive_without_its_layout_is_refused(tmp_path, name):
    entries = good_entries()
    del entries[name]
    with pytest.raises(InvalidContentError, match="no OCI image layout"):
        Archive.open(write_archive(tmp_path / "a.tar", entries=entries))


def test_a_layout_of_another_version_and_an_endless_one_are_refused(tmp_path):
    with pytest.raises(InvalidContentError, match=r"version '2\.0\.0'"):
        Archive.open(
            write_archive(
                tmp_path / "a.tar", entries={**good_entries(), "oci-layout": b'{"imageLayoutVersion":"2.0.0"}'}
            )
        )
    with pytest.raises(InvalidContentError, match="more than 4096"):
        Archive.open(write_archive(tmp_path / "a.tar", entries={**good_entries(), "oci-layout": b" " * 5000}))


def test_a_packed_archive_says_so(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(make_tar(entry("oci-layout", LAYOUT), mode="w:gz"))
    with pytest.raises(InvalidInputError, match="packed with gzip"):
        Archive.open(tmp_path / "a.tar.gz")


def test_what_is_no_archive_and_what_is_not_there_are_told_apart(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"x" * 2000)
    with pytest.raises(InvalidContentError, match="not a tar archive"):
        Archive.open(tmp_path / "a.txt")
    with pytest.raises(NotFoundError):
        Archive.open(tmp_path / "none.tar")


def test_a_blob_that_is_not_what_its_name_says_never_reaches_the_store(tmp_path):
    entries = good_entries()
    entries[f"blobs/sha256/{EMPTY_CONFIG.digest.hex}"] = b"[]"
    source = Archive.open(write_archive(tmp_path / "a.tar", entries=entries)).repository()
    store = Store.open(tmp_path / "store")

    with pytest.raises(DigestMismatchError):
        copy(source, store.repository("mine"), source.resolve("v1"), tag="v1")

    assert store.list() == []
    assert list(store.blobs.all()) == []


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
