"""All that hangs on an artifact is shown, as what it is, and nobody is named who did not sign."""

from datetime import UTC, datetime

import pytest
from fakes.vectors import MemoryRepository

from modelpack.errors import RegistryUnavailableError
from modelpack.evidence.tree import build_tree
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import Descriptor, image_manifest
from modelpack.oci.reference import Reference
from modelpack.oci.target import write_whole
from modelpack.signing import envelope
from modelpack.signing.attestation import attest
from modelpack.signing.keys import PrivateKey
from modelpack.signing.signature import sign

REFERENCE = Reference.parse("registry.example.com/team/tiny:v1")
WHEN = datetime(2026, 11, 22, 10, 0, 0, tzinfo=UTC)
TEAM = PrivateKey.generate()
STRANGER = PrivateKey.generate()
EVAL = "https://example.com/eval/v1"


@pytest.fixture
def repository():
    return MemoryRepository()


@pytest.fixture
def subject(repository):
    return repository.add_artifact()


def say(repository, subject, key, *, legacy=False):
    attest(
        repository, REFERENCE, subject, key, predicate_type=EVAL, predicate={"by": key.public.id}, created=WHEN,
        legacy=legacy,
    )  # fmt: skip


def shown(repository, subject, **signers):
    tree = build_tree(repository, subject, {name: key.public for name, key in signers.items()})
    assert tree.manifest.digest == subject.digest
    return [(one.kind, one.type, one.format, one.signer) for one in tree.attachments]


def test_nothing_hangs_on_an_artifact_that_was_just_pushed(repository, subject):
    assert shown(repository, subject) == []


def test_signatures_and_attestations_are_shown_in_both_forms_with_who_made_them(repository, subject):
    sign(repository, REFERENCE, subject, TEAM, signed_at=WHEN)
    say(repository, subject, TEAM, legacy=True)
    say(repository, subject, STRANGER)

    assert sorted(shown(repository, subject, team=TEAM), key=str) == sorted(
        [
            ("signature", None, "bundle", "team"),
            ("signature", None, "cosign-legacy", "team"),
            ("attestation", EVAL, "bundle", "team"),
            ("attestation", EVAL, "bundle", None),
            ("attestation", EVAL, "cosign-legacy", "team"),
        ],
        key=str,
    )


def test_without_known_keys_nobody_is_named_whatever_the_hint_says(repository, subject):
    sign(repository, REFERENCE, subject, TEAM, signed_at=WHEN, legacy=False)

    (attachment,) = build_tree(repository, subject).attachments
    assert attachment.signer is None
    assert attachment.key_hint == TEAM.public.id
    assert attachment.signed_at == "2026-11-22T10:00:00Z"
    assert attachment.reference == "registry.example.com/team/tiny:v1"


def test_a_hint_that_lies_names_nobody(repository, subject):
    named = envelope.Subject({"sha256": subject.digest.hex}, None, {})
    unsigned = envelope.Envelope(envelope.statement([named], EVAL, {}), b"")
    forged = envelope.Envelope(unsigned.payload, STRANGER.sign(unsigned.signed))
    bundle = envelope.Bundle(forged, TEAM.public.hint).to_bytes()
    repository.add_referrer(subject, bundle, envelope.BUNDLE_TYPE, artifact_type=envelope.BUNDLE_TYPE)

    assert shown(repository, subject, team=TEAM) == [("attestation", EVAL, "bundle", None)]


def test_other_referrers_are_shown_by_their_type_and_an_old_bom_tag_by_its_name(repository, subject):
    repository.add_referrer(subject, b"imatrix", "application/octet-stream", artifact_type="application/vnd.x.imatrix")
    config = write_whole(repository, b"{}", "application/vnd.oci.image.config.v1+json")
    repository.put_manifest(image_manifest(config=config, layers=[]), tag=f"sha256-{subject.digest.hex}.sbom")

    assert shown(repository, subject) == [
        ("referrer", "application/vnd.x.imatrix", None, None),
        ("tag", None, None, None),
    ]


def test_what_cannot_be_read_is_shown_once_with_its_reason(repository, subject):
    repository.add_referrer(subject, b"{}", envelope.BUNDLE_TYPE, artifact_type=envelope.BUNDLE_TYPE)
    repository.add_referrer(
        subject, b"jws", "application/jose+json", config_type="application/vnd.cncf.notary.signature"
    )
    repository.advertised.append(Descriptor("application/vnd.oci.image.manifest.v1+json", Digest.of(b"gone"), 4))

    attachments = build_tree(repository, subject).attachments
    assert [one.kind for one in attachments] == ["unreadable"] * 3
    assert len({one.where for one in attachments}) == 3
    assert any("notation" in (one.problem or "") for one in attachments)
    assert any("no manifest" in (one.problem or "") for one in attachments)


def test_a_registry_that_does_not_answer_is_no_tree_without_branches(repository, subject):
    def silent(digest):
        raise RegistryUnavailableError("no answer")

    repository.list_referrers = silent
    with pytest.raises(RegistryUnavailableError):
        build_tree(repository, subject)
