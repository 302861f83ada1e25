"""promote: from one repository to another by digest, judged before it moves and where it arrives; the tag last."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from modelpack.errors import InvalidInputError, NotFoundError, PolicyRefusedError, UntrustedError
from modelpack.evidence.predicates import NAMES, TEST_RESULT, predicate_type
from modelpack.mirror import mirror
from modelpack.oci.manifest import Descriptor
from modelpack.oci.reference import Reference
from modelpack.oci.target import Source, Target
from modelpack.policy import Policy, Requirement, Rule
from modelpack.progress import SILENT, Progress
from modelpack.rollback import require_no_rollback
from modelpack.store import Store
from modelpack.transfer import CopyResult
from modelpack.trust import Verdict, check_trust

RESULTS = ("PASSED", "WARNED", "FAILED")


@dataclass(frozen=True, slots=True)
class Wanted:
    """An attestation that a promotion asks for, whatever the rule does; any of the rule's signers may make it."""

    type: str
    results: tuple[str, ...] = ()
    """Of a test; empty for whatever it found."""

    @classmethod
    def parse(cls, text: str) -> "Wanted":
        """``smoke``, ``smoke:PASSED``, ``smoke:PASSED,WARNED``, ``slsa``, ``cyclonedx`` or the URI of a type.

        Raises InvalidInputError.
        """
        name, colon, rest = text.partition(":")
        if name not in ("smoke", "test-result"):
            return cls(predicate_type(text))
        results = tuple(rest.split(",")) if colon else ()
        if not set(results) <= set(RESULTS):
            raise InvalidInputError(f"{text!r:.80}: a test ends in {', '.join(RESULTS)}; types are {', '.join(NAMES)}")
        return cls(TEST_RESULT, results)

    def of(self, rule: Rule) -> Requirement:
        return Requirement(self.type, rule.signers, where={"result": self.results} if self.results else {})


@dataclass(frozen=True, slots=True)
class Promotion:
    """``before`` was judged under the name that it comes from, ``after`` under the name that it got.

    ``copied`` is None where nothing was to be moved.
    """

    before: Verdict
    after: Verdict
    copied: CopyResult | None


def promote(
    source: Source,
    target: Target,
    descriptor: Descriptor,
    *,
    origin: Reference,
    destination: Reference,
    policy: Policy,
    store: Store,
    now: datetime,
    wanted: Sequence[Wanted] = (),
    dry_run: bool = False,
    jobs: int | None = None,
    progress: Progress = SILENT,
) -> Promotion:
    """Copy an artifact with all that refers to it, and move the tag of ``destination`` when it may be used there.

    What signatures are bound to is for the rule of each name to say (``require_ref``, ``signed_prefix``). Where the
    policy refuses it at its destination it lies there without a tag, ready to be signed for its new name. ``store``
    knows what was verified as either tag before. Raises UntrustedError, and what ``mirror`` raises.
    """
    strict = _wanting(policy, wanted)
    for reference in (origin, destination):
        if wanted and policy.rule_for(reference) is None:
            raise PolicyRefusedError(f"{reference}: no rule says whose attestations count")

    def judge(place: Source, reference: Reference) -> Verdict:
        verdict = check_trust(place, reference, descriptor, strict, now=now)
        require_no_rollback(store, reference, verdict)
        return verdict

    before = judge(source, origin)
    if dry_run:
        # What would arrive, and what the destination has beside it by now: either may be what its rule wants.
        try:
            after = judge(source, destination)
        except UntrustedError:
            if not _has(target, descriptor):
                raise
            after = judge(target, destination)
        return Promotion(before, after, None)
    copied = mirror(source, target, descriptor, tag=None, jobs=jobs, progress=progress)
    after = judge(target, destination)
    target.put_manifest(source.fetch_manifest(descriptor), tag=destination.tag)
    return Promotion(before, after, copied)


def _wanting(policy: Policy, wanted: Sequence[Wanted]) -> Policy:
    """The policy with what is wanted beside it in every rule."""
    rules = (
        replace(rule, attestations=(*rule.attestations, *(one.of(rule) for one in wanted))) for rule in policy.rules
    )
    return replace(policy, rules=tuple(rules)) if wanted else policy


def _has(target: Source, descriptor: Descriptor) -> bool:
    try:
        return target.resolve(str(descriptor.digest)).digest == descriptor.digest
    except NotFoundError:
        return False
