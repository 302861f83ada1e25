"""Where a stored model came from and why it may run: each fact with how sure it is, and by whose word.

Nothing is decided here: what nobody known vouches for is shown too, as what it is.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from modelpack import catalog
from modelpack.errors import UnsupportedError
from modelpack.evidence.predicates import CYCLONEDX, SLSA_PROVENANCE, TEST_RESULT
from modelpack.evidence.record import read_record
from modelpack.evidence.tree import NO_SIGNERS, name_of
from modelpack.formats import Model
from modelpack.oci.manifest import Descriptor
from modelpack.oci.reference import Reference
from modelpack.receipt import Receipt, read_receipt, standing
from modelpack.signing.attestation import find_attestations
from modelpack.signing.candidate import Attestation, Claims, Signature, rfc3339
from modelpack.signing.keys import PublicKey
from modelpack.signing.signature import find_signatures
from modelpack.store import Store

Certainty = Literal["signed", "recorded", "said", "unknown"]
"""From sure to not at all: signed by a key that the policy names; noted by this store when it built or verified the
model; said by the artifact or by somebody unknown; not said by anybody."""

_ORDER: tuple[Certainty, ...] = ("signed", "recorded", "said", "unknown")
_MAX_TEXT = 300


@dataclass(frozen=True, slots=True)
class Voice:
    """By whose word something is known."""

    certainty: Certainty
    by: str

    @property
    def doubt(self) -> int:
        return _ORDER.index(self.certainty)


_ARTIFACT = Voice("said", "the artifact")
_STORE = Voice("recorded", "this store")
_NOBODY = Voice("unknown", "nobody")


@dataclass(frozen=True, slots=True)
class Fact:
    """``value`` is None where the fact is not known."""

    about: str
    value: str | None
    voice: Voice

    def to_json(self) -> dict[str, Any]:
        return {"about": self.about, "value": self.value, "certainty": self.voice.certainty, "by": self.voice.by}


@dataclass(frozen=True, slots=True)
class _Statement:
    """A predicate and by whose word it is."""

    predicate: Mapping[str, Any]
    voice: Voice


def why(
    store: Store, reference: Reference, subject: Descriptor, signers: Mapping[str, PublicKey] = NO_SIGNERS
) -> list[Fact]:
    """Everything that is known about how ``subject`` came to be and came here. ``signers``: the known keys by name.

    Needs no network: a pull brings the evidence along.
    """
    source = store.repository(reference.name)
    receipt = read_receipt(store, subject)
    signatures = [one for one in find_signatures(source, subject) if isinstance(one, Signature)]
    attestations = [one for one in find_attestations(source, subject) if isinstance(one, Attestation)]
    record = read_record(store, subject.digest)

    def statements(kind: str) -> list[_Statement]:
        found = [
            _Statement(one.predicate, _voice_of(one, signers)) for one in attestations if one.predicate_type == kind
        ]
        recorded = record.get(kind)
        if recorded and not any(one.predicate == recorded and one.voice.certainty == "signed" for one in found):
            # What this store knows by itself needs no stranger's word.
            found = [*(one for one in found if one.predicate != recorded), _Statement(recorded, _STORE)]
        return sorted(found, key=lambda one: one.voice.doubt)

    author = _author(signatures, signers, is_vouched=standing(store, subject) != "no")
    try:
        _, model = catalog.read_model(source, subject)
    except UnsupportedError:
        model = None
    provenances = statements(SLSA_PROVENANCE)
    return [
        *_how_it_came(receipt),
        *_signers(signatures, signers),
        *_builds(provenances),
        _source(provenances, model, author),
        *_said_of_the_model(model, author),
        *_tests(statements(TEST_RESULT)),
        *_bills(statements(CYCLONEDX)),
    ]


def _voice_of(evidence: Signature | Attestation, signers: Mapping[str, PublicKey]) -> Voice:
    name = name_of(evidence, signers)
    if name:
        return Voice("signed", name)
    return Voice("said", f"the key SHA256:{evidence.hint}, as it says" if evidence.hint else "an unknown key")


def _author(signatures: Iterable[Signature], signers: Mapping[str, PublicKey], *, is_vouched: bool) -> Voice:
    """Who vouches for what the manifest says: whoever signed it, as far as that is known now or was at the pull."""
    voices = [voice for one in signatures if (voice := _voice_of(one, signers)).certainty == "signed"]
    if voices:
        return Voice("signed", ", ".join(sorted({voice.by for voice in voices})))
    return _STORE if is_vouched else _ARTIFACT


def _how_it_came(receipt: Receipt | None) -> list[Fact]:
    if receipt is None:
        return [Fact("trust", None, _NOBODY), Fact("registry", None, _NOBODY)]
    verdict = receipt.verdict
    if receipt.is_built or verdict is None:
        return [Fact("trust", receipt.summary, _STORE), Fact("registry", None, _NOBODY)]
    names = ", ".join(signer.name for signer in verdict.signers)
    found = f"signed by {names}" if names else "not verified"
    trust = f"{found}; rule {verdict.rule}; checked {rfc3339(verdict.checked_at)}"
    registry = str(receipt.reference) if receipt.reference.registry else None
    return [Fact("trust", trust, _STORE), Fact("registry", registry, _STORE if registry else _NOBODY)]


def _signers(signatures: list[Signature], signers: Mapping[str, PublicKey]) -> list[Fact]:
    if not signatures:
        return [Fact("signature", None, _NOBODY)]
    unique = {(_voice_of(one, signers), _bound(one.claims)): None for one in signatures}
    return [Fact("signature", text, voice) for voice, text in sorted(unique, key=lambda pair: pair[0].doubt)]


def _bound(claims: Claims) -> str:
    when = f" at {rfc3339(claims.signed_at)}" if claims.signed_at else ""
    return f"as {claims.reference or 'no name in particular'}{when}"


def _builds(provenances: list[_Statement]) -> list[Fact]:
    facts = []
    for one in provenances:
        builder = _text(one.predicate, "runDetails", "builder", "id") or "an unnamed builder"
        when = _text(one.predicate, "runDetails", "metadata", "finishedOn")
        inputs = _look(one.predicate, "buildDefinition", "resolvedDependencies")
        count = f", {len(inputs)} inputs and tools" if isinstance(inputs, list) else ""
        facts.append(Fact("build", f"{builder}{f' at {when}' if when else ''}{count}", one.voice))
    return facts or [Fact("build", None, _NOBODY)]


def _source(provenances: list[_Statement], model: Model | None, author: Voice) -> Fact:
    """The most certain word about it; where provenance and manifest are as certain, the provenance's."""
    known = []
    for one in provenances:
        of = ("buildDefinition", "externalParameters", "source")
        repository, revision = _text(one.predicate, *of, "repository"), _text(one.predicate, *of, "revision")
        if repository:
            known.append(Fact("source", f"{repository}@{revision}" if revision else repository, one.voice))
        elif name := _text(one.predicate, *of, "name"):
            known.append(Fact("source", f"{name}, a directory or file of the builder's", one.voice))
    if model and model.source_url:
        at = f"@{model.revision}" if model.revision else ""
        known.append(Fact("source", f"{model.source_url}{at}", author))
    return min(known, key=lambda fact: fact.voice.doubt, default=Fact("source", None, _NOBODY))


def _said_of_the_model(model: Model | None, author: Voice) -> list[Fact]:
    if model is None:
        return []
    base = model.annotations.get("org.opencontainers.image.base.name") or ", ".join(model.base_models)
    said = {"licence": ", ".join(model.licenses), "base model": base, "variant": model.quantization}
    return [Fact(about, value or None, author if value else _NOBODY) for about, value in said.items()]


def _tests(results: list[_Statement]) -> list[Fact]:
    facts = []
    for one in results:
        counts = [
            f"{len(names)} {kind}"
            for kind in ("passed", "warned", "failed")
            if isinstance(names := one.predicate.get(f"{kind}Tests"), list) and names
        ]
        suite = _text(one.predicate, "configuration", 0, "name")
        text = f"{_text(one.predicate, 'result') or 'no result'}: {', '.join(counts) or 'no tests named'}"
        facts.append(Fact("smoke", f"{text}{f'; {suite}' if suite else ''}", one.voice))
    return facts or [Fact("smoke", None, _NOBODY)]


def _bills(bills: list[_Statement]) -> list[Fact]:
    return [
        Fact("bill", f"CycloneDX {_text(one.predicate, 'specVersion') or 'of no version'}", one.voice) for one in bills
    ]


def _look(document: object, *path: str | int) -> object:
    """What lies at a path in a predicate that may be anything; None where there is no such path."""
    for step in path:
        if isinstance(step, int):
            document = document[step] if isinstance(document, list) and len(document) > step else None
        else:
            document = document.get(step) if isinstance(document, Mapping) else None
    return document


def _text(document: object, *path: str | int) -> str | None:
    value = _look(document, *path)
    return value[:_MAX_TEXT] if isinstance(value, str) and value else None
