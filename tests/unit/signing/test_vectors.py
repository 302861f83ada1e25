"""What cosign and notation really wrote: every directory of tests/data/signing gives the answer it names."""

import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fakes.vectors import MemoryRepository

from modelpack.errors import InvalidSignatureError, UnsignedError, UntrustedError
from modelpack.oci.reference import Reference
from modelpack.policy import Policy
from modelpack.signing.keys import PublicKey
from modelpack.signing.signature import find_signatures
from modelpack.trust import check_trust

VECTORS = Path(__file__).parents[2] / "data" / "signing"
NOW = datetime(2026, 11, 23, tzinfo=UTC)


@dataclass(frozen=True)
class Expected:
    """The scheme of a signature that counts, or the error and a word of the reason."""

    scheme: str = ""
    error: type[UntrustedError] | None = None
    reason: str = ""


ATTESTATION = Expected(error=UnsignedError, reason="not a signature")
ATTESTATION_TAG = Expected(error=UnsignedError, reason="not signatures")
NOTATION = Expected(error=UnsignedError, reason="notation")

EXPECTED = {
    # Its signature is sound; what the attestation beside it says is for a rule that asks for attestations.
    "attested-test-failed": Expected("bundle"),
    "cosign-bundle": Expected("bundle"),
    "cosign-bundle-p384": Expected("bundle"),
    "cosign-bundle-p521": Expected("bundle"),
    "cosign-legacy-ed25519": Expected(error=InvalidSignatureError, reason="Ed25519ph"),
    "cosign-legacy-p384": Expected("cosign-legacy"),
    "cosign-two-signers": Expected("bundle"),
    "cosign2-attest-legacy-cdx": ATTESTATION_TAG,
    "cosign2-attest-legacy-test": ATTESTATION_TAG,
    "cosign2-sign-legacy-a": Expected("cosign-legacy"),
    "cosign2-sign-legacy-ed": Expected("cosign-legacy"),
    "cosign2-sign-legacy-p384": Expected("cosign-legacy"),
    "cosign3-attest-bundle-cdx": ATTESTATION,
    "cosign3-attest-bundle-slsa": ATTESTATION,
    "cosign3-attest-bundle-test": ATTESTATION,
    "cosign3-sign-bundle-a": Expected("bundle"),
    "cosign3-sign-bundle-ed": Expected(error=InvalidSignatureError, reason="Ed25519ph"),
    "cosign3-sign-bundle-rsa": Expected("bundle"),
    "cosign3-sign-legacy-a": Expected("cosign-legacy"),
    "neg-legacy-sig-replayed-to-other-digest": Expected(error=InvalidSignatureError, reason="it signs sha256:ce4fac68"),
    "neg-signed-by-other-key": Expected(error=InvalidSignatureError, reason="by another key"),
    "neg-unsigned": Expected(error=UnsignedError),
    "notation-cose": NOTATION,
    "notation-jws": NOTATION,
    "oras": Expected(error=UnsignedError),
    "skopeo": Expected("cosign-legacy"),
}


def test_every_vector_has_an_expected_answer():
    assert {path.parent.name for path in VECTORS.glob("*/case.json")} == set(EXPECTED)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_vector(name):
    expected = EXPECTED[name]
    case = json.loads((VECTORS / name / "case.json").read_text())
    repository = MemoryRepository.load(VECTORS / name)
    reference = Reference.parse(f"{case['repository']}@{case['digest']}")
    subject = repository.resolve(case["digest"])
    # The notation cases name no key: any will do, because nothing there is for a key.
    key = PublicKey.load((VECTORS / "keys" / f"{case.get('key', 'a')}.pub").read_bytes())

    if expected.error is None:
        verdict = check_trust(repository, reference, subject, Policy.of_keys([key]), now=NOW)
        assert [signer.key_id for signer in verdict.signers] == [key.id]
        assert verdict.formats == (expected.scheme,)
    else:
        with pytest.raises(UntrustedError) as caught:
            check_trust(repository, reference, subject, Policy.of_keys([key]), now=NOW)
        assert type(caught.value) is expected.error
        assert expected.reason in " ".join(reason for _, reason in caught.value.rejections)


@pytest.mark.parametrize(
    ("name", "said"),
    [("cosign3-sign-legacy-a", {"env": "prod"}), ("cosign-bundle", {"env": "prod", "team": "models"})],
)
def test_annotations_that_cosign_signed_are_read(name, said):
    repository = MemoryRepository.load(VECTORS / name)
    subject = repository.resolve("v1")

    (signature,) = find_signatures(repository, subject)
    assert signature.claims.annotations == said


def test_two_people_who_signed_with_cosign_in_its_two_forms_are_two():
    repository = MemoryRepository.load(VECTORS / "cosign-two-signers")
    case = json.loads((VECTORS / "cosign-two-signers" / "case.json").read_text())
    keys = [PublicKey.load((VECTORS / "keys" / f"cosign-two-signers{one}.pub").read_bytes()) for one in ("", "-other")]
    reference, subject = Reference.parse(f"{case['repository']}@{case['digest']}"), repository.resolve("v1")

    rules = [replace(rule, threshold=2) for rule in Policy.of_keys(keys).rules]
    verdict = check_trust(repository, reference, subject, replace(Policy.of_keys(keys), rules=tuple(rules)), now=NOW)

    assert {signer.key_id for signer in verdict.signers} == {key.id for key in keys}
    assert sorted(verdict.formats) == ["bundle", "cosign-legacy"]
