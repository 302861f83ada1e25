"""Keyless signatures: other people's bundles against the public roots, and our own against a private sigstore."""

import base64
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fakes.sigstore import ISSUER, FakeSigstore, token
from fakes.vectors import MemoryRepository

from modelpack.errors import InvalidInputError, InvalidSignatureError, UnavailableError, UnsupportedError
from modelpack.oci.digest import Digest
from modelpack.oci.reference import Reference
from modelpack.signing.candidate import Claims, Evidence, Rejection, Signature
from modelpack.signing.envelope import Bundle
from modelpack.signing.keyless import CertifiedIdentity, KeylessSigner, KeylessVerifier, ambient_token
from modelpack.signing.signature import find_signatures

DATA = Path(__file__).parents[2] / "data" / "keyless"
BEACON = CertifiedIdentity(
    "https://token.actions.githubusercontent.com",
    "https://github.com/sigstore-conformance/extremely-dangerous-public-oidc-beacon/.github/workflows/"
    "extremely-dangerous-oidc-beacon.yml@refs/heads/main",
)
AUTHOR = CertifiedIdentity("https://github.com/login/oauth", "cody@soyland.com")
RELEASE = "https://ci.example.com/acme/models/release.yml@refs/tags/v1"
VECTORS = {
    "happy-path-intoto-in-dsse-v3": BEACON,
    "rekor2-dsse-happy-path": BEACON,
    "oci-attestation": AUTHOR,
    "private-first-entry": CertifiedIdentity(ISSUER, RELEASE),
    "dsse-invalid-sig_fail": None,
    "dsse-mismatch-envelope_fail": None,
    "dsse-mismatch-sig_fail": None,
    "rekor2-dsse-invalid-sig_fail": None,
    "rekor2-dsse-mismatch-envelope_fail": None,
    "rekor2-dsse-mismatch-sig_fail": None,
}

V1 = Reference.parse("registry.example.com/team/tiny:v1")
WHEN = datetime(2026, 11, 1, 10, 0, 0, tzinfo=UTC)


def evidence(raw: bytes) -> Evidence:
    bundle = Bundle.parse(raw)
    return Evidence(
        "a file", "bundle", Digest.of(b""), Claims(), bundle.envelope.signed, bundle.envelope.signature,
        certified=bundle.certified,
    )  # fmt: skip


def verifier_for(name: str) -> KeylessVerifier:
    root = DATA / f"{name.partition('-')[0]}-trusted_root.json"
    return KeylessVerifier(root.read_bytes() if root.exists() else None)


def test_every_vector_is_run():
    assert {path.name.removesuffix(".sigstore.json") for path in DATA.glob("*.sigstore.json")} == set(VECTORS)


@pytest.mark.parametrize(("name", "identity"), VECTORS.items(), ids=VECTORS)
def test_bundles_of_others_verify_or_not_as_they_should(name, identity):
    given = evidence((DATA / f"{name}.sigstore.json").read_bytes())

    if identity is None:
        with pytest.raises(InvalidSignatureError, match="keyless"):
            verifier_for(name).verify(given)
    else:
        assert verifier_for(name).verify(given) == identity


def test_a_bundle_of_one_instance_means_nothing_to_another():
    raw = (DATA / "happy-path-intoto-in-dsse-v3.sigstore.json").read_bytes()

    with pytest.raises(InvalidSignatureError):
        verifier_for("rekor2").verify(evidence(raw))


@pytest.mark.parametrize(
    "path",
    [
        ("verificationMaterial", "certificate", "rawBytes"),
        ("verificationMaterial", "tlogEntries", 0, "inclusionPromise", "signedEntryTimestamp"),
        ("verificationMaterial", "tlogEntries", 0, "canonicalizedBody"),
        ("dsseEnvelope", "payload"),
        ("dsseEnvelope", "signatures", 0, "sig"),
    ],
    ids=lambda path: str(path[-1]),
)
def test_one_flipped_bit_anywhere_that_counts_is_found(path):
    document = json.loads((DATA / "oci-attestation.sigstore.json").read_bytes())
    *steps, last = path
    place = document
    for step in steps:
        place = place[step]
    content = bytearray(base64.b64decode(place[last]))
    content[len(content) // 2] ^= 1
    place[last] = base64.b64encode(content).decode()

    with pytest.raises(InvalidSignatureError):
        KeylessVerifier().verify(evidence(json.dumps(document).encode()))


@pytest.mark.parametrize("borrowed", ["tlogEntries", "certificate"])
def test_a_genuine_certificate_with_the_genuine_log_entry_of_another_signature_is_found(borrowed):
    """Both bundles verify by the same public instance; what one of them borrows from the other is sound by itself."""
    ours, theirs = (
        json.loads((DATA / f"{name}.sigstore.json").read_bytes())
        for name in ("happy-path-intoto-in-dsse-v3", "oci-attestation")
    )
    material = ours["verificationMaterial"]
    material[borrowed] = theirs["verificationMaterial"][borrowed]

    with pytest.raises(InvalidSignatureError, match="keyless"):
        KeylessVerifier().verify(evidence(json.dumps(ours).encode()))


def test_what_was_verified_must_be_what_was_read():
    raw = (DATA / "oci-attestation.sigstore.json").read_bytes()
    given = evidence(raw)
    other = Evidence(given.where, given.scheme, given.digest, given.claims, b"another", given.signature, certified=raw)

    with pytest.raises(InvalidSignatureError, match="not what was read"):
        KeylessVerifier().verify(other)


def test_the_cache_of_a_home_is_no_trusted_root(tmp_path, monkeypatch):
    # sigstore's own offline mode believes what lies in this folder; whoever may write there would be believed.
    name = "https%3A%2F%2Ftuf-repo-cdn.sigstore.dev"
    for folder in (".local/share", ".cache"):
        cache = tmp_path / folder / "sigstore-python" / "tuf" / name
        cache.mkdir(parents=True)
        (cache / "trusted_root.json").write_bytes((DATA / "rekor2-trusted_root.json").read_bytes())
    monkeypatch.setenv("HOME", str(tmp_path))
    before = sorted(tmp_path.rglob("*"))

    raw = (DATA / "oci-attestation.sigstore.json").read_bytes()
    assert KeylessVerifier().verify(evidence(raw)) == AUTHOR
    assert sorted(tmp_path.rglob("*")) == before


def test_a_root_that_is_none_is_named():
    raw = (DATA / "oci-attestation.sigstore.json").read_bytes()

    for root in (b"", b"{}", b'{"mediaType": "x"}'):
        with pytest.raises(InvalidInputError, match="trusted root"):
            KeylessVerifier(root).verify(evidence(raw))


def test_without_the_extra_the_message_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] in ("sigstore", "sigstore_models")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sigstore", None)
    raw = (DATA / "oci-attestation.sigstore.json").read_bytes()

    with pytest.raises(UnsupportedError, match=r"modelpack-oci\[keyless\]"):
        KeylessVerifier().verify(evidence(raw))
    with pytest.raises(UnsupportedError, match="keyless"):
        ambient_token()


def test_what_is_signed_keyless_is_read_back_and_verified():
    repository = MemoryRepository()
    subject = repository.add_artifact()
    with FakeSigstore() as sigstore:
        config = json.dumps(sigstore.trust_config()).encode()
        signer = KeylessSigner(token(RELEASE), config)
        assert RELEASE in signer.disclosure
        assert sigstore.url in signer.disclosure

        signed = signer.sign(repository, V1, subject, signed_at=WHEN, annotations={"build": "7"})

        assert signed.identity == CertifiedIdentity(ISSUER, RELEASE)
        assert (signed.reference, signed.log_index, len(sigstore.log)) == (V1.tagged, 1, 1)
    (found,) = find_signatures(repository, subject)
    assert isinstance(found, Signature)
    assert (found.claims.reference, found.claims.signed_at) == (V1.tagged, WHEN)
    assert dict(found.claims.annotations) == {"build": "7"}
    root = json.dumps(sigstore.trusted_root()).encode()
    assert KeylessVerifier(root).verify(found) == signed.identity
    with FakeSigstore() as other, pytest.raises(InvalidSignatureError):
        KeylessVerifier(json.dumps(other.trusted_root()).encode()).verify(found)
    with pytest.raises(InvalidSignatureError):
        KeylessVerifier().verify(found)


def test_a_bundle_moved_to_another_artifact_is_turned_away():
    repository = MemoryRepository()
    subject, evil = repository.add_artifact(), repository.add_artifact(b"GGUF evil", tag="evil")
    with FakeSigstore() as sigstore:
        signer = KeylessSigner(token(RELEASE), json.dumps(sigstore.trust_config()).encode())
        signer.sign(repository, V1, subject, signed_at=WHEN)
    (referrer,) = repository.list_referrers(subject.digest)
    layer = repository.fetch_manifest(referrer).layers[0]
    repository.add_referrer(evil, repository.blobs[layer.digest], layer.media_type, artifact_type=layer.media_type)

    (candidate,) = find_signatures(repository, evil)
    assert isinstance(candidate, Rejection)
    assert "another digest" in candidate.reason


def test_services_that_do_not_answer_are_unavailable_and_leave_nothing_behind():
    repository = MemoryRepository()
    subject = repository.add_artifact()
    with FakeSigstore() as sigstore:
        config = json.dumps(sigstore.trust_config()).encode()
    signer = KeylessSigner(token(RELEASE), config)
    before = dict(repository.manifests)

    with pytest.raises(UnavailableError, match="keyless signing failed"):
        signer.sign(repository, V1, subject, signed_at=WHEN)
    assert repository.manifests == before


def test_a_token_or_a_configuration_that_is_none_is_named():
    with FakeSigstore() as sigstore:
        config = json.dumps(sigstore.trust_config()).encode()
    with pytest.raises(InvalidInputError, match="OIDC token cannot be used"):
        KeylessSigner("no.token.at-all", config)
    for broken in (b"", b"{}", b"\xff"):
        with pytest.raises(InvalidInputError, match="trust configuration"):
            KeylessSigner(token(RELEASE), broken)


def test_outside_of_ci_there_is_no_token(monkeypatch):
    for name in ("GITHUB_ACTIONS", "GITLAB_CI", "CIRCLECI", "BUILDKITE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InvalidInputError, match="OIDC token"):
        ambient_token()


def test_a_gitlab_job_finds_its_token(monkeypatch):
    monkeypatch.setenv("GITLAB_CI", "true")
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    monkeypatch.setenv("SIGSTORE_ID_TOKEN", token(RELEASE))

    assert ambient_token().count(".") == 2


def test_the_first_entry_of_a_log_needs_no_index_and_no_hashes():
    """As cosign writes it: protobuf's JSON leaves out what is 0 or empty."""
    repository = MemoryRepository()
    subject = repository.add_artifact()
    with FakeSigstore(is_new=True) as sigstore:
        config = json.dumps(sigstore.trust_config()).encode()
        KeylessSigner(token(RELEASE), config).sign(repository, V1, subject, signed_at=WHEN)
        root = json.dumps(sigstore.trusted_root()).encode()
    (found,) = find_signatures(repository, subject)
    assert isinstance(found, Signature)
    assert found.certified
    bundle = json.loads(found.certified)
    (entry,) = bundle["verificationMaterial"]["tlogEntries"]
    assert entry.pop("logIndex") == entry["inclusionProof"].pop("logIndex") == "0"
    assert entry["inclusionProof"].pop("hashes") == []

    raw = json.dumps(bundle).encode()
    assert KeylessVerifier(root).verify(evidence(raw)) == CertifiedIdentity(ISSUER, RELEASE)

    entry["inclusionProof"]["treeSize"] = "2"
    with pytest.raises(InvalidSignatureError):
        KeylessVerifier(root).verify(evidence(json.dumps(bundle).encode()))
