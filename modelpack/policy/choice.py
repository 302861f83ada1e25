"""Which policy counts on this machine: one file, never a mixture, and a locked one whatever a user says."""

from collections.abc import Sequence
from pathlib import Path

from modelpack.errors import MalformedPolicyError, NotFoundError, PolicyRefusedError
from modelpack.policy.policy import Policy
from modelpack.signing.keys import PublicKey


def locked_policy(machine: Path, *, overridden_by: Sequence[str] = ()) -> Policy | None:
    """The policy of the machine if it is locked, else None.

    ``overridden_by`` names what a person said that would put something else in its place. Raises PolicyRefusedError
    for that, and MalformedPolicyError for a file that cannot be read: it might say that it is locked.
    """
    policy = _load_if_there(machine)
    if policy is None or not policy.is_locked:
        return None
    if overridden_by:
        verb = "have" if len(overridden_by) > 1 else "has"
        raise PolicyRefusedError(
            f"{' and '.join(overridden_by)} {verb} no say here: the policy of this machine, {machine}, is locked, "
            "and only whoever may write that file can change what is trusted"
        )
    return policy


def choose_policy(
    machine: Path,
    user: Path,
    *,
    named: Path | None = None,
    keys: Sequence[PublicKey] = (),
    overridden_by: Sequence[str] = (),
) -> Policy | None:
    """The policy that counts: the machine's where that is locked, else the keys given, else the one that is named,
    else the user's, else the machine's; None where there is none.

    Raises PolicyRefusedError where a locked one is in the way of ``overridden_by``, NotFoundError for a named file
    that is not there, MalformedPolicyError, also for any other file than the machine's that says it is locked.
    """
    locked = locked_policy(machine, overridden_by=overridden_by)
    if locked:
        return locked
    if keys:
        return Policy.of_keys(keys)
    policy = Policy.load(named) if named else _load_if_there(user) or _load_if_there(machine)
    if policy and policy.is_locked:
        # Whoever wrote it counts on a lock that any flag would open.
        raise MalformedPolicyError(f"{policy.path}: 'locked' holds in {machine} alone")
    return policy


def _load_if_there(path: Path) -> Policy | None:
    try:
        return Policy.load(path)
    except NotFoundError as error:
        if path.is_symlink():
            # Whoever laid the link wants a policy, which may have said that it is locked.
            raise MalformedPolicyError(f"{path} is a link to a file that is not there") from error
        return None
