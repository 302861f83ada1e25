"""The answer to whether an artifact may be used, with its reasons: what a receipt keeps and ``--json`` shows."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from modelpack.errors import InvalidContentError
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import Descriptor
from modelpack.oci.reference import Reference
from modelpack.policy import Policy
from modelpack.signing.candidate import Rejection, parse_rfc3339, rfc3339


@dataclass(frozen=True, slots=True)
class Signer:
    """Who counted, by the name that the policy gives them. ``key_id`` of an identity is subject and issuer."""

    name: str
    key_id: str

    def to_json(self) -> dict[str, str]:
        return {"name": self.name, "keyId": self.key_id}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Signer":
        return cls(str(document["name"]), str(document["keyId"]))


@dataclass(frozen=True, slots=True)
class Attested:
    """An attestation that a rule asked for, and by whom it was found."""

    type: str
    signers: tuple[Signer, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why an artifact may be used: what the store keeps as a receipt, and what ``--json`` shows.

    ``signers`` is empty where nothing was verified: the policy let it pass, or a person did (``is_verified``).
    ``signed_at`` is the newest claim among the signatures that counted, those made for another tag left out;
    ``valid_until`` the first moment at which one of them stops counting (a signature's expiry, a key's ``not_after``, a
    rule's ``max_age``).
    """

    reference: str
    digest: Digest
    rule: str
    policy: Digest | None
    checked_at: datetime
    signers: tuple[Signer, ...] = ()
    formats: tuple[str, ...] = ()
    signed_at: datetime | None = None
    valid_until: datetime | None = None
    attestations: tuple[Attested, ...] = ()
    rejections: tuple[Rejection, ...] = ()

    @property
    def is_verified(self) -> bool:
        return bool(self.signers)

    @classmethod
    def skipped(cls, reference: Reference, subject: Descriptor, *, now: datetime) -> "Verdict":
        """A person said not to look. Recorded, so that nobody later takes it for a verification."""
        return cls(str(reference), subject.digest, "verification skipped by the user", None, now)

    def holds(self, policy: Policy | None, *, now: datetime) -> bool:
        """Whether this receipt still says what ``check_trust`` would: verified, by this policy, and not run out.

        Without a policy, what was decided with ``--key`` or by a policy that is gone stays decided.
        """
        is_current = self.valid_until is None or now < self.valid_until
        return self.is_verified and is_current and (policy is None or self.policy == policy.digest)

    def to_json(self) -> dict[str, Any]:
        return {
            "reference": self.reference,
            "digest": str(self.digest),
            "verified": self.is_verified,
            "rule": self.rule,
            "policy": str(self.policy) if self.policy else None,
            "signers": [signer.to_json() for signer in self.signers],
            "formats": list(self.formats),
            "signedAt": rfc3339(self.signed_at) if self.signed_at else None,
            "validUntil": rfc3339(self.valid_until) if self.valid_until else None,
            "checkedAt": rfc3339(self.checked_at),
            "attestations": [
                {"type": one.type, "signers": [signer.to_json() for signer in one.signers]} for one in self.attestations
            ],
            "rejections": [
                {"where": one.where, "reason": one.reason, "foreign": one.is_foreign} for one in self.rejections
            ],
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Verdict":
        """Read a receipt. Raises InvalidContentError for one that ``to_json`` did not write."""
        try:
            signed_at, valid_until, policy = document["signedAt"], document["validUntil"], document["policy"]
            verdict = cls(
                reference=str(document["reference"]),
                digest=Digest(document["digest"]),
                rule=str(document["rule"]),
                policy=Digest(policy) if policy else None,
                checked_at=parse_rfc3339(document["checkedAt"]),
                signers=tuple(Signer.from_json(one) for one in document["signers"]),
                formats=tuple(str(one) for one in document["formats"]),
                signed_at=parse_rfc3339(signed_at) if signed_at else None,
                valid_until=parse_rfc3339(valid_until) if valid_until else None,
                attestations=tuple(
                    Attested(str(one["type"]), tuple(Signer.from_json(signer) for signer in one["signers"]))
                    for one in document["attestations"]
                ),
                rejections=tuple(
                    Rejection(str(one["where"]), str(one["reason"]), is_foreign=one["foreign"] is True)
                    for one in document["rejections"]
                ),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidContentError(f"receipt is malformed: {error!s:.80}") from error
        if document.get("verified") is not verdict.is_verified:
            raise InvalidContentError("receipt is malformed: verified and signers disagree")
        return verdict
