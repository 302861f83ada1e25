"""Receipts: how an artifact got into the store, and why it may be used, so that run and serve need no registry."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from modelpack.errors import (
    InvalidContentError,
    InvalidSignatureError,
    MalformedReferenceError,
    NotFoundError,
    PolicyRefusedError,
)
from modelpack.oci.manifest import Descriptor
from modelpack.oci.reference import Reference
from modelpack.policy import Policy
from modelpack.signing.candidate import Candidate, Signature, rfc3339
from modelpack.signing.keys import PublicKey
from modelpack.signing.signature import find_signatures
from modelpack.store import Store, StoredTag
from modelpack.trust import Verdict, check_trust, require_not_revoked, require_templates

_MAX_VIEWS = 8
"""Of views, one of the other."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """``verdict`` is what was found when it was pulled; None for what was made here.

    ``is_locked``: a lock file names this digest, so that keys which were retired since still count. ``view_of``: the
    artifact that this is another manifest of; a view is trusted as far as that is, for as long.
    """

    reference: Reference
    verdict: Verdict | None
    is_locked: bool = False
    view_of: Reference | None = None
    """With its digest."""
    is_built: bool = False
    """Built here; a pull of the same bytes does not change that."""

    @property
    def is_skipped(self) -> bool:
        """Whether a person let it in without verification; a policy that lets unsigned things pass is asked again."""
        return self.verdict is not None and self.verdict.policy is None and not self.verdict.is_verified

    @property
    def summary(self) -> str:
        """For a person: the signers' names, ``built here`` or ``no``."""
        if self.is_built:
            return "built here"
        if self.verdict is None:
            return f"view of {self.view_of}" if self.view_of else "no"
        return ", ".join(signer.name for signer in self.verdict.signers) or "no"


def write_receipt(store: Store, descriptor: Descriptor, receipt: Receipt) -> None:
    before = read_receipt(store, descriptor)
    if receipt.is_skipped and before and not before.is_skipped:
        return  # what is known already is worth more than not having looked
    document: dict[str, Any] = {"reference": str(receipt.reference), "locked": receipt.is_locked}
    if receipt.is_built or (before and before.is_built):
        document["built"] = True
    if receipt.view_of:
        document["viewOf"] = str(receipt.view_of)
    if receipt.verdict:
        document["verdict"] = receipt.verdict.to_json()
    store.put_receipt(descriptor.digest, document)


def read_receipt(store: Store, descriptor: Descriptor) -> Receipt | None:
    """None where there is none that we understand: then it has to be verified again."""
    document = store.receipt(descriptor.digest)
    if not document:
        return None
    try:
        verdict = document.get("verdict")
        receipt = Receipt(
            Reference.parse(document["reference"]),
            Verdict.from_json(verdict) if verdict else None,
            is_locked=document["locked"] is True,
            view_of=Reference.parse(document["viewOf"]) if "viewOf" in document else None,
            is_built=document.get("built") is True,
        )
    except (KeyError, TypeError, AttributeError, InvalidContentError, MalformedReferenceError):
        return None
    return receipt if receipt.verdict is None or receipt.verdict.digest == descriptor.digest else None


def standing(store: Store, descriptor: Descriptor) -> str:
    """For a column: who vouches for a stored artifact, or for what it is a view of; ``no`` where nobody does."""
    receipt = read_receipt(store, descriptor)
    if receipt and receipt.view_of:
        try:
            receipt = read_receipt(store, _original(store, receipt.reference, receipt.view_of).descriptor)
        except PolicyRefusedError:
            return "no"
    return receipt.summary if receipt else "no"


def require_trusted(
    store: Store, reference: Reference, descriptor: Descriptor, policy: Policy | None, *, now: datetime
) -> Receipt:
    """What everything that loads a model asks first: a receipt that still holds, or a verification that passes now.

    Needs no network, since pull brings the signatures along. Where there is no policy, what was decided at the pull
    stays decided; with one, a receipt that another policy gave is worth nothing, and with a locked one no person's
    decision to skip the verification. Raises UntrustedError.
    """
    held = read_receipt(store, descriptor)
    if policy:
        require_not_revoked(store.repository(reference.name), reference, descriptor, policy)
    if held and (held.is_built or (held.is_skipped and not (policy and policy.is_locked))):
        return held
    if held and held.view_of:
        original = _original(store, reference, held.view_of)
        return require_trusted(store, original.reference, original.descriptor, policy, now=now)
    promised = _promised(store, reference, descriptor, held)
    if held and held.verdict and held.reference == promised and held.verdict.holds(policy, now=now):
        _require_own_rule(store, reference, promised, descriptor, policy, now=now, is_locked=held.is_locked)
        rule = policy.rule_for(promised) if policy else None
        if rule:
            # Before a pull these are bytes that nobody has hashed yet; a registry might have shown others.
            require_templates(store.repository(reference.name), promised, descriptor, rule)
        return held
    ended = held.verdict.valid_until if held and held.verdict and held.verdict.is_verified else None
    if policy is None and ended and now >= ended:
        raise PolicyRefusedError(
            f"{reference} is refused: what it was verified by at its pull counted until "
            f"{rfc3339(ended)}, and there is no policy that says more"
        )
    renewed = verify_again(store, reference, descriptor, policy or Policy.empty(), now=now)
    write_receipt(store, descriptor, renewed)
    return renewed


def verify_again(
    store: Store, reference: Reference, descriptor: Descriptor, policy: Policy, *, now: datetime
) -> Receipt:
    """Judge a stored artifact anew, by the signatures that lie in the store, as what it was pulled as. Writes nothing.

    A view is as good as what it is a view of. Raises UntrustedError.
    """
    held = read_receipt(store, descriptor)
    if held and held.view_of:
        require_not_revoked(store.repository(reference.name), reference, descriptor, policy)
        original = _original(store, reference, held.view_of)
        return verify_again(store, original.reference, original.descriptor, policy, now=now)
    promised = _promised(store, reference, descriptor, held)
    source = store.repository(promised.name)
    try:
        source.resolve(str(descriptor.digest))
    except NotFoundError:
        # The name that was pulled is gone, and the copy under another name has brought the signatures along.
        source = store.repository(reference.name)
    is_locked = held is not None and held.is_locked
    verdict = check_trust(source, promised, descriptor, policy, now=now, is_locked=is_locked)
    _require_own_rule(store, reference, promised, descriptor, policy, now=now, is_locked=is_locked)
    return Receipt(promised, verdict, is_locked)


def _require_own_rule(
    store: Store,
    reference: Reference,
    promised: Reference,
    descriptor: Descriptor,
    policy: Policy | None,
    *,
    now: datetime,
    is_locked: bool,
) -> None:
    """A name that has a rule of its own is judged by that one, too, however the artifact came to bear it."""
    own = policy.rule_for(reference) if policy else None
    if policy and own and own != policy.rule_for(promised):
        check_trust(store.repository(reference.name), reference, descriptor, policy, now=now, is_locked=is_locked)


def _original(store: Store, reference: Reference, view_of: Reference) -> StoredTag:
    """What a view, or a view of a view, was made from; it may be used for as long as that may be.

    Raises PolicyRefusedError where that is gone, and for receipts that lead round in a circle.
    """
    for _ in range(_MAX_VIEWS):
        try:
            stored = store.find(view_of)
        except NotFoundError as error:
            raise PolicyRefusedError(
                f"{reference} is a view of {view_of}, which is no longer in the store, so nothing vouches for it"
            ) from error
        held = read_receipt(store, stored.descriptor)
        if held is None or held.view_of is None:
            return stored
        view_of = held.view_of
    raise PolicyRefusedError(f"{reference} is a view of views without end, so nothing vouches for it")


def signed_by(store: Store, key: PublicKey) -> list[StoredTag]:
    """The stored tags whose artifact has a signature by this key, whatever a policy says of it."""
    return [
        stored
        for stored in store.list()
        if any(_is_by(key, one) for one in find_signatures(store.repository(stored.reference.name), stored.descriptor))
    ]


def _is_by(key: PublicKey, candidate: Candidate) -> bool:
    try:
        return isinstance(candidate, Signature) and bool(candidate.verify([key]))
    except InvalidSignatureError:
        return False


def _promised(store: Store, reference: Reference, descriptor: Descriptor, held: Receipt | None) -> Reference:
    """What an artifact was verified as. A local name is nobody's promise: the promise is the name that was pulled.

    One artifact may be pulled under several names, each with a promise of its own.
    """
    if held is None or held.verdict is None or reference == held.reference:
        return reference
    known = None if reference.digest else store.memory.recall(reference.plain_tagged)
    return reference if known and known.get("digest") == str(descriptor.digest) else held.reference
