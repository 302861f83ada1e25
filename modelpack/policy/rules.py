"""The policy and its file: strict TOML, read whole or refused whole.

A field that this version would not enforce is an error, never ignored: a policy half followed is worse than none.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NoReturn, TypeVar, get_args

from modelpack.errors import (
    InvalidContentError,
    InvalidInputError,
    InvalidKeyError,
    MalformedPolicyError,
    NotFoundError,
)
from modelpack.oci import strict_json
from modelpack.oci.digest import Digest
from modelpack.oci.reference import Reference
from modelpack.policy import glob
from modelpack.signing.candidate import SCHEMES, Scheme, rfc3339
from modelpack.signing.keys import MAX_KEY_SIZE, PublicKey

MAX_POLICY_SIZE = 1 << 20

Status = Literal["active", "retired", "revoked"]
Action = Literal["deny", "warn", "allow-unsigned"]

KEY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", re.ASCII)
_AGE = re.compile(r"([1-9][0-9]{0,4})([hdw])", re.ASCII)
_HOURS = {"h": 1, "d": 24, "w": 7 * 24}

_LATER = {
    "identities": "keyless identities",
    "attestation": "required attestations",
    "signed_prefix": "mirrors under a signed prefix",
    "locked": "locking",
}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A key with the name that the policy gives it. One that is not ``active`` counts less, or not at all."""

    name: str
    key: PublicKey
    status: Status = "active"
    not_after: datetime | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """What an artifact of a matching repository needs: ``threshold`` distinct keys of ``signers``, and conditions.

    ``match`` is a glob over ``registry/repository``: ``*`` stays within one segment, ``**`` does not.
    """

    match: str
    signers: tuple[TrustedKey, ...]
    threshold: int = 1
    formats: tuple[Scheme, ...] = SCHEMES
    require_ref: bool = False
    max_age: timedelta | None = None

    @property
    def specificity(self) -> tuple[int, int, int]:
        return glob.specificity(self.match)

    def matches(self, name: str) -> bool:
        return glob.matches(self.match, name)


@dataclass(frozen=True, slots=True)
class Policy:
    """Rules, the keys they name, and what was revoked. ``path`` is None for keys given by hand."""

    rules: tuple[Rule, ...]
    keys: Mapping[str, TrustedKey]
    revoked: Mapping[Digest, str] = field(default_factory=lambda: MappingProxyType({}))
    default: Action = "deny"
    path: Path | None = None

    @classmethod
    def load(cls, path: Path) -> "Policy":
        """Read a policy file and the key files that it names.

        Raises NotFoundError without the file, MalformedPolicyError (what, and where in it) for everything else.
        """
        return cls.parse(read_bounded(path, MAX_POLICY_SIZE), path)

    @classmethod
    def of_keys(cls, keys: Iterable[PublicKey]) -> "Policy":
        """Exactly "one of these keys", for everything. Replaces a policy, never widens one."""
        named = {key.id: TrustedKey(key.id, key) for key in keys}
        if not named:
            raise InvalidInputError("no key was given")
        return cls(rules=(Rule("**", tuple(named.values())),), keys=MappingProxyType(named))

    @classmethod
    def empty(cls) -> "Policy":
        """No rule at all: everything is refused."""
        return cls(rules=(), keys=MappingProxyType({}))

    @classmethod
    def parse(cls, raw: bytes, path: Path) -> "Policy":
        """Read the content of a policy file that lies at ``path``. Raises MalformedPolicyError."""
        try:
            document = tomllib.loads(raw.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise MalformedPolicyError(f"{path}: not TOML: {error}") from error
        root = _Table(document, str(path))
        version = root.take("version", int)
        if version != 1:
            root.refuse(f"version {version} is not known; this modelpack reads version 1")
        default = root.table("default")
        action = default.choice("action", get_args(Action), "deny")
        default.done()
        keys = {name: _key(name, table, path.parent) for name, table in root.named_tables("keys")}
        rules = tuple(_rule(table, keys) for table in root.tables("rule"))
        revoked = dict(_revoked(table) for table in root.tables("revoked"))
        root.done()
        _refuse_ambiguity(rules, root)
        return cls(rules, MappingProxyType(keys), MappingProxyType(revoked), action, path)

    def rule_for(self, reference: Reference) -> Rule | None:
        """The most specific rule whose ``match`` fits the repository, whatever its place in the file."""
        fitting = [rule for rule in self.rules if rule.matches(reference.name)]
        return max(fitting, key=lambda rule: rule.specificity, default=None)

    @property
    def digest(self) -> Digest:
        """Of what the policy means: comments and spelling do not change it, a key behind a path does."""
        return Digest.of(
            strict_json.canonical(
                {
                    "default": self.default,
                    "keys": {name: _key_facts(key) for name, key in sorted(self.keys.items())},
                    "rules": sorted((_rule_facts(rule) for rule in self.rules), key=lambda facts: str(facts["match"])),
                    "revoked": sorted(str(digest) for digest in self.revoked),
                }
            )
        )


class _Table:
    """A TOML table that is emptied field by field; what is left at the end was not known."""

    def __init__(self, content: Mapping[str, Any], where: str) -> None:
        self.content = dict(content)
        self.where = where

    def refuse(self, reason: str) -> NoReturn:
        raise MalformedPolicyError(f"{self.where}: {reason}")

    def take(self, name: str, kind: type[T]) -> T:
        if name not in self.content:
            self.refuse(f"{name!r} is missing")
        value = self.content.pop(name)
        # bool is an int to Python, and nobody means "threshold = true".
        if type(value) is not kind:
            self.refuse(f"{name!r} is {value!r:.60}, not of type {kind.__name__}")
        return value

    def optional(self, name: str, kind: type[T]) -> T | None:
        return self.take(name, kind) if name in self.content else None

    def choice(self, name: str, choices: tuple[Any, ...], default: Any) -> Any:
        value = self.optional(name, str) if name in self.content else default
        if value not in choices:
            self.refuse(f"{name!r} is {value!r:.60}, not one of {', '.join(choices)}")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        values = self.take(name, list)
        if not values or not all(isinstance(value, str) for value in values) or len(set(values)) != len(values):
            self.refuse(f"{name!r} is not a list of different strings")
        return tuple(values)

    def table(self, name: str) -> "_Table":
        return _Table(self.optional(name, dict) or {}, f"{self.where}: [{name}]")

    def named_tables(self, name: str) -> list[tuple[str, "_Table"]]:
        tables = []
        for key, content in (self.optional(name, dict) or {}).items():
            if not KEY_NAME.fullmatch(key) or not isinstance(content, dict):
                self.refuse(f"[{name}] has {key!r:.80}, not a named table (letters, digits, - and _)")
            tables.append((key, _Table(content, f"{self.where}: [{name}.{key}]")))
        return tables

    def tables(self, name: str) -> list["_Table"]:
        contents = self.optional(name, list) or []
        if not all(isinstance(content, dict) for content in contents):
            self.refuse(f"{name!r} is not a list of tables, [[{name}]]")
        return [_Table(content, f"{self.where}: [[{name}]] {index}") for index, content in enumerate(contents, start=1)]

    def done(self) -> None:
        for name in self.content:
            if name in _LATER:
                self.refuse(f"{name!r}: {_LATER[name]} are not enforced by this version, so the policy is refused")
            self.refuse(f"unknown field {name!r:.80}")


def _key(name: str, table: _Table, directory: Path) -> TrustedKey:
    path = directory / table.take("path", str)
    pin = table.optional("id", str)
    status = table.choice("status", get_args(Status), "active")
    not_after = table.optional("not_after", datetime)
    table.done()
    if not_after is not None and not_after.tzinfo is None:
        table.refuse("'not_after' has no time zone; write 2027-12-31T00:00:00Z")
    try:
        key = PublicKey.load(read_bounded(path, MAX_KEY_SIZE))
    except (InvalidKeyError, NotFoundError, MalformedPolicyError) as error:
        raise MalformedPolicyError(f"{table.where}: {path}: {error}") from error
    if pin is not None and pin != key.id:
        table.refuse(f"{path} holds the key {key.id}, not {pin!r:.80}")
    return TrustedKey(name, key, status, not_after)


def _rule(table: _Table, keys: Mapping[str, TrustedKey]) -> Rule:
    match = table.take("match", str)
    names = table.texts("signers")
    threshold = table.optional("threshold", int)
    formats = table.texts("formats") if "formats" in table.content else SCHEMES
    require_ref = table.optional("require_ref", bool)
    max_age = table.optional("max_age", str)
    table.done()
    reason = glob.fault(match)
    if reason:
        table.refuse(f"match {match!r:.120}: {reason}")
    for name in names:
        if name not in keys:
            table.refuse(f"signer {name!r:.80} is not among the keys")
    if not set(formats) <= set(SCHEMES):
        table.refuse(f"'formats' knows {', '.join(SCHEMES)}")
    age = _AGE.fullmatch(max_age) if max_age is not None else None
    if max_age is not None and age is None:
        table.refuse(f"max_age {max_age!r:.40} is not a number of hours, days or weeks, such as 180d")
    distinct = len({keys[name].key for name in names})
    if threshold is not None and not 1 <= threshold <= distinct:
        table.refuse(f"threshold {threshold} does not fit {distinct} distinct keys")
    return Rule(
        match=match.lower(),
        signers=tuple(keys[name] for name in names),
        threshold=threshold or 1,
        formats=tuple(scheme for scheme in SCHEMES if scheme in formats),
        require_ref=bool(require_ref),
        max_age=timedelta(hours=int(age[1]) * _HOURS[age[2]]) if age else None,
    )


def _revoked(table: _Table) -> tuple[Digest, str]:
    text = table.take("digest", str)
    reason = table.optional("reason", str) or ""
    table.done()
    try:
        return Digest(text), reason
    except InvalidContentError as error:
        raise MalformedPolicyError(f"{table.where}: {error}") from error


def _refuse_ambiguity(rules: tuple[Rule, ...], root: _Table) -> None:
    for position, one in enumerate(rules):
        for other in rules[position + 1 :]:
            if one.specificity == other.specificity and glob.overlap(one.match, other.match):
                root.refuse(f"rules {one.match!r} and {other.match!r} are equally specific and can match the same name")


def _key_facts(key: TrustedKey) -> dict[str, object]:
    return {
        "id": key.key.id,
        "status": key.status,
        "not_after": rfc3339(key.not_after) if key.not_after else None,
    }


def _rule_facts(rule: Rule) -> dict[str, object]:
    return {
        "match": rule.match,
        "signers": sorted(signer.name for signer in rule.signers),
        "threshold": rule.threshold,
        "formats": list(rule.formats),
        "require_ref": rule.require_ref,
        "max_age": int(rule.max_age.total_seconds()) if rule.max_age else None,
    }


def read_bounded(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no file {path}") from error
    except OSError as error:
        raise MalformedPolicyError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > limit:
        raise MalformedPolicyError(f"{path} is longer than {limit} bytes")
    return content
