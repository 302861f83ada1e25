"""Whether an artifact may be used: its signatures, held against the policy. Reads a few KiB, never a large blob."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from modelpack.errors import (
    InvalidContentError,
    InvalidSignatureError,
    PolicyRefusedError,
    UnsignedError,
    UntrustedError,
)
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import Descriptor
from modelpack.oci.reference import Reference
from modelpack.oci.target import Source
from modelpack.policy import Policy, Rule, TrustedKey
from modelpack.signing.candidate import Rejection, Signature, parse_rfc3339, rfc3339
from modelpack.signing.signature import find_signatures

log = logging.getLogger(__name__)

# How far a signer's clock may run ahead of ours.
_CLOCK_SKEW = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Signer:
    """A key that counted, by the name that the policy gives it."""

    name: str
    key_id: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why an artifact may be used: what the store keeps as a receipt, and what ``--json`` shows.

    ``signers`` is empty where nothing was verified: the policy let it pass, or a person did (``is_verified``).
    ``signed_at`` is the newest claim among the signatures that counted; ``valid_until`` the first moment at which one
    of them stops counting (a signature's expiry, a key's ``not_after``, a rule's ``max_age``).
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
            "signers": [{"name": signer.name, "keyId": signer.key_id} for signer in self.signers],
            "formats": list(self.formats),
            "signedAt": rfc3339(self.signed_at) if self.signed_at else None,
            "validUntil": rfc3339(self.valid_until) if self.valid_until else None,
            "checkedAt": rfc3339(self.checked_at),
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
                signers=tuple(Signer(str(one["name"]), str(one["keyId"])) for one in document["signers"]),
                formats=tuple(str(one) for one in document["formats"]),
                signed_at=parse_rfc3339(signed_at) if signed_at else None,
                valid_until=parse_rfc3339(valid_until) if valid_until else None,
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


def check_trust(
    source: Source,
    reference: Reference,
    subject: Descriptor,
    policy: Policy,
    *,
    now: datetime,
    is_locked: bool = False,
) -> Verdict:
    """Return why ``subject``, asked for as ``reference``, may be used; raise an UntrustedError when it may not.

    ``is_locked``: this very digest was approved before (a lock file names it), so retired keys still count.
    Raises PolicyRefusedError where the policy says no, UnsignedError where there is no signature at all,
    InvalidSignatureError where there are some and none is by a key that was asked for. Each carries ``rejections``:
    what was looked at and turned away. A broken or foreign signature more never hurts an artifact that has enough.
    """
    # 1. What is revoked is refused whoever signed it. 2. One rule decides. 3. Every signature is judged alone.
    # 4. Distinct keys are counted.
    if subject.digest in policy.revoked:  # 1
        reason = policy.revoked[subject.digest]
        raise PolicyRefusedError(f"{reference}: {subject.digest} is revoked{f': {reason}' if reason else ''}")
    rule = policy.rule_for(reference)  # 2
    if rule is None:
        return _by_default(reference, subject, policy, now)

    tally = _Tally(rule, policy)
    for candidate in find_signatures(source, subject):
        if isinstance(candidate, Rejection):
            tally.reject(candidate)
            continue
        try:
            signer = _signer(candidate, rule)
            _judge(candidate, signer, rule, reference, now=now, is_locked=is_locked)  # 3
        except UntrustedError as error:
            tally.reject(Rejection(candidate.where, str(error)), error)
        else:
            tally.count(signer, candidate)
    if len(tally.counted) < rule.threshold:  # 4
        raise tally.refusal(reference, subject)
    return tally.verdict(reference, subject, now)


def _by_default(reference: Reference, subject: Descriptor, policy: Policy, now: datetime) -> Verdict:
    if policy.default == "deny":
        of_what = f"of {policy.path} " if policy.path else ""
        what = f"no rule {of_what}is about {reference.name}" if policy.rules else "there is no rule"
        raise PolicyRefusedError(f"{reference} is refused: {what}, and no key was given")
    log.warning("%s: no rule is about it; the policy's default is %s", reference, policy.default)
    return Verdict(str(reference), subject.digest, f"default: {policy.default}", policy.digest, now)


def _signer(candidate: Signature, rule: Rule) -> TrustedKey:
    """Whose signature it is, of those that the rule names. Raises InvalidSignatureError."""
    by_id = {signer.key.id: signer for signer in rule.signers}
    try:
        return by_id[candidate.verify(signer.key for signer in rule.signers)]
    except InvalidSignatureError as error:
        claimed = f"SHA256:{candidate.hint}"
        if candidate.hint and claimed not in by_id:
            raise InvalidSignatureError(f"by another key, {claimed:.80}, as it says") from error
        raise


def _judge(
    candidate: Signature, signer: TrustedKey, rule: Rule, reference: Reference, *, now: datetime, is_locked: bool
) -> None:
    """Raise PolicyRefusedError, with the reason, unless this verified signature counts under the rule."""
    claims = candidate.claims
    reason = None
    if candidate.scheme not in rule.formats:
        reason = f"the rule does not accept the format {candidate.scheme}"
    elif signer.status == "revoked":
        reason = f"its key {signer.name!r} is revoked"
    elif signer.status == "retired" and not is_locked:
        reason = f"its key {signer.name!r} is retired and counts only for what is locked"
    elif signer.not_after and now >= signer.not_after:
        reason = f"its key {signer.name!r} is trusted no longer than {rfc3339(signer.not_after)}"
    elif claims.expires and now >= claims.expires:
        reason = f"it expired at {rfc3339(claims.expires)}"
    elif rule.require_ref:
        reason = _reference_fault(claims.reference, reference)
    if reason is None and rule.max_age:
        reason = _age_fault(claims.signed_at, rule.max_age, now)
    if reason:
        raise PolicyRefusedError(reason)


def _reference_fault(signed: str | None, wanted: Reference) -> str | None:
    # Who asks for a digest alone names no tag, so only the repository can be compared.
    is_tag_named = wanted.tag is not None or wanted.digest is None
    if signed is None:
        return "it is not bound to a reference"
    repository, colon, _ = signed.rpartition(":")
    is_bound_to_tag = bool(colon) and "/" not in signed[len(repository) :]
    if not is_tag_named:
        repository = repository if is_bound_to_tag else signed
        return None if repository == wanted.name else f"it was made for {signed!r:.120}, not for {wanted.name}"
    if signed == wanted.tagged:
        return None
    if signed == wanted.name:
        return f"it is not bound to a tag, and {wanted.tagged} was asked for"
    return f"it was made for {signed!r:.120}, not for {wanted.tagged}"


def _age_fault(signed_at: datetime | None, max_age: timedelta, now: datetime) -> str | None:
    if signed_at is None:
        return "it does not say when it was made, and the rule has a max_age"
    if signed_at > now + _CLOCK_SKEW:
        return f"it says it was made at {rfc3339(signed_at)}, which is in the future"
    if now - signed_at >= max_age:
        return f"it was made at {rfc3339(signed_at)}, longer ago than the rule's max_age"
    return None


class _Tally:
    """The signatures of one artifact under one rule: what counts, and what was turned away and why."""

    def __init__(self, rule: Rule, policy: Policy) -> None:
        self.rule = rule
        self.policy = policy
        self.counted: dict[str, tuple[TrustedKey, Signature]] = {}
        self.rejections: list[Rejection] = []
        self.is_any_verified = False

    def count(self, signer: TrustedKey, signature: Signature) -> None:
        # One key that signed in both forms, or under two names, is one signer; its newest claim speaks for it.
        present = self.counted.get(signer.key.id)
        if present is None or _made(signature) > _made(present[1]):
            self.counted[signer.key.id] = (signer, signature)

    def reject(self, rejection: Rejection, error: UntrustedError | None = None) -> None:
        self.rejections.append(rejection)
        self.is_any_verified |= isinstance(error, PolicyRefusedError)

    def verdict(self, reference: Reference, subject: Descriptor, now: datetime) -> Verdict:
        claims = [signature.claims for _, signature in self.counted.values()]
        ends = [signer.not_after for signer, _ in self.counted.values()] + [claim.expires for claim in claims]
        if self.rule.max_age:
            ends += [claim.signed_at + self.rule.max_age for claim in claims if claim.signed_at]
        return Verdict(
            reference=str(reference),
            digest=subject.digest,
            rule=self.rule.match if self.policy.path else "the keys given",
            policy=self.policy.digest,
            checked_at=now,
            signers=tuple(Signer(signer.name, key_id) for key_id, (signer, _) in sorted(self.counted.items())),
            formats=tuple(sorted({signature.scheme for _, signature in self.counted.values()})),
            signed_at=max((claim.signed_at for claim in claims if claim.signed_at), default=None),
            valid_until=min((end for end in ends if end), default=None),
            rejections=tuple(self.rejections),
        )

    def refusal(self, reference: Reference, subject: Descriptor) -> UntrustedError:
        """What was asked, by which rule, what was found and where it was looked for."""
        rule = f"the rule {self.rule.match!r}" if self.policy.path else "the keys given"
        signers = ", ".join(signer.name for signer in self.rule.signers)
        kind: type[UntrustedError]
        if self.counted or self.is_any_verified:
            kind = PolicyRefusedError
            why = f"{len(self.counted)} of {self.rule.threshold} wanted signatures count"
        elif any(not rejection.is_foreign for rejection in self.rejections):
            kind, why = InvalidSignatureError, "no signature is by a key that was asked for"
        else:
            kind, why = UnsignedError, "it is not signed"
        found = ""
        if self.rejections:
            more = f" (and {len(self.rejections) - 1} more)" if len(self.rejections) > 1 else ""
            found = f"; {self.rejections[0].where}: {self.rejections[0].reason}{more}"
        tag = f"sha256-{subject.digest.hex}"
        error = kind(
            f"{reference} is refused by {rule} (signers: {signers}): {why}{found}; "
            f"looked at the referrers, the tag {tag} and the tag {tag}.sig"
        )
        error.rejections = tuple((one.where, one.reason) for one in self.rejections)
        return error


def _made(signature: Signature) -> datetime:
    return signature.claims.signed_at or datetime.min.replace(tzinfo=UTC)
