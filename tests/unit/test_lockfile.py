"""modelpack.lock: it comes back as it was written, and what is not in it is refused."""

import tomllib
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelpack.errors import InvalidInputError, NotFoundError, PolicyRefusedError
from modelpack.lockfile import Lock, Locked
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import IMAGE_MANIFEST, Descriptor
from modelpack.oci.reference import Reference
from modelpack.schemas import violations
from modelpack.trust import Signer, Verdict

WHEN = datetime(2026, 11, 22, 10, 0, 0, tzinfo=UTC)
V1 = Reference.parse("registry.example.com/team/tiny:v1")
ONE, TWO = Digest.of(b"one"), Digest.of(b"two")


def locked(reference: Reference = V1, digest: Digest = ONE, signer: str = "SHA256:abc=") -> Locked:
    verdict = Verdict(str(reference), digest, "rule", None, WHEN, signers=(Signer("team", signer),))
    return Locked.of(reference, Descriptor(IMAGE_MANIFEST, digest, 396), verdict)


def test_a_lock_file_comes_back_as_it_was_written_and_fits_its_schema(tmp_path):
    path = tmp_path / "modelpack.lock"
    lock = Lock.empty().with_entries([locked(V1.with_tag("v2"), TWO), locked()])

    lock.save(path)

    assert Lock.load(path) == lock
    assert violations("lock", tomllib.loads(path.read_text())) == []
    assert path.read_text().index("tiny:v1") < path.read_text().index("tiny:v2")
    before = path.read_bytes()
    Lock.load(path).save(path)
    assert path.read_bytes() == before


@settings(max_examples=50)
@given(signer=st.text(st.characters(codec="utf-8"), max_size=30))
def test_whoever_signed_comes_back(tmp_path_factory, signer):
    path = tmp_path_factory.mktemp("lock") / "modelpack.lock"
    lock = Lock.empty().with_entries([locked(signer=signer)])

    lock.save(path)

    assert Lock.load(path) == lock


def test_a_new_entry_takes_the_place_of_the_old_one(tmp_path):
    lock = Lock.empty().with_entries([locked(), locked(V1.with_tag("v2"))]).with_entries([locked(digest=TWO)])

    assert lock.find(V1).digest == TWO
    assert lock.find(V1.with_tag("v2")).digest == ONE


def test_what_is_not_locked_is_refused():
    lock = Lock.empty().with_entries([locked()])

    assert lock.find(V1.with_digest(ONE)).digest == ONE
    with pytest.raises(PolicyRefusedError, match="not in the lock file"):
        lock.find(V1.with_tag("v2"))
    with pytest.raises(PolicyRefusedError, match="the lock has"):
        lock.find(V1.with_digest(TWO))


def test_another_digest_or_size_is_refused():
    entry = locked()

    entry.require(V1, Descriptor(IMAGE_MANIFEST, ONE, 396))
    for other in (Descriptor(IMAGE_MANIFEST, TWO, 396), Descriptor(IMAGE_MANIFEST, ONE, 397)):
        with pytest.raises(PolicyRefusedError):
            entry.require(V1, other)


ENTRY = f"""
[[artifact]]
reference = "{V1}"
digest = "{ONE}"
size = 396
signers = ["SHA256:abc="]
verified_at = "2026-11-22T10:00:00Z"
"""


@pytest.mark.parametrize(
    "text",
    [
        "",
        "version = 2" + ENTRY,
        "version = 1\nextra = 1" + ENTRY,
        "version = 1" + ENTRY + ENTRY,
        "version = 1" + ENTRY.replace(str(ONE), "sha256:1"),
        "version = 1" + ENTRY.replace("396", "-1"),
        "version = 1" + ENTRY.replace("396", '"396"'),
        "version = 1" + ENTRY.replace(str(V1), "registry.example.com/team/tiny"),
        "version = 1" + ENTRY.replace(str(V1), "A B"),
        "version = 1" + ENTRY.replace("2026-11-22T10:00:00Z", "yesterday"),
        "version = 1" + ENTRY.replace("2026-11-22T10:00:00Z", "9999-12-31T23:59:59-23:59"),
        "version = 1" + ENTRY.replace("size = 396", ""),
        "version = 1" + ENTRY + 'note = "x"',
        "version = 1 \xff",
    ],
)
def test_a_lock_file_that_save_did_not_write_is_refused(tmp_path, text):
    path = tmp_path / "modelpack.lock"
    path.write_bytes(text.encode("latin-1"))

    with pytest.raises(InvalidInputError) as caught:
        Lock.load(path)
    assert str(path) in str(caught.value)


def test_a_lock_file_that_is_not_there_is_not_found(tmp_path):
    with pytest.raises(NotFoundError):
        Lock.load(tmp_path / "modelpack.lock")
