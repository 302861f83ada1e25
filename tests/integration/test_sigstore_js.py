"""Bundles against sigstore's own JavaScript packages, a second implementation of reading and writing them."""

import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from fakes.peers import node_peer
from fakes.sigstore import ISSUER, FakeSigstore, token
from fakes.vectors import MemoryRepository

from modelpack.oci.reference import Reference
from modelpack.signing.attestation import Attestation, attest, find_attestations
from modelpack.signing.envelope import BUNDLE_TYPE, Subject, statement
from modelpack.signing.keyless import KeylessSigner
from modelpack.signing.keys import PrivateKey
from modelpack.signing.signature import SIGN_PREDICATE, Signature, find_signatures, make_bundle

pytestmark = pytest.mark.peer

PACKAGES = (
    "@sigstore/bundle@4.0.0",
    "@sigstore/sign@4.1.1",
    "@sigstore/verify@3.1.1",
    "@sigstore/protobuf-specs@0.5.2",
)
SCRIPT = Path(__file__).parent / "sigstore_peer.mjs"
V1 = Reference.parse("registry.example.com/team/tiny:v1")
WHEN = datetime(2026, 11, 1, 10, 0, 0, tzinfo=UTC)
RELEASE = "https://ci.example.com/acme/models/release.yml@refs/tags/v1"


@pytest.fixture(scope="module")
def sigstore_js(request):
    """Runs a command of the script; the answer, and None where the packages refuse."""
    folder = node_peer(request.config, *PACKAGES)

    def run(*arguments):
        command = ["node", str(SCRIPT), *map(str, arguments)]
        ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
        if ended.returncode:
            assert "VerificationError" in ended.stderr or "no key is called" in ended.stderr, ended.stderr
            return None
        return json.loads(ended.stdout)

    return run


def make_key(kind):
    key = rsa.generate_private_key(65537, 2048) if kind == "rsa" else ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return PrivateKey.load(pem), pem


@pytest.mark.parametrize("kind", ["p256", "rsa"])
def test_sigstore_js_verifies_what_we_sign_and_finds_what_was_changed(sigstore_js, tmp_path, kind):
    key, _ = make_key(kind)
    subject = MemoryRepository().add_artifact()
    raw = make_bundle(V1, subject, key, signed_at=WHEN, annotations={"env": "prod"})
    (tmp_path / "bundle.json").write_bytes(raw)
    (tmp_path / "key.pub").write_bytes(key.public.pem)
    (tmp_path / "other.pub").write_bytes(make_key(kind)[0].public.pem)

    answer = sigstore_js("verify-key", tmp_path / "bundle.json", tmp_path / "key.pub")

    said = json.loads(answer["payload"])
    assert said["predicateType"] == SIGN_PREDICATE
    assert said["subject"][0]["digest"] == {"sha256": subject.digest.hex}
    assert sigstore_js("verify-key", tmp_path / "bundle.json", tmp_path / "other.pub") is None
    changed = json.loads(raw)
    signature = changed["dsseEnvelope"]["signatures"][0]
    signature["sig"] = signature["sig"][:12] + ("A" if signature["sig"][12] != "A" else "B") + signature["sig"][13:]
    (tmp_path / "bundle.json").write_text(json.dumps(changed))
    assert sigstore_js("verify-key", tmp_path / "bundle.json", tmp_path / "key.pub") is None


def test_sigstore_js_verifies_our_attestations(sigstore_js, tmp_path):
    key, _ = make_key("p256")
    repository = MemoryRepository()
    subject = repository.add_artifact()
    attest(repository, V1, subject, key, predicate_type="urn:example:x", predicate={"a": 1}, created=WHEN)
    (referrer,) = repository.list_referrers(subject.digest)
    (tmp_path / "bundle.json").write_bytes(repository.blobs[repository.fetch_manifest(referrer).layers[0].digest])
    (tmp_path / "key.pub").write_bytes(key.public.pem)

    answer = sigstore_js("verify-key", tmp_path / "bundle.json", tmp_path / "key.pub")

    assert json.loads(answer["payload"])["predicate"] == {"a": 1}


@pytest.mark.parametrize("kind", ["p256", "rsa"])
@pytest.mark.parametrize("predicate_type", [SIGN_PREDICATE, "urn:example:x"])
def test_we_verify_what_sigstore_js_signs(sigstore_js, tmp_path, kind, predicate_type):
    key, pem = make_key(kind)
    repository = MemoryRepository()
    subject = repository.add_artifact()
    said = statement([Subject({"sha256": subject.digest.hex}, V1.tagged, {})], predicate_type, {})
    (tmp_path / "statement.json").write_bytes(said)
    (tmp_path / "key.pem").write_bytes(pem)
    (tmp_path / "key.pub").write_bytes(key.public.pem)

    bundle = sigstore_js("sign", tmp_path / "statement.json", tmp_path / "key.pem", tmp_path / "key.pub")

    repository.add_referrer(subject, json.dumps(bundle).encode(), BUNDLE_TYPE, artifact_type=BUNDLE_TYPE)
    find = find_signatures if predicate_type == SIGN_PREDICATE else find_attestations
    (found,) = find(repository, subject)
    assert isinstance(found, Signature | Attestation)
    assert found.verify([make_key(kind)[0].public, key.public]) == key.public.id
    assert found.hint == key.public.hint


def test_sigstore_js_verifies_what_a_ci_job_signs_in_a_private_instance(sigstore_js, tmp_path):
    repository = MemoryRepository()
    subject = repository.add_artifact()
    with FakeSigstore() as sigstore, FakeSigstore() as other:
        signer = KeylessSigner(token(RELEASE), json.dumps(sigstore.trust_config()).encode())
        signer.sign(repository, V1, subject, signed_at=WHEN)
    (found,) = find_signatures(repository, subject)
    assert isinstance(found, Signature)
    (tmp_path / "bundle.json").write_bytes(found.certified)
    (tmp_path / "root.json").write_text(json.dumps(sigstore.trusted_root()))
    (tmp_path / "other.json").write_text(json.dumps(other.trusted_root()))

    answer = sigstore_js("verify-identity", tmp_path / "bundle.json", tmp_path / "root.json")

    assert answer["identity"]["subjectAlternativeName"] == RELEASE
    assert answer["identity"]["extensions"]["issuer"] == ISSUER
    assert sigstore_js("verify-identity", tmp_path / "bundle.json", tmp_path / "other.json") is None
