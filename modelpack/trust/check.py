"""check_trust: one policy, one rule, everything that was found, one verdict."""

import logging
from datetime import UTC, datetime

from modelpack.errors import (
    InvalidSignatureError,
    NotFoundError,
    PolicyRefusedError,
    RevokedError,
    UnsignedError,
    UnsupportedError,
    UntrustedError,
)
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import Descriptor
from modelpack.oci.reference import Reference
from modelpack.oci.target import Source
from modelpack.policy import Policy, Rule
from modelpack.signing.candidate import Claims, Rejection, Signature
from modelpack.signing.signature import find_signatures
from modelpack.trust.conditions import first_of, require_attested, require_licenses
from modelpack.trust.judge import Counted, Judge, claims_fault, is_about
from modelpack.trust.templates import require_templates
from modelpack.trust.verdict import Attested, Verdict

# Manifests under one index; a model has a few variants and platforms.
_MAX_LISTED = 1_000

log = logging.getLogger(__name__)


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
    # 4. Distinct signers are counted. 5. Only what is signed is read further: licences, chat templates, attestations.
    require_not_revoked(source, reference, subject, policy)  # 1
    rule = policy.rule_for(reference)  # 2
    if rule is None:
        return _by_default(reference, subject, policy, now)

    judge = Judge(policy, now=now, is_locked=is_locked)
    tally = _Tally(rule, policy)
    for candidate in find_signatures(source, subject):  # 3
        if isinstance(candidate, Rejection):
            tally.reject(candidate)
            continue
        try:
            counted = judge.signer_of(candidate, rule.signers)
            if candidate.scheme not in rule.formats:
                raise PolicyRefusedError(f"the rule does not accept the format {candidate.scheme}")
            fault = claims_fault(candidate.claims, rule, reference, now=now)
            if fault:
                raise PolicyRefusedError(fault)
        except (UntrustedError, UnsupportedError) as error:
            is_foreign = isinstance(error, UnsupportedError) and not rule.identities
            tally.reject(Rejection(candidate.where, str(error), is_foreign=is_foreign), error)
        else:
            tally.count(counted, candidate)
    if len(tally.counted) < rule.threshold:  # 4
        raise tally.refusal(reference, subject)
    require_licenses(source, reference, subject, rule)  # 5
    require_templates(source, reference, subject, rule)
    attested = require_attested(source, reference, subject, rule, judge, now=now)
    return tally.verdict(reference, subject, now, attested)


def require_not_revoked(source: Source, reference: Reference, subject: Descriptor, policy: Policy) -> None:
    """Raise RevokedError where the policy revokes the artifact, what it lists, or a blob of either.

    Raises PolicyRefusedError for an index that lists more than are looked through.
    """
    if not policy.revoked:
        return
    looked = 0
    rest = [subject]
    seen = {subject.digest}
    while rest:
        descriptor = rest.pop()
        looked += 1
        if looked > _MAX_LISTED:
            raise PolicyRefusedError(f"{reference} is refused: it lists more than {_MAX_LISTED} manifests")
        _require_no_revoked(reference, descriptor.digest, policy)
        try:
            manifest = source.fetch_manifest(descriptor)
        except NotFoundError:
            if descriptor is subject:
                raise
            continue  # an index may list what its repository does not have
        for blob in (*([manifest.config] if manifest.config else []), *manifest.layers):
            _require_no_revoked(reference, blob.digest, policy)
        rest += [child for child in manifest.manifests if child.digest not in seen]
        seen.update(child.digest for child in manifest.manifests)


def _require_no_revoked(reference: Reference, digest: Digest, policy: Policy) -> None:
    if digest in policy.revoked:
        reason = policy.revoked[digest]
        raise RevokedError(f"{reference} is refused: {digest} is revoked{f': {reason}' if reason else ''}")


def _by_default(reference: Reference, subject: Descriptor, policy: Policy, now: datetime) -> Verdict:
    if policy.default == "deny":
        of_what = f"of {policy.path} " if policy.path else ""
        what = f"no rule {of_what}is about {reference.name}" if policy.rules else "there is no rule"
        raise PolicyRefusedError(f"{reference} is refused: {what}, and no key was given")
    log.warning("%s: no rule is about it; the policy's default is %s", reference, policy.default)
    return Verdict(str(reference), subject.digest, f"default: {policy.default}", policy.digest, now)


class _Tally:
    """The signatures of one artifact under one rule: what counts, and what was turned away and why."""

    def __init__(self, rule: Rule, policy: Policy) -> None:
        self.rule = rule
        self.policy = policy
        self.counted: dict[str, tuple[Counted, Signature]] = {}
        self.claims: list[Claims] = []
        self.rejections: list[Rejection] = []
        self.is_any_verified = False

    def count(self, counted: Counted, signature: Signature) -> None:
        self.claims.append(signature.claims)
        # One key that signed in both forms, or under two names, is one signer; its newest claim speaks for it.
        present = self.counted.get(counted.id)
        if present is None or _made(signature) > _made(present[1]):
            self.counted[counted.id] = (counted, signature)

    def reject(self, rejection: Rejection, error: Exception | None = None) -> None:
        self.rejections.append(rejection)
        self.is_any_verified |= isinstance(error, PolicyRefusedError)

    def verdict(
        self,
        reference: Reference,
        subject: Descriptor,
        now: datetime,
        attested: dict[Attested, datetime | None],
    ) -> Verdict:
        claims = [signature.claims for _, signature in self.counted.values()]
        ends = [one.until for one, _ in self.counted.values()] + [claim.expires for claim in claims]
        ends += attested.values()
        if self.rule.max_age:
            ends += [claim.signed_at + self.rule.max_age for claim in claims if claim.signed_at]
        return Verdict(
            reference=str(reference),
            digest=subject.digest,
            rule=self.rule.match if self.policy.path else "the keys given",
            policy=self.policy.digest,
            checked_at=now,
            signers=tuple(one.signer for _, (one, _) in sorted(self.counted.items())),
            formats=tuple(sorted({signature.scheme for _, signature in self.counted.values()})),
            signed_at=max(
                (one.signed_at for one in self.claims if one.signed_at and is_about(one, reference)), default=None
            ),
            valid_until=min((end for end in ends if end), default=None),
            attestations=tuple(attested),
            rejections=tuple(self.rejections),
        )

    def refusal(self, reference: Reference, subject: Descriptor) -> UntrustedError:
        """What was asked, by which rule, what was found and where it was looked for."""
        rule = f"the rule {self.rule.match!r}" if self.policy.path else "the keys given"
        signers = ", ".join(signer.name for signer in self.rule.signers)
        kind: type[UntrustedError]
        telling: list[Rejection] = self.rejections
        if self.counted or self.is_any_verified:
            kind = PolicyRefusedError
            by = ", ".join(one.signer.name for one, _ in self.counted.values())
            why = f"{len(self.counted)} of {self.rule.threshold} wanted signatures count{f' (by {by})' if by else ''}"
            telling = [rejection for rejection in telling if not rejection.is_foreign]
        elif any(not rejection.is_foreign for rejection in self.rejections):
            kind, why = InvalidSignatureError, "no signature is by a key that was asked for"
        else:
            kind, why = UnsignedError, "it is not signed"
        tag = f"sha256-{subject.digest.hex}"
        error = kind(
            f"{reference} is refused by {rule} (signers: {signers}): {why}{first_of(telling)}; "
            f"looked at the referrers, the tag {tag} and the tag {tag}.sig"
        )
        error.rejections = tuple((one.where, one.reason) for one in self.rejections)
        return error


def _made(signature: Signature) -> datetime:
    return signature.claims.signed_at or datetime.min.replace(tzinfo=UTC)
