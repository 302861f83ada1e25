"""Registries that want secrets, or hand out signatures that are not theirs to give: attacks 8 to 14."""

import base64
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from evil_manifests import NAME
from fakes.registry import FakeRegistry

from modelpack.oci.digest import Digest
from modelpack.oci.manifest import Manifest

VECTORS = Path(__file__).parents[1] / "data" / "signing"
SECRET = "s3cret-canary"


@pytest.fixture
def thief():
    with FakeRegistry() as fake:
        yield fake


def logged_in(home, address):
    """A Docker configuration with alice's password for a registry."""
    (home / ".docker").mkdir(exist_ok=True)
    auth = base64.b64encode(f"alice:{SECRET}".encode()).decode()
    (home / ".docker" / "config.json").write_text(json.dumps({"auths": {address: {"auth": auth}}}))


def secrets_seen_by(registry):
    return [one.path for one in registry.requests if one.authorization or SECRET in one.path]


def test_row_08_a_token_realm_elsewhere_gets_no_password(thief, home, pull):
    with FakeRegistry(auth="token", realm=f"{thief.url}/token") as registry:
        logged_in(home, registry.address)

        refused = pull(f"{registry.address}/{NAME}:v1")

        assert refused.code == 4, refused.stderr
        assert thief.requests == []


@pytest.mark.parametrize(
    "elsewhere",
    ["http://{thief}{path}", "http://{registry}@{thief}{path}", "http://{thief}\\@{registry}{path}", "//{thief}{path}"],
    ids=["plainly", "as a user", "in what one reader takes for a user", "without a scheme"],
)
def test_row_09_an_upload_location_elsewhere_gets_neither_token_nor_weights(
    thief, home, published, modelpack, tmp_path, elsewhere
):
    with FakeRegistry(auth="basic") as registry:
        logged_in(home, registry.address)
        registry.location = lambda path: elsewhere.format(thief=thief.address, registry=registry.address, path=path)
        reference = f"{registry.address}/{NAME}:v1"
        store = ("--store", tmp_path / "author-store")
        assert modelpack("tag", published.reference, reference, *store).code == 0

        refused = modelpack("push", reference, *store)

        assert refused.code == 1, refused.stderr
        assert "another host" in refused.stderr
        assert thief.requests == []


def test_row_10_a_blob_redirect_takes_no_authorization_along(thief, home, published, registry, pull, key_pair):
    registry.auth = "basic"
    logged_in(home, registry.address)
    weights = str(published.weights)
    thief.blobs[weights] = registry.blobs[weights]
    registry.fail("GET", f"blobs/{weights}", times=9, status=307,
                  headers={"Location": f"{thief.url}/v2/x/blobs/{weights}?X-Amz-Signature=canary"})  # fmt: skip

    pulled = pull(published.reference)

    assert pulled.code == 0, pulled.stderr
    assert thief.count("GET", weights) >= 1
    assert secrets_seen_by(thief) == []
    assert any(one.authorization for one in registry.requests)


def serve_vector(registry: FakeRegistry, case: str) -> tuple[str, Path]:
    """A repository that cosign wrote; the reference of its artifact, and the key that it is asked for with."""
    folder = VECTORS / case
    facts = json.loads((folder / "case.json").read_text())
    for path in (folder / "manifests").iterdir():
        raw = path.read_bytes()
        media_type = json.loads(raw).get("mediaType", "application/vnd.oci.image.manifest.v1+json")
        registry.manifests[NAME, str(Digest.of(raw))] = (media_type, raw)
    for path in (folder / "blobs").iterdir():
        registry.blobs[f"sha256:{path.name}"] = path.read_bytes()
    for tag, digest in json.loads((folder / "tags.json").read_text()).items():
        registry.tags[NAME, tag] = digest
    return f"{registry.address}/{NAME}@{facts['digest']}", VECTORS / "keys" / f"{facts['key']}.pub"


def checked(modelpack, reference, key):
    return modelpack("verify", reference, "--trust-only", "--key", key, "--json")


def test_row_11_a_signature_of_another_artifact_is_refused(registry, modelpack, published, key_pair, pull, store):
    other, _ = serve_vector(registry, "neg-legacy-sig-replayed-to-other-digest")
    assert checked(modelpack, other, VECTORS / "keys" / "a.pub").code == 6

    # The genuine signature, moved by the registry to something that it prefers.
    evil = registry.add_artifact(NAME, b"evil weights", tag="evil")
    genuine, moved = (f"sha256-{digest.hex}.sig" for digest in (published.manifest.digest, evil.digest))
    registry.tags[NAME, moved] = registry.tags[NAME, genuine]
    for (name, digest), (media_type, raw) in list(registry.manifests.items()):
        if Manifest.parse(raw).subject:
            turned = raw.replace(published.manifest.digest.hex.encode(), evil.digest.hex.encode())
            registry.manifests[name, str(Digest.of(turned))] = (media_type, turned)
            assert digest
    refused = pull(f"{registry.address}/{NAME}:evil")
    assert refused.code == 6
    assert "another digest" in refused.stderr + refused.stdout
    assert store().list() == []


@pytest.mark.parametrize(
    "case", ["cosign3-attest-bundle-test", "cosign3-attest-bundle-slsa", "cosign2-attest-legacy-cdx"]
)
def test_row_12_an_attestation_is_no_signature(registry, modelpack, case):
    reference, key = serve_vector(registry, case)

    assert checked(modelpack, reference, key).code == 6


def test_row_13_what_is_advertised_about_a_predicate_is_not_believed(registry, modelpack):
    reference, key = serve_vector(registry, "cosign3-attest-bundle-test")
    wanted = b"https://sigstore.dev/cosign/sign/v1"
    changed = 0
    for (name, _), (media_type, raw) in list(registry.manifests.items()):
        turned = raw.replace(b"https://in-toto.io/attestation/test-result/v0.1", wanted)
        changed += turned != raw
        registry.manifests[name, str(Digest.of(turned))] = (media_type, turned)
    assert changed

    refused = checked(modelpack, reference, key)

    assert refused.code == 6
    assert "not a signature" in refused.stdout


def certified(bundle: bytes, *, entries: list[object]) -> bytes:
    """The bundle of a key, re-dressed as keyless: a self-made certificate with the identity that is trusted."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding

    key = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([]), datetime.now(UTC)
    issuer = b"\x0c\x13https://issuer.test"  # a DER UTF8String
    made = (
        x509.CertificateBuilder(
            name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(hours=1)
        )
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier("https://ci.test/w")]), critical=True
        )
        .add_extension(
            x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.8"), issuer), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    document = json.loads(bundle)
    payload = base64.b64decode(document["dsseEnvelope"]["payload"])
    signed = b"DSSEv1 28 application/vnd.in-toto+json %d %s" % (len(payload), payload)
    signature = key.sign(signed, ec.ECDSA(hashes.SHA256()))
    document["dsseEnvelope"]["signatures"] = [{"sig": base64.b64encode(signature).decode()}]
    document["verificationMaterial"] = {
        "certificate": {"rawBytes": base64.b64encode(made.public_bytes(Encoding.DER)).decode()},
        "tlogEntries": entries,
    }
    return json.dumps(document).encode()


FOREIGN_ENTRY = {
    "logIndex": "1",
    "logId": {"keyId": base64.b64encode(bytes(32)).decode()},
    "kindVersion": {"kind": "dsse", "version": "0.0.1"},
    "integratedTime": "1790000000",
    "inclusionPromise": {"signedEntryTimestamp": base64.b64encode(b"x" * 70).decode()},
    "inclusionProof": {
        "logIndex": "1",
        "rootHash": base64.b64encode(bytes(32)).decode(),
        "treeSize": "2",
        "hashes": [base64.b64encode(bytes(32)).decode()],
        "checkpoint": {"envelope": "rekor.test\n2\nAAAA\n\n- rekor.test AAAA\n"},
    },
    "canonicalizedBody": base64.b64encode(b'{"apiVersion":"0.0.1","kind":"dsse","spec":{}}').decode(),
}


@pytest.mark.parametrize("entries", [[], [FOREIGN_ENTRY]], ids=["no entry", "an entry of something else"])
def test_row_14_an_identity_without_a_log_entry_for_this_artifact_does_not_count(
    registry, published, developer, home, tmp_path, entries
):
    policy = tmp_path / "policy.toml"
    policy.write_text(
        'version = 1\n[identities.ci]\nissuer = "https://issuer.test"\nsubject = "https://ci.test/w"\n'
        f'[[rule]]\nmatch = "{registry.address}/**"\nsigners = ["ci"]\n'
    )
    replaced = 0
    for digest, content in list(registry.blobs.items()):
        if b"dsseEnvelope" in content:
            forged = certified(content, entries=entries)
            registry.blobs[str(Digest.of(forged))] = forged
            for (name, at), (media_type, raw) in list(registry.manifests.items()):
                if digest.encode() in raw:
                    turned = raw.replace(digest.encode(), str(Digest.of(forged)).encode())
                    turned = turned.replace(b'"size":%d}' % len(content), b'"size":%d}' % len(forged))
                    registry.manifests[name, str(Digest.of(turned))] = (media_type, turned)
                    del registry.manifests[name, at]
                    replaced += 1
    assert replaced == 1

    refused = developer("verify", published.reference, "--trust-only", "--policy", policy, "--json")

    assert refused.code == 6, refused.stderr
    reasons = " ".join(one["reason"] for one in json.loads(refused.stdout)["error"]["rejections"])
    assert "bytes where" not in reasons
