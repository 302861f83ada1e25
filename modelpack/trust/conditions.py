"""What a rule wants beside signatures: licences that it allows, and attestations that say what it asks for."""

import contextlib
from collections.abc import Sequence
from datetime import datetime

from modelpack.errors import InvalidContentError, PolicyRefusedError, UnsupportedError, UntrustedError
from modelpack.formats import codec_for
from modelpack.formats.model import MAX_CONFIG_SIZE
from modelpack.oci.manifest import Descriptor
from modelpack.oci.reference import Reference
from modelpack.oci.target import Source, read_whole
from modelpack.policy import Requirement, Rule
from modelpack.signing.attestation import find_attestations
from modelpack.signing.candidate import Attestation, Rejection, rfc3339
from modelpack.trust.judge import Counted, Judge
from modelpack.trust.verdict import Attested

LICENSES_ANNOTATION = "org.opencontainers.image.licenses"


def require_licenses(source: Source, reference: Reference, subject: Descriptor, rule: Rule) -> None:
    """Raise PolicyRefusedError unless the rule allows every licence that the artifact, which is signed, states."""
    if rule.licenses is None:
        return
    stated = _licenses(source, subject)
    allowed = {name.lower() for name in rule.licenses}
    others = [name for name in stated if name.lower() not in allowed]
    if not stated or others:
        found = f"its licence is {', '.join(others)}" if others else "it states no licence"
        raise PolicyRefusedError(
            f"{reference} is refused by the rule {rule.match!r}: {found:.300}, and the rule allows "
            f"{', '.join(rule.licenses)}"
        )


def require_attested(
    source: Source, reference: Reference, subject: Descriptor, rule: Rule, judge: Judge, *, now: datetime
) -> dict[Attested, datetime | None]:
    """What the rule asks for, with who attests it, and until when; raises PolicyRefusedError where too few do.

    An attestation that says something else does not undo one that says what is wanted: whoever keeps the registry
    could leave it out. To take back what was attested is for the policy, with [[revoked]].
    """
    if not rule.attestations:
        return {}
    found = find_attestations(source, subject)
    broken = [one for one in found if isinstance(one, Rejection)]
    attested = {}
    for requirement in rule.attestations:
        candidates = [one for one in found if isinstance(one, Attestation) and one.predicate_type == requirement.type]
        counted, rejections = _count(candidates, requirement, judge, now)
        if len(counted) < requirement.threshold:
            raise _refusal(
                reference, subject, rule, requirement, counted=len(counted), rejections=[*rejections, *broken]
            )
        signers = tuple(one.signer for one in sorted(counted, key=lambda one: one.id))
        attested[Attested(requirement.type, signers)] = min((one.until for one in counted if one.until), default=None)
    return attested


def first_of(rejections: Sequence[Rejection]) -> str:
    """What was turned away, for the middle of a sentence: the first that is not merely of another kind."""
    if not rejections:
        return ""
    first = min(rejections, key=lambda rejection: rejection.is_foreign)
    more = f" (and {len(rejections) - 1} more)" if len(rejections) > 1 else ""
    return f"; {first.where}: {first.reason}{more}"


def _licenses(source: Source, subject: Descriptor) -> list[str]:
    """What the manifest's annotation and a model's config state, each once; an expression other than AND as it is."""
    manifest = source.fetch_manifest(subject)
    stated = [part.strip() for part in manifest.annotations.get(LICENSES_ANNOTATION, "").split(" AND ")]
    if manifest.config:
        # What is no model, or no model that can be read, states nothing but its annotation.
        with contextlib.suppress(UnsupportedError, InvalidContentError):
            config = read_whole(source, manifest.config, limit=MAX_CONFIG_SIZE)
            stated += codec_for(manifest).decode(manifest, config).licenses
    return list(dict.fromkeys(filter(None, stated)))


def _count(
    candidates: Sequence[Attestation], requirement: Requirement, judge: Judge, now: datetime
) -> tuple[list[Counted], list[Rejection]]:
    """Distinct signers whose attestation says what is wanted, and why the others do not count."""
    counted: dict[str, Counted] = {}
    rejections = []
    for candidate in candidates:
        try:
            one = judge.signer_of(candidate, requirement.signers)
            expires = candidate.claims.expires
            fault = f"it expired at {rfc3339(expires)}" if expires and now >= expires else None
            fault = fault or requirement.fault(candidate.predicate)
            if fault:
                raise PolicyRefusedError(fault)
        except (UntrustedError, UnsupportedError) as error:
            rejections.append(Rejection(candidate.where, str(error)))
        else:
            until = min((end for end in (one.until, expires) if end), default=None)
            counted.setdefault(one.id, Counted(one.id, one.signer, until))
    return list(counted.values()), rejections


def _refusal(
    reference: Reference,
    subject: Descriptor,
    rule: Rule,
    requirement: Requirement,
    *,
    counted: int,
    rejections: Sequence[Rejection],
) -> PolicyRefusedError:
    signers = ", ".join(signer.name for signer in requirement.signers)
    error = PolicyRefusedError(
        f"{reference} is refused by the rule {rule.match!r}: it is signed, but {counted} of {requirement.threshold} "
        f"wanted attestations of the type {requirement.type} (signers: {signers}) count{first_of(rejections)}; "
        f"looked at the referrers and the tag sha256-{subject.digest.hex}.att"
    )
    error.rejections = tuple((one.where, one.reason) for one in rejections)
    return error
