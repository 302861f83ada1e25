"""What a refusal tells beside its reason: that nothing came over, and what to ask of whom."""

import contextlib
from collections.abc import Iterator

from modelpack.cli import failures
from modelpack.errors import InvalidSignatureError, PolicyRefusedError, RollbackError, UnsignedError, UntrustedError
from modelpack.oci.reference import Reference
from modelpack.policy import Policy


@contextlib.contextmanager
def refusing_download(wanted: Reference, policy: Policy) -> Iterator[None]:
    """Around what decides before anything large is fetched."""
    try:
        yield
    except UntrustedError as error:
        if not getattr(error, "__notes__", None):
            error.add_note(f"nothing was downloaded; {_advice(error, wanted, policy)}")
        raise


def _advice(error: UntrustedError, wanted: Reference, policy: Policy) -> str:
    rule = policy.rule_for(wanted)
    publisher = f"whoever publishes {wanted.name}"
    if rule is None:
        return _advice_without_rule(wanted, publisher, is_locked=policy.is_locked)
    signers = ", ".join(signer.name for signer in rule.signers)
    if isinstance(error, UnsignedError):
        return f"ask {publisher} to run: modelpack sign {wanted} --key KEY, with a key of {signers}"
    if isinstance(error, InvalidSignatureError):
        return f"ask {publisher} for the id of their key and compare: modelpack policy explain {wanted}"
    if isinstance(error, RollbackError):
        return f"if {publisher} went back on purpose: modelpack pull --allow-rollback {wanted}"
    if isinstance(error, PolicyRefusedError):
        return f"modelpack policy explain {wanted} shows what is needed; ask {publisher} for what is missing"
    return failures.explain(error).hint


def _advice_without_rule(wanted: Reference, publisher: str, *, is_locked: bool) -> str:
    if is_locked:
        return f"the policy of this machine is locked: ask whoever looks after it for a rule about {wanted.name}"
    pattern = f"{wanted.name.rpartition('/')[0] or wanted.name}/**"
    return f"with the key of {publisher}: modelpack trust add NAME KEY.pub --match '{pattern}'; --key is for once"
