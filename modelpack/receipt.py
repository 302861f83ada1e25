"""Receipts: how an artifact got into the store, and why it may be used, so that run and serve need no registry."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from modelpack.errors import InvalidContentError, NotFoundError, PolicyRefusedError
from modelpack.oci.manifest import Descriptor
from modelpack.oci.reference import Reference
from modelpack.oci.target import Source
from modelpack.policy import Policy
from modelpack.store import Store
from modelpack.trust import Verdict, check_trust


@dataclass(frozen=True, slots=True)
class Receipt:
    """``verdict`` is what was found when it was pulled; None for what was built here.

    ``is_locked``: a lock file names this digest, so that keys which were retired since still count.
    """

    reference: Reference
    verdict: Verdict | None
    is_locked: bool = False

    @property
    def is_skipped(self) -> bool:
        """Whether a person let it in without verification; a policy that lets unsigned things pass is asked again."""
        return self.verdict is not None and self.verdict.policy is None and not self.verdict.is_verified

    @property
    def summary(self) -> str:
        """For a person: the signers' names, ``built here`` or ``no``."""
        if self.verdict is None:
            return "built here"
        return ", ".join(signer.name for signer in self.verdict.signers) or "no"


def write_receipt(store: Store, descriptor: Descriptor, receipt: Receipt) -> None:
    document: dict[str, Any] = {"reference": str(receipt.reference), "locked": receipt.is_locked}
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
        )
    except (KeyError, TypeError, AttributeError, InvalidContentError):
        return None
    return receipt if receipt.verdict is None or receipt.verdict.digest == descriptor.digest else None


def require_trusted(
    store: Store, reference: Reference, descriptor: Descriptor, policy: Policy | None, *, now: datetime
) -> Receipt:
    """What everything that loads a model asks first: a receipt that still holds, or a verification that passes now.

    Needs no network, since pull brings the signatures along. Where there is no policy, what was decided at the pull
    stays decided; with one, a receipt that another policy gave is worth nothing, and with a locked one no person's
    decision to skip the verification. Raises UntrustedError.
    """
    held = read_receipt(store, descriptor)
    if policy and descriptor.digest in policy.revoked:
        raise PolicyRefusedError(f"{reference}: {descriptor.digest} is revoked")
    if held and held.verdict is None:
        return held
    if held and held.is_skipped and not (policy and policy.is_locked):
        return held
    if held and held.verdict and held.verdict.holds(policy, now=now):
        return held
    # A local name is nobody's promise: what was promised is the name under which it was pulled.
    promised = held.reference if held else reference
    is_locked = held.is_locked if held else False
    verdict = check_trust(
        _evidence(store, promised, reference, descriptor),
        promised,
        descriptor,
        policy or Policy.empty(),
        now=now,
        is_locked=is_locked,
    )
    renewed = Receipt(promised, verdict, is_locked)
    write_receipt(store, descriptor, renewed)
    return renewed


def _evidence(store: Store, promised: Reference, reference: Reference, descriptor: Descriptor) -> Source:
    """Where the signatures lie: with the name that was pulled, or, once that was removed, with the copy's own name."""
    repository = store.repository(promised.name)
    try:
        repository.resolve(str(descriptor.digest))
    except NotFoundError:
        return store.repository(reference.name)
    return repository
