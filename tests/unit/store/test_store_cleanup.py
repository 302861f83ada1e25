"""What rm and prune take away, and what they leave alone."""

import os
import time
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_artifacts import age, age_all, put_model, tags

from modelpack.errors import NotFoundError
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import EMPTY_CONFIG, image_index
from modelpack.oci.reference import Reference
from modelpack.store import Store, locks
from modelpack.store.leases import held_digests

REF = Reference.parse


def on_disk(store: Store) -> set[Digest]:
    return {digest for digest, _ in store.blobs.all()}


def test_removing_the_only_tag_frees_everything_it_needed(store: Store) -> None:
    model = put_model(store.repository("tiny"), b"weights", tag="v1")
    store.put_receipt(model.digest, {"rule": "*"})

    plan = store.plan_remove(REF("tiny:v1"))
    assert on_disk(store), "a plan changes nothing"
    gone = store.remove(REF("tiny:v1"))

    assert gone == plan
    assert [str(tag) for tag in gone.tags] == ["tiny:v1"]
    assert gone.freed == len(b"weights") + len(b"{}") + len(model.raw)
    assert on_disk(store) == set()
    assert store.receipt(model.digest) is None


def test_removing_keeps_what_other_models_share(store: Store) -> None:
    put_model(store.repository("tiny"), b"shared", tag="v1")
    other = put_model(store.repository("other"), b"shared", tag="v1")
    mine = put_model(store.repository("tiny"), b"mine", tag="v2")

    store.remove(REF("tiny:v1"))
    gone = store.remove(REF("tiny:v2"))

    assert {digest for digest, _ in gone.blobs} == {mine.digest, mine.layers[0].digest}
    assert tags(store) == ["other:v1"]
    assert on_disk(store) == {other.digest, other.layers[0].digest, EMPTY_CONFIG.digest}


def test_one_of_two_tags_goes_alone(store: Store) -> None:
    repository = store.repository("tiny")
    model = put_model(repository, b"weights", tag="v1")
    report = put_model(repository, b"report", subject=model.descriptor)
    repository.put_manifest(model, tag="v2")

    gone = store.remove(REF("tiny:v1"))

    assert gone.blobs == ()
    assert tags(store) == ["tiny:v2"]
    assert repository.list_referrers(model.digest) == [report.descriptor]


def test_a_digest_removes_all_its_tags(store: Store) -> None:
    repository = store.repository("tiny")
    model = put_model(repository, b"weights", tag="v1")
    repository.put_manifest(model, tag="v2")
    gone = store.remove(REF(f"tiny@{model.digest}"))
    assert [str(tag) for tag in gone.tags] == ["tiny:v1", "tiny:v2"]
    assert on_disk(store) == set()


def test_signatures_and_reports_go_with_their_model(store: Store) -> None:
    repository = store.repository("tiny")
    model = put_model(repository, b"weights", tag="v1")
    put_model(repository, b"signature", tag=f"sha256-{model.digest.hex}.sig")
    report = put_model(repository, b"report", subject=model.descriptor)
    put_model(repository, b"signature of the report", subject=report.descriptor)

    gone = store.remove(REF("tiny:v1"))

    assert [str(tag) for tag in gone.tags] == ["tiny:v1"]
    assert len(gone.entries) == 4
    assert on_disk(store) == set()


def test_an_index_takes_its_children_unless_they_have_tags(store: Store) -> None:
    repository = store.repository("tiny")
    q4 = put_model(repository, b"q4", tag="q4")
    q8 = put_model(repository, b"q8")
    repository.put_manifest(image_index([q4.descriptor, q8.descriptor]), tag="all")

    store.remove(REF("tiny:all"))

    assert tags(store) == ["tiny:q4"]
    assert q8.digest not in on_disk(store)
    assert q4.layers[0].digest in on_disk(store)


def test_a_manifest_kept_by_its_digest_is_not_touched_by_the_removal_of_another(store: Store) -> None:
    repository = store.repository("tiny")
    pinned = put_model(repository, b"pinned")
    put_model(repository, b"weights", tag="v1")
    store.remove(REF("tiny:v1"))
    assert repository.resolve(str(pinned.digest)).digest == pinned.digest


def test_removing_what_is_not_there_is_an_error(store: Store) -> None:
    with pytest.raises(NotFoundError, match="nope:latest"):
        store.remove(REF("nope"))


def test_prune_frees_what_no_tag_needs_and_nothing_else(store: Store) -> None:
    repository = store.repository("tiny")
    old = put_model(repository, b"old", tag="v1")
    report = put_model(repository, b"report on the old", subject=old.descriptor)
    new = put_model(repository, b"new", tag="v1")
    signature = put_model(repository, b"signature", subject=new.descriptor)
    orphan = store.write_small(b"orphan", "text/plain")
    age_all(store)
    store.release([orphan.digest])

    plan = store.plan_prune()
    assert old.digest in on_disk(store)
    gone = store.carry_out(plan)

    assert gone == plan
    dead = {item for m in (old, report) for item in (m.digest, m.layers[0].digest)} | {orphan.digest}
    alive = {item for m in (new, signature) for item in (m.digest, m.layers[0].digest)} | {EMPTY_CONFIG.digest}
    assert {digest for digest, _ in gone.blobs} == dead
    assert on_disk(store) == alive
    assert store.prune().freed == 0


def test_prune_leaves_young_blobs_and_manifests_alone(store: Store) -> None:
    old = put_model(store.repository("tiny"), b"old", tag="v1")
    put_model(store.repository("tiny"), b"new", tag="v1")
    store.write_small(b"orphan", "text/plain")

    before = on_disk(store)
    assert store.prune().blobs == ()
    assert on_disk(store) == before
    age(store, old.layers[0].digest, 86400)
    assert store.prune().blobs == (), "its manifest is young"


def test_prune_leaves_what_this_process_holds(store: Store) -> None:
    orphan = store.write_small(b"of a build that runs", "text/plain")
    age_all(store)
    assert Store.open(store.root).prune(grace=timedelta(0)).blobs == ()

    store.release([orphan.digest])
    gone = Store.open(store.root).prune(grace=timedelta(0))
    assert [digest for digest, _ in gone.blobs] == [orphan.digest]


def test_who_only_asks_holds_what_is_there_and_nothing_else(store: Store) -> None:
    orphan = store.write_small(b"of a build", "text/plain")
    store.release([orphan.digest])
    assert store.hold(Digest.of(b"absent"), if_present=True) is None
    assert store.hold(orphan.digest, if_present=True) == orphan.size
    assert held_digests(store.root / "locks") == {orphan.digest}


def test_what_became_needed_since_the_plan_stays(store: Store) -> None:
    repository = store.repository("tiny")
    old = put_model(repository, b"old", tag="v1")
    put_model(repository, b"new", tag="v1")
    age_all(store)
    plan = store.plan_prune()
    assert plan.blobs

    repository.put_manifest(old, tag="v0")
    store.carry_out(plan)

    assert {old.digest, old.layers[0].digest} <= on_disk(store)
    assert repository.resolve("v0").digest == old.digest


def test_what_somebody_began_to_hold_since_the_plan_stays(store: Store) -> None:
    orphan = store.write_small(b"of a build", "text/plain")
    age_all(store)
    store.release([orphan.digest])
    plan = store.plan_prune()
    assert [digest for digest, _ in plan.blobs] == [orphan.digest]

    assert store.repository("tiny").has_blob(orphan)
    assert store.carry_out(plan).blobs == ()
    store.rehash(orphan)


def test_prune_removes_old_partial_files_that_nobody_writes(store: Store) -> None:
    then = time.time() - timedelta(days=8).total_seconds()
    for name in ("a" * 64, "upload-1", "b" * 64):
        (store.partials / name).write_bytes(b"x" * 5000)
    (store.partials / "work-1").mkdir()
    (store.partials / "work-1" / "f16.gguf").write_bytes(b"x" * 5000)
    for name in ("a" * 64, "upload-1", "work-1"):
        os.utime(store.partials / name, (then, then))

    with store.workspace() as running:
        os.utime(running, (then, then))
        gone = store.prune()
        assert running.exists()

    assert sorted(path.name for path, _ in gone.partials) == sorted(["a" * 64, "upload-1", "work-1"])
    assert gone.freed >= 15000
    assert [path.name for path in store.partials.iterdir()] == ["b" * 64]


def test_prune_frees_no_blob_while_a_manifest_cannot_be_read(store: Store) -> None:
    model = put_model(store.repository("tiny"), b"weights", tag="v1")
    orphan = store.write_small(b"orphan", "text/plain")
    store.release([orphan.digest])
    age_all(store)
    path = store.blob_path(model.digest)
    path.unlink()
    path.write_bytes(b"garbage")

    gone = store.prune()

    assert gone.broken == ("tiny:v1",)
    assert gone.blobs == ()
    assert {orphan.digest, model.layers[0].digest} <= on_disk(store)


def test_usage_tells_shared_from_unique(store: Store) -> None:
    put_model(store.repository("tiny"), b"shared weights", tag="v1")
    put_model(store.repository("tiny"), b"shared weights", tag="v1-again")
    mine = put_model(store.repository("tiny"), b"mine", tag="v2")
    store.write_small(b"orphan", "text/plain")
    (store.partials / ("a" * 64)).write_bytes(b"x" * 9000)

    usage = store.usage()

    assert [str(model.reference) for model in usage.models] == ["tiny:v1", "tiny:v1-again", "tiny:v2"]
    v2 = usage.models[2]
    assert v2.size == len(b"mine") + 2 + len(mine.raw)
    assert v2.unique == len(b"mine") + len(mine.raw)
    assert usage.models[0].unique == 0
    assert usage.unused == len(b"orphan")
    assert usage.size == sum(store.blobs.size(digest) or 0 for digest in on_disk(store))
    assert (usage.partials, usage.partial_size >= 9000) == (1, True)


def test_the_workspace_goes_even_when_the_work_fails(store: Store) -> None:
    seen: list[Path] = []

    def build() -> None:
        with store.workspace() as folder:
            seen.append(folder)
            (folder / "f16.gguf").write_bytes(b"x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        build()
    assert not seen[0].exists()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["put", "attach", "remove", "prune"]), st.integers(0, 3), st.integers(0, 2)),
        max_size=14,
    )
)
def test_whatever_happens_every_tag_stays_complete(tmp_path_factory: pytest.TempPathFactory, steps: list) -> None:
    store = Store.open(tmp_path_factory.mktemp("store") / "root")
    expected: set[str] = set()
    for verb, content, tag in steps:
        repository = store.repository(f"repo{tag % 2}")
        name = f"repo{tag % 2}:t{tag}"
        if verb == "put":
            put_model(repository, b"weights %d" % content, tag=f"t{tag}")
            expected.add(name)
        elif verb == "attach" and name in expected:
            put_model(repository, b"report %d" % content, subject=repository.resolve(f"t{tag}"))
        elif verb == "remove" and name in expected:
            store.remove(REF(name))
            expected.discard(name)
        elif verb == "prune":
            age_all(store)
            store.prune(grace=timedelta(0))
    assert set(tags(store)) == expected
    for stored in store.list():
        repository = store.repository(stored.reference.name)
        for digest in (
            stored.descriptor.digest,
            *(r.digest for r in repository.list_referrers(stored.descriptor.digest)),
        ):
            manifest = repository.fetch_manifest(repository.resolve(str(digest)))
            for blob in manifest.blobs:
                store.rehash(blob)
    for name in expected:
        store.remove(REF(name))
    age_all(store)
    store.prune(grace=timedelta(0))
    assert on_disk(store) == set()


def test_prune_leaves_the_journal_of_a_transfer_that_runs(store: Store) -> None:
    partial = store.partials / ("a" * 64)
    journal = partial.with_suffix(".journal")
    with locks.locked(partial):
        journal.write_bytes(b"x")
        assert store.prune(partial_age=timedelta(0)).partials == ()
    gone = store.prune(partial_age=timedelta(0))
    assert [path.name for path, _ in gone.partials] == [partial.name, journal.name]
    assert list(store.partials.iterdir()) == []


def test_prune_removes_what_a_process_that_was_killed_left_of_an_atomic_write(store: Store) -> None:
    model = put_model(store.repository("tiny"), b"weights", tag="v1")
    leftovers = [
        store.root / ".index.json.k4o0jrr4",
        store.blobs.directory / f".{model.digest.hex}.abcdefgh",
        store.root / "receipts" / f".{model.digest.hex}.json.abcdefgh",
    ]
    for path in leftovers:
        path.write_bytes(b"half")
    (store.root / ".nextcloud").write_bytes(b"of somebody else")

    assert store.prune().partials == (), "somebody may be at it"
    assert sorted(path for path, _ in store.prune(partial_age=timedelta(0)).partials) == sorted(leftovers)
    assert not any(path.exists() for path in leftovers)
    assert (store.root / ".nextcloud").exists()
