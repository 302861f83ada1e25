"""The rollback guard: whoever keeps a registry can offer an old artifact under a tag, and its signature is still good.

The store remembers, for every tag, the newest artifact that was verified as it; an older one is refused. The first pull
of a tag has nothing to go by, and when something was signed is its signer's word: a lock file and a rule's ``max_age``
bound what that leaves open.
"""

from datetime import datetime

from modelpack.errors import InvalidContentError, RollbackError
from modelpack.oci.digest import Digest
from modelpack.oci.reference import Reference
from modelpack.signing.candidate import parse_rfc3339, rfc3339
from modelpack.store import Store
from modelpack.trust import Verdict


def require_no_rollback(store: Store, reference: Reference, verdict: Verdict) -> None:
    """Raise RollbackError where something newer than what ``verdict`` is about was verified as this tag before."""
    if reference.digest or not verdict.is_verified:
        return
    known, newest = _recall(store, reference)
    if known == verdict.digest:
        return
    if newest and (verdict.signed_at is None or verdict.signed_at < newest):
        when = f"was signed at {rfc3339(verdict.signed_at)}" if verdict.signed_at else "does not say when it was signed"
        raise RollbackError(
            f"{reference} is refused: what the registry offers, {verdict.digest}, {when}, and {known}, "
            f"signed at {rfc3339(newest)}, was verified as this tag before"
        )


def remember(store: Store, reference: Reference, verdict: Verdict) -> None:
    """Keep that this was verified as a tag; from now on what is older is refused."""
    if reference.digest or not verdict.is_verified:
        return
    # A signer's clock that runs ahead must not lock everybody out until it is right.
    signed_at = min(verdict.signed_at, verdict.checked_at) if verdict.signed_at else None
    known, newest = _recall(store, reference)
    if known == verdict.digest:
        # The same artifact again, perhaps with its newer signatures left out.
        signed_at = max(filter(None, (signed_at, newest)), default=None)
    facts = {"digest": str(verdict.digest), "signedAt": rfc3339(signed_at) if signed_at else None}
    store.memory.remember(reference.plain_tagged, facts)


def _recall(store: Store, reference: Reference) -> tuple[Digest | None, datetime | None]:
    """What was verified as a tag before, and when it was signed. Raises InvalidContentError for what says neither."""
    known = store.memory.recall(reference.plain_tagged)
    if known is None:
        return None, None
    try:
        return Digest(known["digest"]), parse_rfc3339(known["signedAt"]) if known["signedAt"] else None
    except (KeyError, TypeError, ValueError, InvalidContentError) as error:
        raise InvalidContentError(f"what the store remembers about {reference} is malformed") from error
