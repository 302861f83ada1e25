"""Attesting and finding attestations: the exact bytes, twice is once, and what strangers' envelopes cannot do."""

import base64
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fakes.vectors import MemoryRepository
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelpack.errors import InvalidContentError, InvalidInputError, InvalidSignatureError, RegistryUnavailableError
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import Manifest, image_index
from modelpack.oci.reference import Reference
from modelpack.oci.target import write_whole
from modelpack.signing import envelope
from modelpack.signing.attestation import ENVELOPE_TYPE, MAX_PREDICATE_SIZE, attest, find_attestations
from modelpack.signing.candidate import Attestation, Rejection, Signature
from modelpack.signing.keys import PrivateKey, PublicKey
from modelpack.signing.signature import SIGN_PREDICATE, find_signatures, sign

VECTORS = Path(__file__).parents[2] / "data" / "signing"
REFERENCE = Reference.parse("registry.example.com/team/tiny:v1")
WHEN = datetime(2026, 11, 22, 10, 0, 0, tzinfo=UTC)
KEY = PrivateKey.generate()
OTHER = PrivateKey.generate()
TEST_RESULT = "https://in-toto.io/attestation/test-result/v0.1"
PASSED = {"result": "PASSED", "configuration": [], "passedTests": ["load"]}
WEIGHTS = Digest.of(b"GGUF weights")

ATTESTED = {
    "cosign2-attest-legacy-cdx": ("cosign-legacy", "https://cyclonedx.org/bom"),
    "cosign2-attest-legacy-test": ("cosign-legacy", TEST_RESULT),
    "cosign3-attest-bundle-cdx": ("bundle", "https://cyclonedx.org/bom"),
    "cosign3-attest-bundle-slsa": ("bundle", "https://slsa.dev/provenance/v1"),
    "cosign3-attest-bundle-test": ("bundle", TEST_RESULT),
    "attested-test-failed": ("bundle", TEST_RESULT),
}


@pytest.fixture
def repository():
    return MemoryRepository()


@pytest.fixture
def subject(repository):
    return repository.add_artifact()


def attestations(repository, subject):
    return [one for one in find_attestations(repository, subject) if isinstance(one, Attestation)]


def rejections(repository, subject):
    return [one for one in find_attestations(repository, subject) if isinstance(one, Rejection)]


def attest_test(repository, subject, *, key=KEY, predicate=PASSED, **also):
    return attest(
        repository,
        REFERENCE,
        subject,
        key,
        **{"predicate_type": TEST_RESULT, "predicate": predicate, "created": WHEN, **also},
    )


def envelope_bytes(subject, *, key=KEY, predicate_type=TEST_RESULT, subjects=None):
    named = subjects or [envelope.Subject({"sha256": subject.digest.hex}, None, {})]
    unsigned = envelope.Envelope(envelope.statement(named, predicate_type, PASSED), b"")
    return replace(unsigned, signature=key.sign(unsigned.signed))


def add_att_layer(repository, subject, content, *, media_type=ENVELOPE_TYPE, annotations=None):
    from modelpack.oci.manifest import Descriptor, image_manifest

    config = write_whole(repository, b"{}", "application/vnd.oci.image.config.v1+json")
    layer = write_whole(repository, content, media_type)
    layer = Descriptor(layer.media_type, layer.digest, layer.size, annotations or {})
    repository.put_manifest(image_manifest(config=config, layers=[layer]), tag=f"sha256-{subject.digest.hex}.att")


@pytest.mark.parametrize("name", sorted(path.parent.name for path in VECTORS.glob("*/case.json")))
def test_what_cosign_attested_is_found_and_nothing_else_is(name):
    case = json.loads((VECTORS / name / "case.json").read_text())
    repository = MemoryRepository.load(VECTORS / name)
    subject = repository.resolve(case["digest"])

    found = attestations(repository, subject)

    assert [(one.scheme, one.predicate_type) for one in found] == ([ATTESTED[name]] if name in ATTESTED else [])
    for one in found:
        key = PublicKey.load((VECTORS / "keys" / f"{case.get('attest_key', case['key'])}.pub").read_bytes())
        stranger = PublicKey.load((VECTORS / "keys" / "p384.pub").read_bytes())
        assert one.verify([stranger, key]) == key.id
        assert one.claims.reference == case["repository"]
        with pytest.raises(InvalidSignatureError):
            one.verify([stranger])


def test_what_the_vectors_predicates_say_is_read():
    repository = MemoryRepository.load(VECTORS / "attested-test-failed")
    subject = repository.resolve(json.loads((VECTORS / "attested-test-failed" / "case.json").read_text())["digest"])

    (found,) = attestations(repository, subject)

    assert found.predicate["result"] == "FAILED"
    assert found.predicate["failedTests"] == ["load"]
    signer = PublicKey.load((VECTORS / "keys" / "a.pub").read_bytes())
    with pytest.raises(InvalidSignatureError):
        found.verify([signer])  # a signed the artifact; b says that it failed


def test_attack_12_an_attestation_never_counts_as_a_signature_nor_a_signature_as_an_attestation(repository, subject):
    attest_test(repository, subject, legacy=True)
    assert [one for one in find_signatures(repository, subject) if isinstance(one, Signature)] == []

    sign(repository, REFERENCE, subject, KEY, signed_at=WHEN)
    assert len(attestations(repository, subject)) == 2
    assert len([one for one in find_signatures(repository, subject) if isinstance(one, Signature)]) == 2


def test_what_was_attested_is_found_in_both_forms_and_verifies(repository, subject):
    made = attest_test(repository, subject, legacy=True, files={"tiny.gguf": WEIGHTS})

    found = attestations(repository, subject)
    assert [one.scheme for one in found] == ["bundle", "cosign-legacy"]
    for one in found:
        assert one.verify([OTHER.public, KEY.public]) == KEY.public.id == made.key_id
        assert one.predicate_type == TEST_RESULT
        assert one.predicate == PASSED
        assert one.claims.reference == "registry.example.com/team/tiny:v1"
        assert one.claims.signed_at == WHEN
        with pytest.raises(InvalidSignatureError):
            one.verify([OTHER.public])
    assert made.written == ("bundle", "cosign-legacy")
    assert rejections(repository, subject) == []


def test_the_bundle_is_what_kyverno_and_cosign_3_look_for(repository, subject):
    made = attest_test(repository, subject, files={"tiny.gguf": WEIGHTS})

    (referrer,) = repository.list_referrers(subject.digest)
    manifest = Manifest.parse(repository.manifests[referrer.digest])
    assert made.referrers == (referrer.digest,)
    assert referrer.artifact_type == manifest.artifact_type == envelope.BUNDLE_TYPE
    assert dict(referrer.annotations) == {
        "dev.sigstore.bundle.content": "dsse-envelope",
        "dev.sigstore.bundle.predicateType": TEST_RESULT,
        "org.opencontainers.image.created": "2026-11-22T10:00:00Z",
    }
    bundle = json.loads(repository.blobs[manifest.layers[0].digest])
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicate"] == PASSED
    assert [(one["name"], one["digest"]) for one in statement["subject"]] == [
        ("registry.example.com/team/tiny:v1", {"sha256": subject.digest.hex}),
        ("tiny.gguf", {"sha256": WEIGHTS.hex}),
    ]


def test_the_att_tag_has_the_layer_that_cosign_2_and_policy_controller_read(repository, subject):
    attest_test(repository, subject, legacy=True)

    manifest = repository.fetch_manifest(repository.resolve(f"sha256-{subject.digest.hex}.att"))
    (layer,) = manifest.layers
    assert layer.media_type == "application/vnd.dsse.envelope.v1+json"
    assert dict(layer.annotations) == {"dev.cosignproject.cosign/signature": "", "predicateType": TEST_RESULT}
    document = json.loads(repository.blobs[layer.digest])
    assert list(document) == ["payloadType", "payload", "signatures"]
    assert document["payloadType"] == "application/vnd.in-toto+json"
    assert document["signatures"][0]["keyid"] == ""


def test_attesting_twice_writes_once_even_a_year_later_and_under_another_name(repository, subject):
    attest_test(repository, subject, legacy=True)
    before = (dict(repository.manifests), dict(repository.tags))

    again = attest(
        repository,
        Reference.parse("registry.example.com/team/tiny:latest"),
        subject,
        KEY,
        predicate_type=TEST_RESULT,
        predicate=dict(reversed(PASSED.items())),
        created=WHEN.replace(year=2027),
        legacy=True,
    )

    assert again.written == ()
    assert again.found == ("bundle", "cosign-legacy")
    assert (repository.manifests, repository.tags) == before


@pytest.mark.parametrize(
    "change",
    [{"key": OTHER}, {"predicate": {**PASSED, "result": "FAILED"}}, {"predicate_type": "https://example.com/eval/v1"}],
)
def test_an_attestation_that_says_something_else_is_added_and_the_first_one_stays(repository, subject, change):
    attest_test(repository, subject, legacy=True)

    second = attest_test(repository, subject, legacy=True, **change)

    assert second.written == ("bundle", "cosign-legacy")
    assert len(attestations(repository, subject)) == 4


def test_a_missing_form_is_added_alone(repository, subject):
    attest_test(repository, subject)

    assert attest_test(repository, subject, legacy=True).written == ("cosign-legacy",)


@pytest.mark.parametrize("kind", [SIGN_PREDICATE, "smoke", "", "https://example.com/\x1b[31m"])
def test_what_is_no_predicate_type_is_refused(repository, subject, kind):
    with pytest.raises(InvalidInputError):
        attest_test(repository, subject, predicate_type=kind)
    assert repository.list_referrers(subject.digest) == []


@pytest.mark.parametrize("predicate", [{"loss": float("nan")}, {"at": WHEN}, {"log": "x" * MAX_PREDICATE_SIZE}])
def test_a_predicate_that_could_not_be_read_back_is_refused(repository, subject, predicate):
    with pytest.raises(InvalidInputError):
        attest_test(repository, subject, predicate=predicate)
    assert repository.list_referrers(subject.digest) == []


def test_the_largest_predicate_that_is_taken_is_read_back(repository, subject):
    log = "x" * (MAX_PREDICATE_SIZE - len('{"log":""}'))

    attest_test(repository, subject, predicate={"log": log}, legacy=True)

    assert [one.predicate["log"] == log for one in attestations(repository, subject)] == [True, True]


def test_a_registry_that_does_not_keep_what_was_written_is_noticed(repository, subject):
    def lose(manifest, tag):
        if manifest.subject:
            del repository.manifests[manifest.digest]

    repository.on_put = lose
    with pytest.raises(InvalidSignatureError):
        attest_test(repository, subject)


def test_an_att_tag_that_is_something_else_is_not_overwritten(repository, subject):
    tag = f"sha256-{subject.digest.hex}.att"
    repository.put_manifest(image_index([]), tag=tag)
    before = repository.tags[tag]

    with pytest.raises(InvalidContentError):
        attest_test(repository, subject, legacy=True)
    assert repository.tags[tag] == before
    (rejection,) = rejections(repository, subject)
    assert "an index" in rejection.reason


def test_a_statement_about_another_digest_is_rejected_wherever_it_lies(repository, subject):
    other = replace(subject, digest=Digest.of(b"another"))
    signed = envelope_bytes(other)
    repository.add_referrer(
        subject, envelope.Bundle(signed, KEY.public.hint).to_bytes(), envelope.BUNDLE_TYPE,
        artifact_type=envelope.BUNDLE_TYPE,
    )  # fmt: skip
    add_att_layer(repository, subject, signed.to_bytes())

    assert attestations(repository, subject) == []
    assert [one.reason for one in rejections(repository, subject)] == [
        f"it signs another digest, not {subject.digest}"
    ] * 2


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda text: text.replace('"keyid":""', '"keyid":"","keyid":""'), "repeats a key"),
        (lambda text: text.replace('"signatures":[', '"signatures":[{"keyid":"","sig":"AA=="},'), "exactly one"),
        (
            lambda text: text.replace('"payloadType":"application/vnd.in-toto+json"', '"payloadType":"text/plain"'),
            "text",
        ),
        (lambda text: text.replace('"payload":"', '"payload":" '), "base64"),
        (lambda text: text[:-1], "not JSON"),
        (lambda text: text.replace('"signatures"', '"extra":1,"signatures"'), "unknown field"),
    ],
)
def test_a_broken_envelope_is_turned_away_with_its_reason(repository, subject, spoil, reason):
    add_att_layer(repository, subject, spoil(envelope_bytes(subject).to_bytes().decode()).encode())

    assert attestations(repository, subject) == []
    (rejection,) = rejections(repository, subject)
    assert reason in rejection.reason


def test_a_keyid_of_its_own_does_not_matter_in_an_envelope_of_its_own(repository, subject):
    text = envelope_bytes(subject).to_bytes().decode().replace('"keyid":""', '"keyid":"anything"')
    add_att_layer(repository, subject, text.encode())

    assert [one.verify([KEY.public]) for one in attestations(repository, subject)] == [KEY.public.id]


@pytest.mark.parametrize(
    ("media_type", "annotations"),
    [("application/octet-stream", {}), (ENVELOPE_TYPE, {"dev.sigstore.cosign/certificate": "-----BEGIN"})],
)
def test_a_layer_of_another_kind_is_named_as_foreign(repository, subject, media_type, annotations):
    content = envelope_bytes(subject).to_bytes()
    add_att_layer(repository, subject, content, media_type=media_type, annotations=annotations)

    assert attestations(repository, subject) == []
    assert [one.is_foreign for one in rejections(repository, subject)] == [True]


def test_attack_6_a_heap_of_attestations_does_not_hide_the_signature_nor_the_other_way_round(repository, subject):
    for number in range(101):
        attest_test_cheaply(repository, subject, number)
    sign(repository, REFERENCE, subject, KEY, signed_at=WHEN, legacy=False)
    found = [one for one in find_signatures(repository, subject) if isinstance(one, Signature)]
    assert [one.verify([KEY.public]) for one in found] == [KEY.public.id]

    assert len(attestations(repository, subject)) == 100
    assert "only 100 were read" in rejections(repository, subject)[-1].reason


def attest_test_cheaply(repository, subject, number):
    """An attestation without the reading back, which is what takes time."""
    from modelpack.signing import places

    bundle = envelope.Bundle(envelope_bytes(subject, predicate_type=f"https://example.com/{number}"), "")
    places.put_bundle(repository, subject, bundle, predicate_type=f"https://example.com/{number}", created=WHEN)


def test_a_registry_that_does_not_answer_is_not_taken_for_one_without_attestations(repository, subject):
    def silent(digest):
        raise RegistryUnavailableError("no answer")

    repository.list_referrers = silent
    with pytest.raises(RegistryUnavailableError):
        find_attestations(repository, subject)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(codec="utf-8"), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(predicate=st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), JSON, max_size=4))
def test_any_predicate_comes_back_as_it_was_said(predicate):
    repository = MemoryRepository()
    subject = repository.add_artifact()

    attest_test(repository, subject, predicate=predicate, legacy=True)

    assert [one.predicate for one in attestations(repository, subject)] == [predicate, predicate]
