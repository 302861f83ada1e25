"""Signing and finding signatures: the exact bytes, twice is once, and what hostile repositories cannot do."""

import base64
import hashlib
import json
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from fakes.vectors import MemoryRepository
from hypothesis import given, settings
from hypothesis import strategies as st

from modelpack.errors import (
    InvalidContentError,
    InvalidInputError,
    InvalidSignatureError,
    RegistryUnavailableError,
)
from modelpack.oci import strict_json
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import Descriptor, Manifest, image_index, image_manifest
from modelpack.oci.reference import Reference
from modelpack.oci.target import write_whole
from modelpack.signing import envelope, simple_signing, tagged
from modelpack.signing.candidate import Rejection, Signature
from modelpack.signing.keys import PrivateKey
from modelpack.signing.signature import SIGN_PREDICATE, find_signatures, sign

REFERENCE = Reference.parse("registry.example.com/team/tiny:v1")
WHEN = datetime(2026, 11, 22, 10, 0, 0, tzinfo=UTC)
KEY = PrivateKey.generate()
OTHER = PrivateKey.generate()
BUNDLE = envelope.BUNDLE_TYPE


@pytest.fixture
def repository():
    return MemoryRepository()


@pytest.fixture
def subject(repository):
    return repository.add_artifact()


def signatures(repository, subject):
    return [one for one in find_signatures(repository, subject) if isinstance(one, Signature)]


def rejections(repository, subject):
    return [one for one in find_signatures(repository, subject) if isinstance(one, Rejection)]


def bundle_bytes(subject, *, key=KEY, predicate_type=SIGN_PREDICATE, subjects=None, hint=None):
    named = subjects or [envelope.Subject({"sha256": subject.digest.hex}, None, {})]
    unsigned = envelope.Envelope(envelope.statement(named, predicate_type, {}), b"")
    signed = replace(unsigned, signature=key.sign(unsigned.signed))
    return envelope.Bundle(signed, key.public.hint if hint is None else hint).to_bytes()


def test_what_was_signed_is_found_in_both_forms_and_verifies(repository, subject):
    signed = sign(repository, REFERENCE, subject, KEY, signed_at=WHEN, annotations={"env": "prod"})

    found = signatures(repository, subject)
    assert [one.scheme for one in found] == ["bundle", "cosign-legacy"]
    for one in found:
        assert one.verify([OTHER.public, KEY.public]) == KEY.public.id == signed.key_id
        assert one.digest == subject.digest
        assert one.claims.reference == "registry.example.com/team/tiny:v1"
        assert one.claims.signed_at == WHEN
        assert one.claims.annotations == {"env": "prod"}
        with pytest.raises(InvalidSignatureError):
            one.verify([OTHER.public])
    assert signed.written == ("bundle", "cosign-legacy")
    assert rejections(repository, subject) == []


def test_the_bundle_has_the_bytes_that_cosign_3_reads(repository, subject):
    sign(repository, REFERENCE, subject, KEY, signed_at=WHEN, legacy=False)

    (descriptor,) = repository.list_referrers(subject.digest)
    manifest = repository.fetch_manifest(descriptor)
    assert manifest.artifact_type == "application/vnd.dev.sigstore.bundle.v0.3+json"
    assert manifest.config.media_type == "application/vnd.oci.empty.v1+json"
    assert manifest.subject.digest == subject.digest
    assert manifest.annotations == {
        "dev.sigstore.bundle.content": "dsse-envelope",
        "dev.sigstore.bundle.predicateType": "https://sigstore.dev/cosign/sign/v1",
        "org.opencontainers.image.created": "2026-11-22T10:00:00Z",
    }
    bundle = json.loads(repository.blobs[manifest.layers[0].digest])
    assert list(bundle) == ["mediaType", "verificationMaterial", "dsseEnvelope"]
    assert bundle["verificationMaterial"] == {"publicKey": {"hint": KEY.public.hint}}
    assert list(bundle["dsseEnvelope"]) == ["payload", "payloadType", "signatures"]
    assert list(bundle["dsseEnvelope"]["signatures"][0]) == ["sig"]
    assert base64.b64decode(bundle["dsseEnvelope"]["payload"]) == strict_json.canonical(
        {
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [
                {
                    "name": "registry.example.com/team/tiny:v1",
                    "digest": {"sha256": subject.digest.hex},
                    "annotations": {
                        "dev.modelpack.signed-at": "2026-11-22T10:00:00Z",
                        "org.opencontainers.image.ref.name": "registry.example.com/team/tiny:v1",
                    },
                }
            ],
            "predicateType": "https://sigstore.dev/cosign/sign/v1",
            "predicate": {},
        }
    )


def test_the_sig_tag_has_the_bytes_that_cosign_2_and_skopeo_read(repository, subject):
    sign(repository, REFERENCE, subject, KEY, signed_at=WHEN)

    manifest = repository.fetch_manifest(repository.resolve(f"sha256-{subject.digest.hex}.sig"))
    (layer,) = manifest.layers
    assert layer.media_type == "application/vnd.dev.cosign.simplesigning.v1+json"
    assert list(layer.annotations) == ["dev.cosignproject.cosign/signature"]
    assert repository.blobs[layer.digest] == strict_json.canonical(
        {
            "critical": {
                "identity": {"docker-reference": "registry.example.com/team/tiny:v1"},
                "image": {"docker-manifest-digest": str(subject.digest)},
                "type": "cosign container image signature",
            },
            "optional": {
                "dev.modelpack.signed-at": "2026-11-22T10:00:00Z",
                "org.opencontainers.image.ref.name": "registry.example.com/team/tiny:v1",
            },
        }
    )
    assert manifest.config.media_type == "application/vnd.oci.image.config.v1+json"
    config = json.loads(repository.blobs[manifest.config.digest])
    assert config["rootfs"] == {"type": "layers", "diff_ids": [str(layer.digest)]}
    assert len(config["history"]) == 1


def test_the_config_under_the_sig_tag_is_cosigns_byte_for_byte():
    payload = Descriptor(
        simple_signing.PAYLOAD_TYPE,
        Digest("sha256:ad35f1408a08eff211b7b1c51c350ff3730b3f5384e6d453917340ba8ea4a0b9"),
        245,
    )

    # The config blob of the vector cosign2-sign-legacy-a.
    assert str(Digest.of(simple_signing.image_config([payload]))) == (
        "sha256:b05e68d0168cca79558b7abd14f6e570a1d1631b329725f29d23aa8b15da0da8"
    )


def test_signing_twice_writes_once_even_a_year_later(repository, subject):
    sign(repository, REFERENCE, subject, KEY, signed_at=WHEN)
    before = (dict(repository.tags), dict(repository.manifests), dict(repository.blobs))

    again = sign(repository, REFERENCE, subject, KEY, signed_at=WHEN + timedelta(days=365))

    assert (again.written, again.found) == ((), ("bundle", "cosign-legacy"))
    assert (repository.tags, repository.manifests, repository.blobs) == before


@pytest.mark.parametrize(
    "change",
    [
        {"key": OTHER},
        {"reference": REFERENCE.with_tag("v2")},
        {"annotations": {"env": "prod"}},
        {"expires": WHEN + timedelta(days=90)},
    ],
)
def test_a_signature_that_says_something_else_is_added_and_the_first_one_stays(repository, subject, change):
    sign(repository, REFERENCE, subject, KEY, signed_at=WHEN)
    first = signatures(repository, subject)
    arguments = {"reference": REFERENCE, "key": KEY, "annotations": {}, "expires": None, **change}

    sign(
        repository,
        arguments["reference"],
        subject,
        arguments["key"],
        signed_at=WHEN,
        annotations=arguments["annotations"],
        expires=arguments["expires"],
    )

    # The place of a signature may change, its content may not.
    contents = [(one.scheme, one.signature) for one in signatures(repository, subject)]
    assert len(contents) == 4
    assert {(one.scheme, one.signature) for one in first} <= set(contents)


def test_a_missing_form_is_added_alone(repository, subject):
    sign(repository, REFERENCE, subject, KEY, signed_at=WHEN, legacy=False)

    again = sign(repository, REFERENCE, subject, KEY, signed_at=WHEN)

    assert (again.written, again.found) == (("cosign-legacy",), ("bundle",))


def test_a_digest_alone_binds_the_signature_to_the_repository_and_to_no_tag(repository, subject):
    sign(repository, replace(REFERENCE, tag=None).with_digest(subject.digest), subject, KEY, signed_at=WHEN)

    assert {one.claims.reference for one in signatures(repository, subject)} == {"registry.example.com/team/tiny"}


@pytest.mark.parametrize("name", ["dev.modelpack.signed-at", "dev.modelpack.x", "org.opencontainers.image.ref.name"])
def test_annotations_that_mean_something_cannot_be_given_by_hand(repository, subject, name):
    with pytest.raises(InvalidInputError):
        sign(repository, REFERENCE, subject, KEY, signed_at=WHEN, annotations={name: "x"})
    assert signatures(repository, subject) == []


def test_a_signature_cannot_expire_before_it_is_made(repository, subject):
    with pytest.raises(InvalidInputError):
        sign(repository, REFERENCE, subject, KEY, signed_at=WHEN, expires=WHEN)


def test_a_signature_that_another_signer_overwrites_is_added_again(repository, subject):
    tag = simple_signing.signature_tag(subject.digest)
    others = MemoryRepository()
    others.add_artifact()
    sign(others, REFERENCE, subject, OTHER, signed_at=WHEN)
    overwrites = [1, 2]

    def overwrite(manifest: Manifest, put: str | None) -> None:
        if put == tag and overwrites:
            overwrites.pop()
            repository.manifests |= others.manifests
            repository.blobs |= others.blobs
            repository.tags[tag] = others.tags[tag]

    repository.on_put = overwrite
    sign(repository, REFERENCE, subject, KEY, signed_at=WHEN)

    legacy = [one for one in signatures(repository, subject) if one.scheme == "cosign-legacy"]
    assert [one.verify([KEY.public, OTHER.public]) for one in legacy] == [OTHER.public.id, KEY.public.id]


def test_a_registry_that_does_not_keep_what_was_written_is_noticed(repository, subject):
    def forget(manifest: Manifest, put: str | None) -> None:
        if manifest.artifact_type == BUNDLE:
            del repository.manifests[manifest.digest]

    repository.on_put = forget
    with pytest.raises(InvalidSignatureError, match="cannot be read back"):
        sign(repository, REFERENCE, subject, KEY, signed_at=WHEN, legacy=False)


def test_a_sig_tag_that_is_something_else_is_not_overwritten(repository, subject):
    tag = simple_signing.signature_tag(subject.digest)
    repository.put_manifest(image_index([subject]), tag=tag)
    before = repository.tags[tag]

    with pytest.raises(InvalidContentError):
        sign(repository, REFERENCE, subject, KEY, signed_at=WHEN)
    assert repository.tags[tag] == before


def test_attack_11_a_bundle_for_another_digest_is_rejected_wherever_it_hangs(repository, subject):
    other = repository.add_artifact(b"other weights", tag="other")
    repository.add_referrer(subject, bundle_bytes(other), BUNDLE, artifact_type=BUNDLE)

    (rejection,) = rejections(repository, subject)
    assert "another digest" in rejection.reason
    assert signatures(repository, subject) == []


def test_attack_11_a_manifest_advertised_for_one_artifact_that_hangs_on_another_is_rejected(repository, subject):
    other = repository.add_artifact(b"other weights", tag="other")
    stray = repository.add_referrer(other, bundle_bytes(subject), BUNDLE, artifact_type=BUNDLE)
    repository.advertised.append(stray)

    (rejection,) = rejections(repository, subject)
    assert "another subject" in rejection.reason


def test_attack_12_an_attestation_is_not_a_signature(repository, subject):
    attestation = bundle_bytes(subject, predicate_type="https://in-toto.io/attestation/test-result/v0.1")
    repository.add_referrer(subject, attestation, BUNDLE, artifact_type=BUNDLE)

    (rejection,) = rejections(repository, subject)
    assert rejection.is_foreign
    assert "test-result/v0.1" in rejection.reason


def test_attack_13_what_the_annotation_says_of_the_predicate_type_is_not_believed(repository, subject):
    attestation = bundle_bytes(subject, predicate_type=SIGN_PREDICATE + "/")
    layer = write_whole(repository, attestation, BUNDLE)
    config = write_whole(repository, b"{}", "application/vnd.oci.empty.v1+json")
    repository.put_manifest(
        image_manifest(
            config=config,
            layers=[layer],
            subject=subject,
            artifact_type=BUNDLE,
            annotations={"dev.sigstore.bundle.predicateType": SIGN_PREDICATE},
        )
    )

    assert signatures(repository, subject) == []


def test_a_sha512_beside_the_right_sha256_must_be_right_too(repository, subject):
    right = hashlib.sha512(repository.manifests[subject.digest]).hexdigest()
    for sha512, count in ((right, 1), ("0" * 128, 1)):
        named = envelope.Subject({"sha256": subject.digest.hex, "sha512": sha512}, None, {})
        repository.add_referrer(subject, bundle_bytes(subject, subjects=[named]), BUNDLE, artifact_type=BUNDLE)
        assert len(signatures(repository, subject)) == count
    assert "sha512" in rejections(repository, subject)[0].reason


def test_a_statement_may_speak_of_several_things_but_of_ours_once(repository, subject):
    ours = envelope.Subject({"sha256": subject.digest.hex}, None, {})
    theirs = envelope.Subject({"sha256": "0" * 64}, "weights.gguf", {})
    repository.add_referrer(subject, bundle_bytes(subject, subjects=[theirs, ours]), BUNDLE)
    repository.add_referrer(subject, bundle_bytes(subject, subjects=[ours, ours]), BUNDLE)

    assert len(signatures(repository, subject)) == 1
    assert "twice" in rejections(repository, subject)[0].reason


def test_the_hint_is_no_proof_and_no_hindrance(repository, subject):
    repository.add_referrer(subject, bundle_bytes(subject, hint=OTHER.public.hint), BUNDLE)

    (signature,) = signatures(repository, subject)
    assert signature.verify([OTHER.public, KEY.public]) == KEY.public.id


def test_a_signature_that_contradicts_itself_is_rejected(repository, subject):
    named = envelope.Subject(
        {"sha256": subject.digest.hex}, "host/repo:v1", {"org.opencontainers.image.ref.name": "host/repo:v2"}
    )
    repository.add_referrer(subject, bundle_bytes(subject, subjects=[named]), BUNDLE)

    assert "two references" in rejections(repository, subject)[0].reason


@pytest.mark.parametrize("text", ["yesterday", "2026-11-22T10:00:00", "", "9999-12-31T23:59:59-23:59"])
def test_a_time_that_is_none_is_not_taken_for_no_time(repository, subject, text):
    named = envelope.Subject({"sha256": subject.digest.hex}, None, {"dev.modelpack.expires": text})
    repository.add_referrer(subject, bundle_bytes(subject, subjects=[named]), BUNDLE)

    assert "dev.modelpack.expires" in rejections(repository, subject)[0].reason


def test_attack_6_a_heap_of_referrers_is_not_read_to_its_end_and_does_not_hide_the_signature(repository, subject):
    for number in range(150):
        repository.add_referrer(subject, b"sbom %d" % number, "application/spdx+json", artifact_type="application/spdx")
    sign(repository, REFERENCE, subject, KEY, signed_at=WHEN, legacy=False)

    assert len(signatures(repository, subject)) == 1
    assert "only 100 were read" in rejections(repository, subject)[0].reason


def test_attack_6_no_more_than_100_things_that_pose_as_bundles_are_opened(repository, subject):
    for number in range(105):
        repository.add_referrer(subject, b"junk %d" % number, BUNDLE, artifact_type=BUNDLE)
    repository.reads.clear()

    assert len(rejections(repository, subject)) == 101
    assert len(repository.reads) == 100


def test_attack_6_no_more_than_100_layers_of_the_sig_tag_are_opened(repository, subject):
    junk = write_whole(repository, b"junk", simple_signing.PAYLOAD_TYPE)
    junk = replace(junk, annotations={"dev.cosignproject.cosign/signature": "AA=="})
    config = write_whole(repository, b"{}", simple_signing.CONFIG_TYPE)
    tag = simple_signing.signature_tag(subject.digest)
    repository.put_manifest(image_manifest(config=config, layers=[junk] * 105), tag=tag)
    repository.reads.clear()

    assert len(rejections(repository, subject)) == 101
    assert len(repository.reads) == 100
    with pytest.raises(InvalidContentError, match="holds 105 signatures"):
        sign(repository, REFERENCE, subject, KEY, signed_at=WHEN)


def test_attack_6_what_promises_to_be_huge_is_not_fetched(repository, subject):
    bomb = Descriptor(BUNDLE, Digest.of(b"bomb"), 5 << 20)
    repository.blobs[bomb.digest] = b"bomb"
    config = write_whole(repository, b"{}", "application/vnd.oci.empty.v1+json")
    repository.put_manifest(image_manifest(config=config, layers=[bomb], subject=subject, artifact_type=BUNDLE))
    huge = Descriptor("application/vnd.oci.image.manifest.v1+json", Digest.of(b"huge"), 1 << 40, artifact_type=BUNDLE)
    repository.advertised.append(huge)

    reasons = [one.reason for one in rejections(repository, subject)]
    assert len(reasons) == 2
    assert all("more than" in reason for reason in reasons)
    assert bomb.digest not in repository.reads


def test_attack_6_content_that_goes_on_after_its_size_is_rejected(repository, subject):
    sign(repository, REFERENCE, subject, KEY, signed_at=WHEN)
    for digest, content in repository.blobs.items():
        if b"dsseEnvelope" in content or b"critical" in content:
            repository.blobs[digest] = content + b" "

    assert signatures(repository, subject) == []
    assert all("longer than" in one.reason for one in rejections(repository, subject))


def test_attack_7_a_manifest_that_is_both_manifest_and_index_is_rejected(repository, subject):
    raw = strict_json.canonical(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": str(Digest.of(b"{}")), "size": 2},
            "layers": [],
            "manifests": [],
        }
    )
    descriptor = Descriptor.of(raw, "application/vnd.oci.image.manifest.v1+json")
    repository.manifests[descriptor.digest] = raw
    repository.list_referrers = lambda subject: [descriptor]

    assert "both" in rejections(repository, subject)[0].reason


def test_a_keyless_signature_is_found_whole_and_no_key_verifies_it(repository, subject):
    document = json.loads(bundle_bytes(subject))
    document["verificationMaterial"] = {"certificate": {"rawBytes": "AA=="}}
    raw = json.dumps(document).encode()
    repository.add_referrer(subject, raw, BUNDLE, artifact_type=BUNDLE)

    (candidate,) = find_signatures(repository, subject)
    assert isinstance(candidate, Signature)
    assert candidate.certified == raw
    with pytest.raises(InvalidSignatureError, match="keyless"):
        candidate.verify([KEY.public])


def test_other_things_that_hang_on_an_artifact_are_no_candidates(repository, subject):
    repository.add_referrer(subject, b"{}", "application/vnd.cyclonedx+json", artifact_type="application/vnd.cyclonedx")

    assert find_signatures(repository, subject) == []


def test_a_registry_that_does_not_answer_is_not_taken_for_one_without_signatures(repository, subject):
    def down(*_):
        raise RegistryUnavailableError("no answer")

    repository.resolve = down
    with pytest.raises(RegistryUnavailableError):
        find_signatures(repository, subject)


def test_no_control_character_of_a_stranger_reaches_a_reason(repository, subject):
    named = envelope.Subject({"sha256": subject.digest.hex}, "a\x1b[2J", {"org.opencontainers.image.ref.name": "b\x07"})
    repository.add_referrer(subject, bundle_bytes(subject, subjects=[named]), BUNDLE)

    assert rejections(repository, subject)[0].reason.isprintable()


@settings(max_examples=60, deadline=None)
@given(
    marker=st.sampled_from([b"dsseEnvelope", b"critical"]),
    place=st.floats(min_value=0, max_value=1, exclude_max=True),
    mask=st.integers(1, 255),
)
def test_a_byte_changed_anywhere_never_leaves_a_signature_that_verifies_with_other_claims(marker, place, mask):
    repository = MemoryRepository()
    subject = repository.add_artifact()
    sign(repository, REFERENCE, subject, KEY, signed_at=WHEN, annotations={"env": "prod"})
    honest = {(one.scheme, one.signed) for one in signatures(repository, subject)}
    digest, content = next((digest, blob) for digest, blob in repository.blobs.items() if marker in blob)
    position = int(place * len(content))
    tampered = bytes([*content[:position], content[position] ^ mask, *content[position + 1 :]])

    # The attacker owns the registry, so every digest fits again after the change.
    fits = str(Digest.of(tampered)).encode()
    repository.blobs[Digest.of(tampered)] = tampered
    for owner, raw in list(repository.manifests.items()):
        changed = raw.replace(str(digest).encode(), fits)
        del repository.manifests[owner]
        repository.manifests[Digest.of(changed)] = changed
        repository.tags = {
            tag: Digest.of(changed) if target == owner else target for tag, target in repository.tags.items()
        }

    for one in signatures(repository, subject):
        with suppress(InvalidSignatureError):
            one.verify([KEY.public])
            assert (one.scheme, one.signed) in honest


class Contended(MemoryRepository):
    """Another signer who read the tag before us writes it after we have looked whether ours is there."""

    stale: Digest | None = None
    looks_until_then = 0

    def resolve(self, selector):
        if selector.endswith(".sig") and self.stale and self.tags.get(selector) != self.stale:
            self.looks_until_then -= 1
            if self.looks_until_then == 0:
                self.tags[selector], self.stale = self.stale, None
        return super().resolve(selector)


# Before we see that it stayed, and before we read it back.
@pytest.mark.parametrize("looks_until_then", [1, 2])
def test_a_signature_that_a_signer_with_an_old_copy_overwrites_is_written_again(looks_until_then):
    repository = Contended()
    repository.looks_until_then = looks_until_then
    subject = repository.add_artifact()
    sign(repository, REFERENCE, subject, OTHER, signed_at=WHEN)
    tag = simple_signing.signature_tag(subject.digest)
    repository.stale = repository.tags[tag]

    signed = sign(repository, REFERENCE, subject, KEY, signed_at=WHEN)

    assert signed.written == ("bundle", "cosign-legacy")
    assert repository.stale is None, "the other signer came in between"
    assert len(repository.fetch_manifest(repository.resolve(tag)).layers) == 2


class FillingUp(MemoryRepository):
    """Others fill a tag up after it was looked at once."""

    full: Digest | None = None

    def resolve(self, selector):
        descriptor = super().resolve(selector)
        if selector.endswith(".sig") and self.full:
            self.tags[selector], self.full = self.full, None
        return descriptor


def test_a_signature_that_finds_no_room_any_more_is_not_said_to_be_written():
    repository = FillingUp()
    subject = repository.add_artifact()
    tag = simple_signing.signature_tag(subject.digest)
    config, payload = repository.fetch_manifest(subject).blobs
    for count in (tagged.MAX_TAG_LAYERS, 1):
        layers = [replace(payload, annotations={"signature": str(number)}) for number in range(count)]
        repository.put_manifest(image_manifest(config=config, layers=layers), tag=tag)
        repository.full = repository.full or repository.tags[tag]

    ours = Descriptor.of(b"ours", simple_signing.PAYLOAD_TYPE)
    with pytest.raises(InvalidContentError, match="holds 100 signatures"):
        tagged.append_layer(repository, tag, ours, b"ours")


# What others write with the same tools.


def put_layers(repository, subject, *layers, media_type=None):
    """The manifest under the .sig tag, as cosign and skopeo write it: payloads with their annotations."""
    config = write_whole(repository, b"{}", simple_signing.CONFIG_TYPE)
    written = []
    for content, annotations in layers:
        blob = write_whole(repository, content, simple_signing.PAYLOAD_TYPE)
        written.append(replace(blob, annotations=annotations))
    manifest = image_manifest(config=config, layers=written)
    if media_type:
        manifest = Manifest.parse(manifest.raw.replace(manifest.media_type.encode(), media_type.encode()))
    repository.put_manifest(manifest, tag=simple_signing.signature_tag(subject.digest))


def simple_layer(subject, *, key=KEY, reference="registry.example.com/team/tiny", optional=None, **also):
    critical = {
        "identity": {"docker-reference": reference},
        "image": {"docker-manifest-digest": str(subject.digest)},
        "type": "cosign container image signature",
    }
    content = strict_json.canonical({"critical": critical, "optional": optional})
    signature = base64.b64encode(key.sign(content)).decode()
    return content, {simple_signing.SIGNATURE_ANNOTATION: signature, **also}


def test_a_rekor_entry_and_a_timestamp_beside_a_signature_by_a_key_hinder_nothing(repository, subject):
    entry = {
        "SignedEntryTimestamp": "AA==",
        "Payload": {"body": "AA==", "integratedTime": 1, "logIndex": 1, "logID": ""},
    }
    beside = {
        "dev.sigstore.cosign/bundle": json.dumps(entry),
        "dev.sigstore.cosign/rfc3161timestamp": json.dumps({"SignedRFC3161Timestamp": "AA=="}),
    }
    put_layers(repository, subject, simple_layer(subject, **beside))

    (signature,) = signatures(repository, subject)
    assert signature.verify([KEY.public]) == KEY.public.id


def test_a_certificate_in_the_tag_scheme_is_named_and_the_signature_beside_it_counts(repository, subject):
    certificate = {"dev.sigstore.cosign/certificate": "-----BEGIN CERTIFICATE-----", "dev.sigstore.cosign/chain": ""}
    put_layers(repository, subject, simple_layer(subject, key=OTHER, **certificate), simple_layer(subject))

    (signature,) = signatures(repository, subject)
    assert signature.verify([KEY.public]) == KEY.public.id
    (rejection,) = rejections(repository, subject)
    assert rejection.is_foreign
    assert "keyless" in rejection.reason


def test_one_payload_signed_by_two_keys_is_two_signatures(repository, subject):
    put_layers(repository, subject, simple_layer(subject), simple_layer(subject, key=OTHER))

    found = signatures(repository, subject)
    assert [one.verify([KEY.public, OTHER.public]) for one in found] == [KEY.public.id, OTHER.public.id]


def test_what_skopeo_says_of_itself_is_read_over(repository, subject):
    optional = {"creator": "containers/image 5.36.2", "timestamp": 1795424616}
    layer = simple_layer(subject, reference="registry.example.com/team/tiny:v1", optional=optional)
    put_layers(repository, subject, layer)

    (signature,) = signatures(repository, subject)
    assert signature.claims.reference == "registry.example.com/team/tiny:v1"
    assert dict(signature.claims.annotations) == {"creator": "containers/image 5.36.2"}


def test_a_signature_in_a_manifest_of_dockers_type_is_found(repository, subject):
    put_layers(
        repository, subject, simple_layer(subject), media_type="application/vnd.docker.distribution.manifest.v2+json"
    )
    assert len(signatures(repository, subject)) == 1


def test_every_manifest_that_cosign_signed_recursively_has_its_own_signature(repository, subject):
    repository.put_manifest(image_index([repository.fetch_manifest(subject).descriptor]), tag="index")
    index = repository.resolve("index")
    for one in (index, subject):
        put_layers(repository, one, simple_layer(one))

    for one in (index, subject):
        (signature,) = signatures(repository, one)
        assert signature.digest == one.digest


@pytest.mark.parametrize(
    ("reference", "annotated", "bound_to"),
    [
        ("registry.example.com/team/tiny", "registry.example.com/team/tiny:v1", "registry.example.com/team/tiny:v1"),
        ("registry.example.com/team/tiny", "registry.example.com/team/tiny", "registry.example.com/team/tiny"),
        ("", "registry.example.com/team/tiny:v1", "registry.example.com/team/tiny:v1"),
        ("registry.example.com/team/tiny:v1", "registry.example.com/team/tiny", None),
        ("registry.example.com/team/tiny", "registry.example.com/team/tiny2:v1", None),
        ("registry.example.com", "registry.example.com:5000/team/tiny", None),
    ],
)
def test_cosign_binds_a_signature_to_a_tag_by_an_annotation(repository, subject, reference, annotated, bound_to):
    optional = {"org.opencontainers.image.ref.name": annotated}
    put_layers(repository, subject, simple_layer(subject, reference=reference, optional=optional))

    found = [one.claims.reference for one in signatures(repository, subject)]
    assert found == ([bound_to] if bound_to else [])


def test_a_log_entry_in_a_bundle_by_a_key_hinders_nothing(repository, subject):
    document = json.loads(bundle_bytes(subject))
    document["verificationMaterial"]["tlogEntries"] = [{"logIndex": "1", "canonicalizedBody": "AA=="}]
    document["verificationMaterial"]["timestampVerificationData"] = {"rfc3161Timestamps": []}
    repository.add_referrer(subject, json.dumps(document).encode(), BUNDLE, artifact_type=BUNDLE)

    (signature,) = signatures(repository, subject)
    assert signature.verify([KEY.public]) == KEY.public.id
