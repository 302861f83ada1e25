"""What a refusal tells beside its reason: that nothing came over, and what to ask of whom."""

import contextlib
from collections.abc import Iterator

from modelpack.cli import failures
from modelpack.errors import (
    InvalidSignatureError,
    NotLockedError,
    PolicyRefusedError,
    RevokedError,
    RollbackError,
    UnsignedError,
    UntrustedError,
)
from modelpack.oci.reference import Reference
from modelpack.policy import Policy


@contextlib.contextmanager
def refusing_download(wanted: Reference, policy: Policy) -> Iterator[None]:
    """Around what decides before anything large is fetched."""
    with _adding("nothing was downloaded", wanted, policy):
        yield


@contextlib.contextmanager
def refusing_export(wanted: Reference, policy: Policy) -> Iterator[None]:
    """Around what decides before files of the store are put into a folder."""
    with _adding("nothing was exported", wanted, policy):
        yield


@contextlib.contextmanager
def refusing_use(wanted: Reference, policy: Policy) -> Iterator[None]:
    """Around what decides before a model of the store is loaded."""
    with _adding("nothing was loaded", wanted, policy, is_stored=True):
        yield


@contextlib.contextmanager
def _adding(outcome: str, wanted: Reference, policy: Policy, *, is_stored: bool = False) -> Iterator[None]:
    try:
        yield
    except UntrustedError as error:
        if not getattr(error, "__notes__", None):
            if is_stored and wanted.registry and isinstance(error, UnsignedError | InvalidSignatureError):
                # Built or pulled, and signed there since: by a colleague, by CI, with cosign.
                outcome += f"; the registry was not asked: modelpack pull {wanted} brings signatures made since"
            error.add_note(f"{outcome}; {advice(error, wanted, policy)}")
        raise


def advice(error: UntrustedError, wanted: Reference, policy: Policy) -> str:
    """What to do about a refusal, and whom to ask for it."""
    rule = policy.rule_for(wanted)
    publisher = f"whoever publishes {wanted.name}"
    if isinstance(error, NotLockedError):
        return f"modelpack lock {wanted} verifies it as it is now, and writes that down"
    if rule is None and not isinstance(error, RevokedError):
        return _advice_without_rule(wanted, publisher, is_locked=policy.is_locked)
    signers = ", ".join(signer.name for signer in rule.signers) if rule else ""
    if policy.path is None and isinstance(error, InvalidSignatureError | PolicyRefusedError):
        # Of --key: no file says more than the error does.
        return f"ask {publisher} for what is missing, and compare the id of their key: modelpack key info KEY.pub"
    # The most special class first.
    advices: tuple[tuple[type[UntrustedError], str], ...] = (
        (RevokedError, f"do not use it; {policy.path} says so, and {publisher} may have another version"),
        (UnsignedError, f"ask {publisher} to run: modelpack sign {wanted} --key KEY, with a key of {signers}"),
        (
            InvalidSignatureError,
            f"ask {publisher} for the id of their key and compare: modelpack policy explain {wanted}",
        ),
        (RollbackError, f"if {publisher} went back on purpose: modelpack pull --allow-rollback {wanted}"),
        (
            PolicyRefusedError,
            f"modelpack policy explain {wanted} shows what is needed; ask {publisher} for what is missing",
        ),
    )
    return next((text for kind, text in advices if isinstance(error, kind)), failures.explain(error).hint)


def _advice_without_rule(wanted: Reference, publisher: str, *, is_locked: bool) -> str:
    if is_locked:
        return f"the policy of this machine is locked: ask whoever looks after it for a rule about {wanted.name}"
    pattern = f"{wanted.name.rpartition('/')[0] or wanted.name}/**"
    return f"with the key of {publisher}: modelpack trust add NAME KEY.pub --match '{pattern}'; --key is for once"
