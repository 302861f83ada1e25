"""Rules: what an artifact of a repository needs before it may be used."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from types import MappingProxyType
from typing import Any

from modelpack.oci.reference import Reference
from modelpack.policy import glob
from modelpack.policy.signers import Identity, TrustedKey, TrustedSigner, count_distinct
from modelpack.policy.table import Table
from modelpack.signing.candidate import SCHEMES, Scheme

Scalar = str | int | bool

_AGE = re.compile(r"([1-9][0-9]{0,4})([hdw])", re.ASCII)
_HOURS = {"h": 1, "d": 24, "w": 7 * 24}
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_INDEX = re.compile(r"[0-9]{1,9}", re.ASCII)
_PATH = re.compile(r"[^.\s]+(\.[^.\s]+)*")


@dataclass(frozen=True, slots=True)
class Requirement:
    """An attestation that must be there: ``threshold`` distinct ``signers`` say it, with the predicate that is wanted.

    ``where`` maps a path into the predicate (``runDetails.builder.id``, ``configuration.0.name``) to the values that
    will do.
    """

    type: str
    signers: tuple[TrustedSigner, ...]
    threshold: int = 1
    where: Mapping[str, tuple[Scalar, ...]] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def parse(cls, table: Table, known: Mapping[str, TrustedSigner]) -> "Requirement":
        kind = table.take("type", str)
        signers = _signers(table, known)
        threshold = _threshold(table, signers)
        where = {path: _wanted(table, path, value) for path, value in (table.optional("where", dict) or {}).items()}
        table.done()
        if not kind or not kind.isprintable() or " " in kind:
            table.refuse(f"'type' is {kind!r:.120}, not the URI of a predicate")
        return cls(kind, signers, threshold, MappingProxyType(where))

    @property
    def facts(self) -> dict[str, object]:
        return {
            "type": self.type,
            "signers": sorted(signer.name for signer in self.signers),
            "threshold": self.threshold,
            "where": {path: list(values) for path, values in sorted(self.where.items())},
        }

    def fault(self, predicate: Mapping[str, Any]) -> str | None:
        """What in a predicate is not as wanted, or None."""
        for path, wanted in self.where.items():
            found = _look(predicate, path)
            # 1 equals True to Python, and neither equals "1".
            if not any(type(found) is type(value) and found == value for value in wanted):
                return f"its {path} is {found!r:.80}, not {' or '.join(repr(value) for value in wanted):.120}"
        return None


@dataclass(frozen=True, slots=True)
class Rule:
    """What an artifact of a matching repository needs: ``threshold`` distinct ``signers``, and conditions.

    ``match`` is a glob over ``registry/repository``: ``*`` stays within one segment, ``**`` does not. ``signed_prefix``
    stands for the literal part of ``match`` where a mirror keeps the signatures that were made for the original.
    """

    match: str
    signers: tuple[TrustedSigner, ...]
    threshold: int = 1
    formats: tuple[Scheme, ...] = SCHEMES
    require_ref: bool = False
    max_age: timedelta | None = None
    signed_prefix: str | None = None
    licenses: tuple[str, ...] | None = None
    templates: tuple[str, ...] | None = None
    """The sha256, in hexadecimal digits, of the chat templates that an artifact may have; None for any or none."""
    attestations: tuple[Requirement, ...] = ()

    @classmethod
    def parse(cls, table: Table, known: Mapping[str, TrustedSigner]) -> "Rule":
        """Read one [[rule]]. Raises MalformedPolicyError."""
        match = table.take("match", str)
        fault = glob.fault(match)
        if fault:
            table.refuse(f"match {match!r:.120}: {fault}")
        signers = _signers(table, known)
        rule = cls(
            match=match.lower(),
            signers=signers,
            threshold=_threshold(table, signers),
            formats=_formats(table),
            require_ref=bool(table.optional("require_ref", bool)),
            max_age=_max_age(table),
            signed_prefix=table.optional("signed_prefix", str),
            licenses=table.texts("licenses") if "licenses" in table else None,
            templates=_templates(table),
            attestations=tuple(Requirement.parse(one, known) for one in table.tables("attestation")),
        )
        table.done()
        rule._check_prefix(table)
        return rule

    @property
    def specificity(self) -> tuple[int, int, int]:
        return glob.specificity(self.match)

    @property
    def keys(self) -> tuple[TrustedKey, ...]:
        return tuple(signer for signer in self.signers if isinstance(signer, TrustedKey))

    @property
    def identities(self) -> tuple[Identity, ...]:
        return tuple(signer for signer in self.signers if isinstance(signer, Identity))

    @property
    def facts(self) -> dict[str, object]:
        return {
            "match": self.match,
            "signers": sorted(signer.name for signer in self.signers),
            "threshold": self.threshold,
            "formats": list(self.formats),
            "require_ref": self.require_ref,
            "max_age": int(self.max_age.total_seconds()) if self.max_age else None,
            "signed_prefix": self.signed_prefix,
            "licenses": sorted(self.licenses) if self.licenses is not None else None,
            "template_sha256": sorted(self.templates) if self.templates is not None else None,
            "attestations": sorted((one.facts for one in self.attestations), key=str),
        }

    def matches(self, reference: Reference) -> bool:
        return any(glob.matches(self.match, name) for name in (reference.name, reference.plain_name))

    def signed_as(self, reference: Reference) -> str:
        """The name, ``registry/repository``, under which this repository's artifacts were signed."""
        if self.signed_prefix is None:
            return reference.name
        name = reference.name if glob.matches(self.match, reference.name) else reference.plain_name
        return self.signed_prefix + name[len(self._prefix) :]

    @property
    def _prefix(self) -> str:
        """What of ``match`` comes before its first wildcard, in whole segments."""
        return self.match.partition("*")[0].rstrip("/")

    def _check_prefix(self, table: Table) -> None:
        if self.signed_prefix is None:
            return
        if not self.require_ref:
            table.refuse("'signed_prefix' says nothing without require_ref = true")
        if glob.fault(self.signed_prefix) or "*" in self.signed_prefix:
            table.refuse(f"'signed_prefix' is {self.signed_prefix!r:.120}, not registry/repository or a part of it")
        if self.match[len(self._prefix) :] not in ("", "/*", "/**"):
            table.refuse("'signed_prefix' needs a match that ends in /* or /**, or names one repository")


def _signers(table: Table, known: Mapping[str, TrustedSigner]) -> tuple[TrustedSigner, ...]:
    names = table.texts("signers")
    for name in names:
        if name not in known:
            table.refuse(f"signer {name!r:.80} is not among the keys and identities")
    return tuple(known[name] for name in names)


def _threshold(table: Table, signers: tuple[TrustedSigner, ...]) -> int:
    threshold = table.optional("threshold", int)
    distinct = count_distinct(signers)
    if threshold is not None and not 1 <= threshold <= distinct:
        table.refuse(f"threshold {threshold} does not fit {distinct} distinct keys")
    return threshold or 1


def _formats(table: Table) -> tuple[Scheme, ...]:
    formats = table.texts("formats") if "formats" in table else SCHEMES
    if not set(formats) <= set(SCHEMES):
        table.refuse(f"'formats' knows {', '.join(SCHEMES)}")
    return tuple(scheme for scheme in SCHEMES if scheme in formats)


def _templates(table: Table) -> tuple[str, ...] | None:
    if "template_sha256" not in table:
        return None
    digests = tuple(text.removeprefix("sha256:") for text in table.texts("template_sha256"))
    for digest in digests:
        if not _SHA256.fullmatch(digest):
            table.refuse(f"'template_sha256' has {digest!r:.80}, not 64 lower-case hexadecimal digits")
    return tuple(dict.fromkeys(digests))


def _max_age(table: Table) -> timedelta | None:
    text = table.optional("max_age", str)
    if text is None:
        return None
    age = _AGE.fullmatch(text)
    if age is None:
        table.refuse(f"max_age {text!r:.40} is not a number of hours, days or weeks, such as 180d")
    return timedelta(hours=int(age[1]) * _HOURS[age[2]])


def _wanted(table: Table, path: str, value: object) -> tuple[Scalar, ...]:
    values = value if isinstance(value, list) else [value]
    if not _PATH.fullmatch(path):
        table.refuse(f"'where' has {path!r:.80}, not a path such as runDetails.builder.id")
    if not values or not all(type(one) in (str, int, bool) for one in values):
        table.refuse(f"'where' wants {value!r:.60} of {path}, not a string, a number, a boolean or a list of them")
    return tuple(values)


def _look(predicate: object, path: str) -> object:
    """What stands at a path; None where nothing does."""
    for step in path.split("."):
        if isinstance(predicate, Mapping):
            predicate = predicate.get(step)
        elif isinstance(predicate, list) and _INDEX.fullmatch(step) and int(step) < len(predicate):
            predicate = predicate[int(step)]
        else:
            return None
    return predicate
