"""Where a model came from, and that no stranger's word passes for a known one."""

from datetime import UTC, datetime

import pytest
from fakes.artifacts import put_cncf_model

from modelpack.errors import InvalidInputError
from modelpack.evidence.predicates import CYCLONEDX, SLSA_PROVENANCE, TEST_RESULT
from modelpack.evidence.record import attest_build, read_record, weights_of, write_record
from modelpack.evidence.why import why
from modelpack.oci.reference import Reference
from modelpack.receipt import Receipt, write_receipt
from modelpack.signing.attestation import Attestation, attest, find_attestations
from modelpack.signing.keys import PrivateKey
from modelpack.signing.signature import sign
from modelpack.store import Store
from modelpack.trust import Signer, Verdict

REFERENCE = Reference.parse("registry.example.com/team/tiny:v1")
WHEN = datetime(2026, 11, 22, 10, 0, 0, tzinfo=UTC)
TEAM = PrivateKey.generate()
STRANGER = PrivateKey.generate()
KNOWN = {"team": TEAM.public}
PROVENANCE = {
    "buildDefinition": {
        "buildType": "https://example.com/build/v1",
        "externalParameters": {"source": {"repository": "https://huggingface.co/a/b", "revision": "12fd25f"}},
        "resolvedDependencies": [{"uri": "pkg:pypi/gguf@0.19.0"}],
    },
    "runDetails": {"builder": {"id": "https://example.com/ci"}, "metadata": {"finishedOn": "2026-11-22T09:00:00Z"}},
}
RECORD = {SLSA_PROVENANCE: PROVENANCE, CYCLONEDX: {"bomFormat": "CycloneDX", "specVersion": "1.6"}}


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "store")


@pytest.fixture
def subject(store):
    put_cncf_model(store, str(REFERENCE), b"GGUF weights")
    return store.find(REFERENCE).descriptor


def told(store, subject, signers=KNOWN):
    facts = why(store, REFERENCE, subject, signers)
    return {fact.about: (fact.value, fact.voice.certainty, fact.voice.by) for fact in reversed(facts)}


def say(store, subject, key, kind, predicate):
    repository = store.repository(REFERENCE.name)
    attest(repository, REFERENCE, subject, key, predicate_type=kind, predicate=predicate, created=WHEN)


def test_of_a_model_that_came_with_nothing_nothing_is_known_but_what_it_says_itself(store, subject):
    facts = told(store, subject)

    for about in ("trust", "registry", "signature", "build", "smoke"):
        assert facts[about] == (None, "unknown", "nobody")
    assert {certainty for _, certainty, _ in facts.values()} <= {"unknown", "said"}


def test_what_a_known_key_signed_is_told_as_signed_by_its_name(store, subject):
    repository = store.repository(REFERENCE.name)
    sign(repository, REFERENCE, subject, TEAM, signed_at=WHEN)
    say(store, subject, TEAM, SLSA_PROVENANCE, PROVENANCE)
    say(store, subject, TEAM, TEST_RESULT, {"result": "PASSED", "configuration": [], "passedTests": ["a", "b"]})

    facts = told(store, subject)

    assert facts["signature"] == ("as registry.example.com/team/tiny:v1 at 2026-11-22T10:00:00Z", "signed", "team")
    assert facts["build"] == ("https://example.com/ci at 2026-11-22T09:00:00Z, 1 inputs and tools", "signed", "team")
    assert facts["source"] == ("https://huggingface.co/a/b@12fd25f", "signed", "team")
    assert facts["smoke"] == ("PASSED: 2 passed", "signed", "team")


def test_a_strangers_statement_is_told_as_said_and_never_as_signed(store, subject):
    say(store, subject, STRANGER, SLSA_PROVENANCE, PROVENANCE)
    say(store, subject, STRANGER, TEST_RESULT, {"result": "PASSED", "configuration": []})

    facts = told(store, subject)

    for about in ("build", "source", "smoke"):
        assert facts[about][1:] == ("said", f"the key {STRANGER.public.id}, as it says")


def test_a_known_keys_word_about_the_source_is_preferred_to_a_strangers(store, subject):
    forged = {**PROVENANCE, "buildDefinition": {"externalParameters": {"source": {"repository": "https://evil"}}}}
    say(store, subject, STRANGER, SLSA_PROVENANCE, forged)
    say(store, subject, TEAM, SLSA_PROVENANCE, PROVENANCE)

    assert told(store, subject)["source"] == ("https://huggingface.co/a/b@12fd25f", "signed", "team")


@pytest.mark.parametrize(
    "predicate",
    [
        {},
        {"runDetails": [], "buildDefinition": "x", "configuration": {"0": 1}, "passedTests": {"a": 1}, "result": 7},
        {"runDetails": {"builder": {"id": ["x"]}}, "buildDefinition": {"externalParameters": {"source": []}}},
        {"configuration": [[]], "failedTests": "all", "specVersion": None},
    ],
)
def test_a_predicate_that_is_not_what_its_type_says_is_told_as_far_as_it_goes(store, subject, predicate):
    for kind in (SLSA_PROVENANCE, TEST_RESULT, CYCLONEDX):
        say(store, subject, STRANGER, kind, predicate)

    facts = told(store, subject)
    assert facts["build"][0] == "an unnamed builder"
    assert facts["smoke"][0].startswith("no result: ")


def test_the_receipt_tells_how_it_came_and_vouches_for_the_manifest_where_the_key_is_not_known_any_more(store, subject):
    verdict = Verdict(
        str(REFERENCE), subject.digest, "registry.example.com/**", None, WHEN, (Signer("team", "SHA256:x"),)
    )
    write_receipt(store, subject, Receipt(REFERENCE, verdict))

    facts = told(store, subject, signers={})

    rule = "signed by team; rule registry.example.com/**; checked 2026-11-22T10:00:00Z"
    assert facts["trust"] == (rule, "recorded", "this store")
    assert facts["registry"] == ("registry.example.com/team/tiny:v1", "recorded", "this store")
    assert facts["signature"] == (None, "unknown", "nobody")


@pytest.mark.parametrize(("is_verified", "certainty"), [(False, "said"), (True, "recorded")])
def test_a_view_says_of_itself_what_its_original_is_believed_to_say(store, subject, is_verified, certainty):
    verdict = Verdict(str(REFERENCE), subject.digest, "r", subject.digest, WHEN, (Signer("team", "SHA256:x"),))
    if not is_verified:
        verdict = Verdict.skipped(REFERENCE, subject, now=WHEN)
    write_receipt(store, subject, Receipt(REFERENCE, verdict))
    name = REFERENCE.with_tag("v1-slim")
    put_cncf_model(store, str(name), b"GGUF the same in another manifest")
    view = store.find(name).descriptor
    write_receipt(store, view, Receipt(name, None, view_of=REFERENCE.with_digest(subject.digest)))

    assert told(store, view, signers={})["licence"][1] == certainty


def test_a_build_record_is_told_as_recorded_until_it_is_signed(store, subject):
    write_receipt(store, subject, Receipt(REFERENCE, None, is_built=True))
    write_record(store, subject.digest, RECORD)
    assert told(store, subject)["build"][1:] == ("recorded", "this store")
    assert told(store, subject)["trust"] == ("built here", "recorded", "this store")

    attest_build(store, store.repository(REFERENCE.name), REFERENCE, subject, TEAM, now=WHEN)
    facts = why(store, REFERENCE, subject, KNOWN)
    assert [fact.voice.by for fact in facts if fact.about in ("build", "bill")] == ["team", "team"]
    unknown = why(store, REFERENCE, subject, {})
    assert [fact.voice.by for fact in unknown if fact.about in ("build", "bill")] == ["this store", "this store"]


def test_signing_a_build_attests_everything_in_its_record_once_and_names_the_weights(store, subject):
    write_record(store, subject.digest, RECORD)
    repository = store.repository(REFERENCE.name)

    first = attest_build(store, repository, REFERENCE, subject, TEAM, now=WHEN)
    second = attest_build(store, repository, REFERENCE, subject, TEAM, now=WHEN.replace(year=2027))

    assert [one.predicate_type for one in first] == [SLSA_PROVENANCE, CYCLONEDX]
    assert [one.written for one in first] == [("bundle",), ("bundle",)]
    assert [one.written for one in second] == [(), ()]
    found = [one for one in find_attestations(repository, subject) if isinstance(one, Attestation)]
    assert {one.predicate_type: one.predicate for one in found} == RECORD
    assert len(weights_of(repository, subject)) == 1
    (name,) = weights_of(repository, subject)
    assert all(f'"name":"{name}"'.encode() in one.signed for one in found)


def test_what_was_not_built_here_is_signed_without_a_word_about_its_build(store, subject):
    assert attest_build(store, store.repository(REFERENCE.name), REFERENCE, subject, TEAM, now=WHEN) == []


def test_a_record_that_breaks_its_type_is_neither_kept_nor_believed(store, subject):
    with pytest.raises(InvalidInputError):
        write_record(store, subject.digest, {SLSA_PROVENANCE: {}})
    for broken in ({"predicates": {SLSA_PROVENANCE: {}}}, {"predicates": []}, {"predicates": {CYCLONEDX: "x"}}, {}):
        store.put_build_record(subject.digest, broken)
        assert read_record(store, subject.digest) == {}


def test_the_record_goes_when_the_model_goes(store, subject):
    write_record(store, subject.digest, RECORD)
    assert read_record(store, subject.digest) == RECORD

    store.remove(REFERENCE)
    assert store.build_record(subject.digest) is None
