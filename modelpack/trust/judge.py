"""Whether one signature or attestation counts: who made it, and whether that signer may, under one policy."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from modelpack.errors import InvalidSignatureError, MalformedReferenceError, PolicyRefusedError, UnsupportedError
from modelpack.oci.reference import DEFAULT_TAG, Reference
from modelpack.policy import Identity, Policy, Rule, TrustedKey, TrustedSigner
from modelpack.signing.candidate import Claims, Evidence, rfc3339
from modelpack.signing.keyless import KeylessVerifier
from modelpack.trust.verdict import Signer

# How far a signer's clock may run ahead of ours.
_CLOCK_SKEW = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Counted:
    """Somebody who counts once: ``id`` is what makes two of them different, ``until`` when they stop counting."""

    id: str
    signer: Signer
    until: datetime | None


class Judge:
    """Holds evidence against the signers that a policy knows. ``is_locked`` lets retired keys count."""

    def __init__(self, policy: Policy, *, now: datetime, is_locked: bool) -> None:
        self._policy = policy
        self._now = now
        self._is_locked = is_locked
        self._keyless = KeylessVerifier(policy.trusted_root)

    def signer_of(self, evidence: Evidence, signers: Sequence[TrustedSigner]) -> Counted:
        """Whose it is, of those that are asked for.

        Raises InvalidSignatureError where it is nobody's of them, PolicyRefusedError where that one does not count, and
        UnsupportedError for a certificate that is not asked for, or cannot be verified without the extra ``keyless``.
        """
        if evidence.certified:
            return self._certified(evidence, [one for one in signers if isinstance(one, Identity)])
        return self._keyed(evidence, [one for one in signers if isinstance(one, TrustedKey)])

    def _keyed(self, evidence: Evidence, signers: Sequence[TrustedKey]) -> Counted:
        by_id = {signer.id: signer for signer in signers}
        try:
            key_id = evidence.verify(signer.key for signer in signers)
        except InvalidSignatureError as error:
            claimed = f"SHA256:{evidence.hint}"
            if evidence.hint and claimed not in by_id:
                raise InvalidSignatureError(f"by another key, {claimed:.80}, as it says") from error
            raise
        # What the policy says against a key holds under whatever name it says so.
        entries = [key for key in self._policy.keys.values() if key.id == key_id]
        for key in entries:
            fault = self._key_fault(key)
            if fault:
                raise PolicyRefusedError(fault)
        until = min((key.not_after for key in entries if key.not_after), default=None)
        return Counted(key_id, Signer(by_id[key_id].name, key_id), until)

    def _key_fault(self, key: TrustedKey) -> str | None:
        if key.status == "revoked":
            return f"its key {key.name!r} is revoked"
        if key.status == "retired" and not self._is_locked:
            return f"its key {key.name!r} is retired and counts only for what is locked"
        if key.not_after and self._now >= key.not_after:
            return f"its key {key.name!r} is trusted no longer than {rfc3339(key.not_after)}"
        return None

    def _certified(self, evidence: Evidence, identities: Sequence[Identity]) -> Counted:
        if not identities:
            raise UnsupportedError("keyless: signed with a certificate, and no identity was asked for")
        found = self._keyless.verify(evidence)
        # The first that fits, so that one certificate never counts as two.
        for identity in identities:
            if identity.is_met_by(found.issuer, found.subject):
                return Counted(identity.id, Signer(identity.name, str(found)), None)
        raise InvalidSignatureError(f"by another identity, {found!s:.200}")


def claims_fault(claims: Claims, rule: Rule, reference: Reference, *, now: datetime) -> str | None:
    """Why a verified signature with these claims does not count under the rule, or None."""
    if claims.expires and now >= claims.expires:
        return f"it expired at {rfc3339(claims.expires)}"
    fault = _reference_fault(claims.reference, rule.signed_as(reference), reference) if rule.require_ref else None
    if fault is None and rule.max_age:
        fault = _age_fault(claims.signed_at, rule.max_age, now)
    return fault


def is_about(claims: Claims, reference: Reference) -> bool:
    """Whether a signature can say how new what ``reference`` names is: one that was made for another tag cannot.

    Else an old artifact that was signed again for a tag of its own would pass for a new one under every tag. Which
    repository it names is for a rule's ``require_ref`` to ask: a mirror keeps the signatures of the original.
    """
    if claims.reference is None or (reference.digest and not reference.tag):
        return True
    tag = _split(claims.reference)[1]
    return tag is None or tag == (reference.tag or DEFAULT_TAG)


def _reference_fault(signed: str | None, name: str, wanted: Reference) -> str | None:
    # Who asks for a digest alone names no tag, so only the repository can be compared.
    is_tag_named = wanted.tag is not None or wanted.digest is None
    tagged = f"{name}:{wanted.tag or DEFAULT_TAG}"
    if signed is None:
        return "it is not bound to a reference"
    repository, tag = _split(signed)
    if repository != _split(name)[0]:
        return f"it was made for {signed!r:.120}, not for {tagged if is_tag_named else name}"
    if not is_tag_named or tag == (wanted.tag or DEFAULT_TAG):
        return None
    if tag is None:
        return f"it is not bound to a tag, and {tagged} was asked for"
    return f"it was made for {signed!r:.120}, not for {tagged}"


def _split(signed: str) -> tuple[str, str | None]:
    """What a signature is bound to: a repository, and a tag if it names one.

    cosign writes ``index.docker.io`` for Docker Hub, and podman and skopeo ``repository@sha256:...`` where they were
    told no tag: which digest is signed stands elsewhere.
    """
    try:
        reference = Reference.parse(signed)
    except MalformedReferenceError:
        return signed, None
    return reference.plain_name, reference.tag


def _age_fault(signed_at: datetime | None, max_age: timedelta, now: datetime) -> str | None:
    if signed_at is None:
        return "it does not say when it was made, and the rule has a max_age"
    if signed_at > now + _CLOCK_SKEW:
        return f"it says it was made at {rfc3339(signed_at)}, which is in the future"
    if now - signed_at >= max_age:
        return f"it was made at {rfc3339(signed_at)}, longer ago than the rule's max_age"
    return None
