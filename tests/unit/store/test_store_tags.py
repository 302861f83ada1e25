"""What the store says it holds, and how people name it."""

import json
from pathlib import Path

import pytest
from store_artifacts import opener, put_model, tags

from modelpack.errors import (
    AccessDeniedError,
    InvalidContentError,
    InvalidInputError,
    MalformedReferenceError,
    NotFoundError,
)
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import EMPTY_CONFIG, Descriptor, Manifest, image_index, image_manifest
from modelpack.oci.reference import Reference
from modelpack.store import Store, open_layout

SHORT = Reference.parse


def test_a_new_store_is_an_empty_image_layout_for_its_owner_alone(tmp_path: Path) -> None:
    root = tmp_path / "deep" / "store"
    store = Store.open(root)

    assert json.loads((root / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    assert json.loads((root / "index.json").read_text())["manifests"] == []
    assert root.stat().st_mode & 0o777 == 0o700
    assert store.list() == []
    assert Store.open(root).list() == []


def test_a_folder_that_holds_something_else_is_not_turned_into_a_store(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InvalidInputError, match="thesis"):
        Store.open(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_store_that_everyone_may_write_into_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "store"
    root.mkdir()
    root.chmod(0o777)
    with pytest.raises(AccessDeniedError):
        Store.open(root)


def test_a_store_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "store"
    Store.open(root)
    monkeypatch.setattr("os.geteuid", lambda: 4_000_000)
    with pytest.raises(AccessDeniedError, match="another user"):
        Store.open(root)


def test_a_file_in_place_of_the_store_and_a_layout_of_another_version_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidInputError, match="not a folder"):
        Store.open(tmp_path / "file")
    root = tmp_path / "store"
    Store.open(root)
    (root / "oci-layout").write_text('{"imageLayoutVersion":"2.0.0"}')
    with pytest.raises(InvalidContentError, match="version"):
        Store.open(root)


def test_a_tag_names_its_manifest_and_only_in_its_own_repository(store: Store) -> None:
    manifest = put_model(store.repository("127.0.0.1:5000/me/tiny"), b"weights", tag="v1")

    repository = store.repository("127.0.0.1:5000/me/tiny")
    descriptor = repository.resolve("v1")
    assert descriptor.digest == manifest.digest
    assert repository.resolve(str(manifest.digest)) == descriptor
    assert repository.fetch_manifest(descriptor).raw == manifest.raw
    assert repository.list_tags() == ["v1"]
    assert tags(store) == ["127.0.0.1:5000/me/tiny:v1"]
    for name, selector in (("me/tiny", "v1"), ("me/tiny", str(manifest.digest)), ("127.0.0.1:5000/me/tiny", "v2")):
        with pytest.raises(NotFoundError):
            store.repository(name).resolve(selector)


def test_a_moved_tag_leaves_the_old_manifest_under_its_digest(store: Store) -> None:
    repository = store.repository("tiny")
    old = put_model(repository, b"old", tag="v1")
    new = put_model(repository, b"new", tag="v1")

    assert repository.resolve("v1").digest == new.digest
    assert repository.resolve(str(old.digest)).digest == old.digest
    names = [entry.name for entry in store.read_index().entries]
    assert sorted(names) == sorted(["tiny:v1", f"tiny@{old.digest}"])


def test_putting_a_manifest_twice_changes_nothing(store: Store) -> None:
    manifest = put_model(store.repository("tiny"), b"weights", tag="v1")
    before = (store.root / "index.json").read_bytes()
    store.repository("tiny").put_manifest(manifest, tag="v1")
    store.repository("tiny").put_manifest(manifest)
    assert (store.root / "index.json").read_bytes() == before


def test_a_manifest_whose_blobs_are_missing_is_refused(store: Store) -> None:
    layer = Descriptor.of(b"never written", "application/octet-stream")
    store.write_small(b"{}", EMPTY_CONFIG.media_type)
    with pytest.raises(InvalidContentError, match=layer.digest.hex):
        store.repository("tiny").put_manifest(image_manifest(config=EMPTY_CONFIG, layers=[layer]), tag="v1")
    with pytest.raises(InvalidContentError, match=layer.digest.hex):
        store.repository("tiny").put_manifest(image_index([layer]), tag="v1")
    assert store.list() == []


def test_a_malformed_tag_is_refused(store: Store) -> None:
    with pytest.raises(MalformedReferenceError):
        put_model(store.repository("tiny"), b"weights", tag="../../etc")
    with pytest.raises(MalformedReferenceError):
        store.repository("tiny:v1")


def test_referrers_are_listed_for_their_subject_in_their_repository(store: Store) -> None:
    repository = store.repository("tiny")
    model = put_model(repository, b"weights", tag="v1")
    report = put_model(repository, b"report", subject=model.descriptor)
    put_model(repository, b"of another", subject=report.descriptor)

    assert repository.list_referrers(model.digest) == [report.descriptor]
    assert repository.list_referrers(Digest.of(b"unknown")) == []
    assert store.repository("other").list_referrers(model.digest) == []


def test_short_names_and_digests_find_what_is_there(store: Store) -> None:
    model = put_model(store.repository("ghcr.io/me/tiny"), b"weights", tag="latest")
    q8 = put_model(store.repository("ghcr.io/me/tiny"), b"q8", tag="q8_0")

    assert str(store.find(SHORT("tiny")).reference) == "ghcr.io/me/tiny:latest"
    assert store.find(SHORT("me/tiny:q8_0")).descriptor.digest == q8.digest
    assert store.find(SHORT(f"tiny@{q8.digest}")).reference.name == "ghcr.io/me/tiny"
    by_id = store.find(SHORT(model.digest.hex[:12]))
    assert by_id.reference.digest == model.digest
    for absent in ("iny", "tiny:v9", "ghcr.io/you/tiny", "abcdef012345"):
        with pytest.raises(NotFoundError):
            store.find(SHORT(absent))


def test_a_digest_wins_over_a_tag(store: Store) -> None:
    old = put_model(store.repository("tiny"), b"old", tag="v1")
    put_model(store.repository("tiny"), b"new", tag="v1")
    assert store.find(SHORT(f"tiny:v1@{old.digest}")).descriptor.digest == old.digest


def test_an_ambiguous_short_name_is_refused_unless_all_mean_the_same(store: Store) -> None:
    put_model(store.repository("a.io/tiny"), b"weights", tag="v1")
    put_model(store.repository("b.io/tiny"), b"weights", tag="v1")
    assert str(store.find(SHORT("tiny:v1")).reference) == "a.io/tiny:v1"

    put_model(store.repository("b.io/tiny"), b"other", tag="v1")
    with pytest.raises(InvalidInputError, match=r"a\.io/tiny:v1, b\.io/tiny:v1"):
        store.find(SHORT("tiny:v1"))


def test_a_new_name_brings_the_signatures_along(store: Store) -> None:
    origin = store.repository("tiny")
    model = put_model(origin, b"weights", tag="v1")
    signature = put_model(origin, b"signature", tag=f"sha256-{model.digest.hex}.sig")
    report = put_model(origin, b"report", subject=model.descriptor)

    stored = store.tag(SHORT("tiny:v1"), SHORT("ghcr.io/me/tiny"))

    assert str(stored.reference) == "ghcr.io/me/tiny:latest"
    assert tags(store) == ["ghcr.io/me/tiny:latest", "tiny:v1"]
    target = store.repository("ghcr.io/me/tiny")
    assert target.list_referrers(model.digest) == [report.descriptor]
    assert target.resolve(f"sha256-{model.digest.hex}.sig").digest == signature.digest


def test_receipts_are_kept_and_broken_ones_count_as_none(store: Store) -> None:
    digest = Digest.of(b"manifest")
    assert store.receipt(digest) is None
    store.put_receipt(digest, {"rule": "*", "signers": ["müller"]})
    assert store.receipt(digest) == {"rule": "*", "signers": ["müller"]}
    (store.root / "receipts" / f"{digest.hex}.json").write_bytes(b'{"rule":')
    assert store.receipt(digest) is None


def test_a_broken_index_is_an_error_and_is_left_alone(store: Store) -> None:
    put_model(store.repository("tiny"), b"weights", tag="v1")
    (store.root / "index.json").write_bytes(b'{"manifests": [')
    with pytest.raises(InvalidContentError, match=r"index\.json"):
        store.list()
    with pytest.raises(InvalidContentError):
        put_model(store.repository("tiny"), b"more", tag="v2")
    assert (store.root / "index.json").read_bytes() == b'{"manifests": ['


def test_entries_of_other_tools_survive_our_changes(store: Store) -> None:
    foreign = put_model(store.repository("tiny"), b"weights", tag="v1")
    index = json.loads((store.root / "index.json").read_text())
    index["manifests"][0]["annotations"] = {"org.opencontainers.image.ref.name": "Not A Reference", "a": "b"}
    (store.root / "index.json").write_text(json.dumps(index))

    put_model(store.repository("other"), b"more", tag="v1")

    first = json.loads((store.root / "index.json").read_text())["manifests"][0]
    assert first["digest"] == str(foreign.digest)
    assert first["annotations"] == {"org.opencontainers.image.ref.name": "Not A Reference", "a": "b"}
    assert tags(store) == ["other:v1"]


def test_a_foreign_layout_is_one_repository_with_bare_tags(store: Store) -> None:
    model = put_model(store.repository("tiny"), b"weights", tag="v1")
    child = put_model(store.repository("tiny"), b"child")
    parent = image_index([Descriptor(child.media_type, child.digest, len(child.raw))])
    store.repository("tiny").put_manifest(parent, tag="all")
    index = json.loads((store.root / "index.json").read_text())
    index["manifests"] = [
        item | {"annotations": {"org.opencontainers.image.ref.name": item["annotations"][key].removeprefix("tiny:")}}
        for item in index["manifests"]
        for key in ["org.opencontainers.image.ref.name"]
        if "@" not in item["annotations"][key]
    ]
    (store.root / "index.json").write_text(json.dumps(index))

    layout = open_layout(store.root)
    assert layout.list_tags() == ["all", "v1"]
    assert layout.fetch_manifest(layout.resolve("v1")).raw == model.raw
    assert layout.resolve(str(child.digest)).digest == child.digest
    with pytest.raises(NotFoundError):
        layout.resolve("latest")


def test_latest_names_the_only_manifest_of_a_layout(store: Store, tmp_path: Path) -> None:
    model = put_model(store.repository("tiny"), b"weights", tag="v1")
    assert open_layout(store.root).resolve("latest").digest == model.digest
    with pytest.raises(NotFoundError):
        open_layout(tmp_path / "absent")


def test_a_manifest_that_was_changed_on_disk_is_not_used(store: Store) -> None:
    manifest: Manifest = put_model(store.repository("tiny"), b"weights", tag="v1")
    path = store.blob_path(manifest.digest)
    path.chmod(0o600)
    path.write_bytes(manifest.raw.replace(b"test", b"evil"))
    descriptor = store.repository("tiny").resolve("v1")
    with pytest.raises(Exception, match="has the digest"):
        store.repository("tiny").fetch_manifest(descriptor)


def test_has_blob_and_write_blob_agree(store: Store) -> None:
    blob = Descriptor.of(b"weights", "application/octet-stream")
    repository = store.repository("tiny")
    assert not repository.has_blob(blob)
    repository.write_blob(blob, opener(b"weights"))
    assert repository.has_blob(blob)
    assert store.repository("another").has_blob(blob)
