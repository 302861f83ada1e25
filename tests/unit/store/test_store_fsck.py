"""What fsck finds in a store, what it puts right, and what it leaves for a pull."""

import os
from datetime import timedelta

import pytest
from store_artifacts import age_all, opener, put_model, tags

from modelpack.errors import InvalidContentError
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import EMPTY_CONFIG, Descriptor, image_index
from modelpack.store import Store
from modelpack.store.fsck import Kind, check, repair


def overwrite(store: Store, digest: Digest, content: bytes) -> None:
    path = store.blobs.path(digest)
    path.chmod(0o644)
    path.write_bytes(content)
    path.chmod(0o444)


def kinds(store: Store, *, fast: bool = False) -> list[tuple[Kind, str]]:
    return [(finding.kind, finding.path.rpartition("/")[2]) for finding in check(store, fast=fast).findings]


def test_a_store_in_order_has_no_findings_whatever_else_is_going_on(store: Store) -> None:
    model = put_model(store.repository("tiny"), b"weights", tag="v1")
    put_model(store.repository("tiny"), b"report", subject=model.descriptor)
    put_model(store.repository("tiny"), b"of an absent subject", subject=Descriptor.of(b"absent", model.media_type))
    store.write_small(b"orphan", "text/plain")
    (store.partials / ("a" * 64)).write_bytes(b"half")
    store.put_receipt(model.digest, {"reference": "tiny:v1"})
    (store.blobs.directory / f".{'b' * 64}.abcdefgh").write_bytes(b"of a process that was killed")

    checkup = check(store)

    assert checkup.findings == ()
    assert checkup.checked == len(list(store.blobs.all())) == 8


def test_a_flipped_bit_is_found_moved_aside_and_named_with_every_model_that_suffers(store: Store) -> None:
    model = put_model(store.repository("tiny"), b"weights", tag="v1")
    put_model(store.repository("other"), b"weights", tag="v2", subject=model.descriptor)
    layer = model.layers[0]
    overwrite(store, layer.digest, b"weightz")

    assert kinds(store, fast=True) == [], "the size is right"
    checkup = check(store)
    (finding,) = checkup.findings
    assert (finding.kind, finding.models) == (Kind.DAMAGED, ("other:v2", "tiny:v1"))
    assert checkup.outcome.incomplete == ("other:v2", "tiny:v1")

    outcome = repair(store, checkup)

    assert [(each.kind, each.path) for each in outcome.repaired] == [(Kind.DAMAGED, finding.path)]
    assert [each.kind for each in outcome.remaining] == [Kind.MISSING]
    assert outcome.incomplete == ("other:v2", "tiny:v1")
    assert store.blobs.size(layer.digest) is None
    (aside,) = store.partials.iterdir()
    assert aside.read_bytes() == b"weightz"
    assert tags(store) == ["other:v2", "tiny:v1"], "a pull has only that blob to fetch"

    store.repository("tiny").write_blob(layer, opener(b"weights"))
    assert check(store).findings == ()


def test_what_was_moved_aside_goes_with_a_prune_in_its_time(store: Store) -> None:
    orphan = store.write_small(b"orphan", "text/plain")
    overwrite(store, orphan.digest, b"damaged")
    age_all(store, timedelta(days=30).total_seconds())

    assert repair(store, check(store)).remaining == ()
    assert store.prune().partials == ()
    assert len(store.prune(partial_age=timedelta(0)).partials) == 1


def test_a_truncated_blob_is_found_by_its_size_alone(store: Store) -> None:
    model = put_model(store.repository("tiny"), b"weights", tag="v1")
    overwrite(store, model.layers[0].digest, b"weigh")
    checkup = check(store, fast=True)
    assert [finding.kind for finding in checkup.findings] == [Kind.DAMAGED]
    assert checkup.checked == 1, "only what differs is hashed"


@pytest.mark.parametrize("damage", [None, b"not the manifest"])
def test_a_name_whose_manifest_is_gone_is_dropped_and_told(store: Store, damage: bytes | None) -> None:
    lost = put_model(store.repository("tiny"), b"lost", tag="v1")
    put_model(store.repository("tiny"), b"kept", tag="v2")
    store.blobs.path(lost.digest).unlink()
    if damage:
        store.blobs.path(lost.digest).write_bytes(damage)
    age_all(store)
    assert store.plan_prune().broken == ("tiny:v1",)

    outcome = repair(store, check(store))

    assert outcome.remaining == ()
    assert outcome.incomplete == ("tiny:v1",)
    assert tags(store) == ["tiny:v2"]
    assert store.plan_prune().broken == ()


def test_a_child_that_an_index_lacks_is_missed_by_the_index(store: Store) -> None:
    repository = store.repository("tiny")
    child = put_model(repository, b"child")
    repository.put_manifest(image_index([child.descriptor]), tag="all")
    repository.delete_manifest(child.digest)
    store.blobs.path(child.digest).unlink()

    (finding,) = check(store).findings
    assert (finding.kind, finding.models) == (Kind.MISSING, ("tiny:all",))


def test_links_strays_and_open_rights_are_put_right(store: Store) -> None:
    model = put_model(store.repository("tiny"), b"weights", tag="v1")
    store.put_receipt(model.digest, {"reference": "tiny:v1"})
    elsewhere = store.root.parent / "elsewhere"
    elsewhere.write_bytes(b"weights")
    layer = store.blobs.path(model.layers[0].digest)
    layer.unlink()
    layer.symlink_to(elsewhere)
    (store.blobs.directory / "notes.txt").write_text("mine")
    store.blobs.path(model.digest).chmod(0o666)
    store.partials.chmod(0o777)
    (receipt,) = (store.root / "receipts").iterdir()
    receipt.chmod(0o620)

    found = {(finding.kind, finding.path) for finding in check(store).findings}
    relative = f"blobs/sha256/{layer.name}"
    assert found == {
        (Kind.LINK, relative),
        (Kind.MISSING, relative),
        (Kind.STRAY, "blobs/sha256/notes.txt"),
        (Kind.MODE, f"blobs/sha256/{model.digest.hex}"),
        (Kind.MODE, "partial"),
        (Kind.MODE, f"receipts/{receipt.name}"),
    }

    outcome = repair(store, check(store))

    assert [(each.kind, each.path) for each in outcome.remaining] == [(Kind.MISSING, relative)]
    assert elsewhere.read_bytes() == b"weights"
    assert not layer.is_symlink()
    assert [path.read_text() for path in store.partials.iterdir()] == ["mine"]
    assert store.partials.stat().st_mode & 0o777 == 0o755
    assert receipt.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_another_user_is_told_and_left(store: Store) -> None:
    model = put_model(store.repository("tiny"), b"weights", tag="v1")
    os.chown(store.blobs.path(model.digest), 12345, -1)
    outcome = repair(store, check(store))
    assert [finding.kind for finding in outcome.remaining] == [Kind.OWNER]


@pytest.mark.parametrize("damage", [None, b'{"manifests": [', b"[]"])
def test_a_lost_index_comes_back_from_the_receipts(store: Store, damage: bytes | None) -> None:
    repository = store.repository("registry.example.com/team/tiny")
    model = put_model(repository, b"weights", tag="v1")
    report = put_model(repository, b"report", subject=model.descriptor)
    put_model(repository, b"never verified", tag="v2")
    store.put_receipt(model.digest, {"reference": "registry.example.com/team/tiny:v1"})
    (store.root / "index.json").unlink()
    if damage:
        (store.root / "index.json").write_bytes(damage)
    age_all(store)

    again = Store.open(store.root)
    with pytest.raises(InvalidContentError):
        again.prune()
    with pytest.raises(InvalidContentError):
        again.list()
    checkup = check(again)
    assert [finding.kind for finding in checkup.findings] == [Kind.INDEX]

    outcome = repair(again, checkup)

    assert outcome.remaining == ()
    assert outcome.restored == ("registry.example.com/team/tiny:v1",)
    assert tags(again) == ["registry.example.com/team/tiny:v1"]
    assert again.repository("registry.example.com/team/tiny").list_referrers(model.digest) == [report.descriptor]


def test_a_repair_touches_nothing_that_was_replaced_since_the_check(store: Store) -> None:
    model = put_model(store.repository("tiny"), b"weights", tag="v1")
    layer = model.layers[0]
    overwrite(store, layer.digest, b"weightz")
    checkup = check(store)
    store.blobs.path(layer.digest).rename(store.root.parent / "gone")
    store.repository("tiny").write_blob(layer, opener(b"weights"))

    outcome = repair(store, checkup)

    assert (outcome.repaired, outcome.remaining) == ((), ())
    store.rehash(layer)
    assert store.blobs.size(EMPTY_CONFIG.digest) == 2
