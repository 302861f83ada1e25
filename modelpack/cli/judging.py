"""Whether an artifact may go where a person sends it: the policy, the flags that have a say, and what is kept of it."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from modelpack.cli.app import App
from modelpack.errors import InvalidInputError, UnsignedError, UntrustedError
from modelpack.oci.manifest import Descriptor
from modelpack.oci.reference import Reference

if TYPE_CHECKING:
    from modelpack.lockfile import Locked
    from modelpack.oci.target import Source
    from modelpack.policy import Policy
    from modelpack.trust import Verdict


@dataclass(frozen=True, slots=True)
class Judge:
    """Who says whether something may come in, and what a person said about it.

    ``rules`` is None where there is neither a policy nor a key; ``is_named`` where this very command names them.
    """

    rules: "Policy | None"
    is_named: bool
    is_skipped: bool
    allow_rollback: bool

    @classmethod
    def appoint(
        cls, app: App, keys: tuple[Path, ...], policy: Path | None, *, skip: bool, allow_rollback: bool
    ) -> "Judge":
        """Raises InvalidInputError for flags that contradict each other, and what loading a policy raises."""
        from modelpack.cli.places import load_policy

        if skip and keys:
            raise InvalidInputError("--key and --insecure-skip-verify contradict each other")
        return cls(load_policy(app, keys, policy, skip=skip), bool(keys or policy), skip, allow_rollback)

    def judge(
        self,
        app: App,
        source: "Source",
        reference: Reference,
        descriptor: Descriptor,
        locked: "Locked | None" = None,
    ) -> "Verdict":
        """Whether it may come in under this name. Reads a few KiB. Raises UntrustedError.

        What is in a lock file comes in as that says, however old: keys retired since still count.
        """
        from modelpack.cli.refusal import refusing_download
        from modelpack.policy import Policy
        from modelpack.rollback import require_no_rollback
        from modelpack.trust import Verdict, check_trust

        now = datetime.now(UTC)
        if self.is_skipped:
            app.progress.warn(f"NOT verifying {reference}: whoever can write to where it is decides what it is")
            return Verdict.skipped(reference, descriptor, now=now)
        rules = self.rules or Policy.empty()
        with refusing_download(reference, rules):
            if locked:
                locked.require(reference, descriptor)
            verdict = check_trust(source, reference, descriptor, rules, now=now, is_locked=locked is not None)
            if not (locked or self.allow_rollback):
                require_no_rollback(app.store, reference, verdict)
        if verdict.is_verified:
            app.note(f"{reference}: signed by {', '.join(signer.name for signer in verdict.signers)}: {verdict.rule}")
        else:
            app.progress.warn(f"{reference} is not verified ({verdict.rule})")
        return verdict

    def second_look(self, reference: Reference, descriptor: Descriptor) -> "Callable[[Source], None] | None":
        """What is to be asked again where something arrives, before it gets its tag; None where nothing is.

        Chat templates lie in the weights, and what a registry shows of those before they are copied is not hashed.
        """
        rule = self.rules.rule_for(reference) if self.rules and not self.is_skipped else None
        if rule is None or rule.templates is None:
            return None

        def look(place: "Source") -> None:
            from modelpack.trust import require_templates

            require_templates(place, reference, descriptor, rule)

        return look

    def judge_stored(
        self, app: App, source: "Source", reference: Reference, descriptor: Descriptor
    ) -> "Verdict | None":
        """Whether what is in the store may leave it: what was made here, and what its receipt or its signatures let.

        Without a policy what was decided when it came in stays decided. An index that nobody signed is as good as what
        it lists. None for what was made here. Raises UntrustedError.
        """
        from modelpack import receipt
        from modelpack.cli.refusal import advice

        if self.is_skipped or self.rules is None:
            held = receipt.read_receipt(app.store, descriptor)
            return held.verdict if held else None
        now = datetime.now(UTC)
        judge_again = receipt.verify_again if self.is_named else receipt.require_trusted
        try:
            return judge_again(app.store, reference, descriptor, self.rules, now=now).verdict
        except UntrustedError as error:
            listed = source.fetch_manifest(descriptor).manifests if isinstance(error, UnsignedError) else ()
            if not listed:
                error.add_note(f"nothing was copied; {advice(error, reference, self.rules)}")
                raise
        for child in listed:
            self.judge_stored(app, source, reference.with_digest(child.digest), child)
        return None


def keep_verdict(app: App, reference: Reference, descriptor: Descriptor, verdict: "Verdict") -> None:
    """What the store remembers of something that came in."""
    from modelpack.receipt import Receipt, write_receipt
    from modelpack.rollback import remember

    write_receipt(app.store, descriptor, Receipt(reference, verdict))
    remember(app.store, reference, verdict)
