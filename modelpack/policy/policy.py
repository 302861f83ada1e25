"""The policy and its file: strict TOML, read whole or refused whole.

A field that this version would not enforce is an error, never ignored: a policy half followed is worse than none.
"""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal, get_args

from modelpack.errors import InvalidContentError, InvalidInputError, MalformedPolicyError, NotFoundError
from modelpack.oci import strict_json
from modelpack.oci.digest import Digest
from modelpack.oci.reference import Reference
from modelpack.policy import glob
from modelpack.policy.rules import Rule
from modelpack.policy.signers import Identity, TrustedKey, TrustedSigner
from modelpack.policy.table import Table
from modelpack.signing.keys import PublicKey
from modelpack.small_file import read_small_file

MAX_POLICY_SIZE = 1 << 20
MAX_ROOT_SIZE = 4 << 20

Action = Literal["deny", "warn", "allow-unsigned"]


@dataclass(frozen=True, slots=True)
class Policy:
    """Rules, who they name, and what was revoked. ``path`` is None for keys given by hand.

    ``trusted_root`` is the content of the file that says which Fulcio, Rekor and timestamp authorities vouch for
    identities (sigstore's trusted_root.json); None stands for the public good instance. ``is_locked``: as the policy
    of a machine it cannot be replaced by anything a user says.
    """

    rules: tuple[Rule, ...]
    keys: Mapping[str, TrustedKey]
    revoked: Mapping[Digest, str] = field(default_factory=lambda: MappingProxyType({}))
    default: Action = "deny"
    path: Path | None = None
    identities: Mapping[str, Identity] = field(default_factory=lambda: MappingProxyType({}))
    trusted_root: bytes | None = field(default=None, repr=False)
    is_locked: bool = False

    @classmethod
    def load(cls, path: Path) -> "Policy":
        """Read a policy file and the key files that it names.

        Raises NotFoundError without the file, MalformedPolicyError (what, and where in it) for everything else.
        """
        return cls.parse(read_small_file(path, limit=MAX_POLICY_SIZE, error=MalformedPolicyError), path)

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
        root = Table(document, str(path))
        version = root.take("version", int)
        if version != 1:
            root.refuse(f"version {version} is not known; this modelpack reads version 1")
        is_locked = bool(root.optional("locked", bool))
        default = root.table("default")
        action = default.choice("action", get_args(Action), "deny")
        default.done()
        keys = {name: TrustedKey.parse(name, table, path.parent) for name, table in root.named_tables("keys")}
        identities = {name: Identity.parse(name, table) for name, table in root.named_tables("identities")}
        for name in keys.keys() & identities.keys():
            root.refuse(f"{name!r} names a key and an identity")
        signers: dict[str, TrustedSigner] = {**keys, **identities}
        rules = tuple(Rule.parse(table, signers) for table in root.tables("rule"))
        revoked = dict(_revoked(table) for table in root.tables("revoked"))
        trusted_root = _trusted_root(root.table("sigstore"), path.parent)
        root.done()
        _refuse_ambiguity(rules, root)
        return cls(
            rules,
            MappingProxyType(keys),
            MappingProxyType(revoked),
            action,
            path,
            MappingProxyType(identities),
            trusted_root,
            is_locked,
        )

    def rule_for(self, reference: Reference) -> Rule | None:
        """The most specific rule whose ``match`` fits the repository, whatever its place in the file."""
        fitting = [rule for rule in self.rules if rule.matches(reference)]
        # Two can be as specific only where one is about another name of the registry.
        return max(fitting, key=lambda rule: (rule.specificity, rule.match), default=None)

    @property
    def digest(self) -> Digest:
        """Of what the policy means: comments and spelling do not change it, a key behind a path does."""
        return Digest.of(
            strict_json.canonical(
                {
                    "default": self.default,
                    "keys": {name: key.facts for name, key in sorted(self.keys.items())},
                    "identities": {name: one.facts for name, one in sorted(self.identities.items())},
                    "trusted_root": str(Digest.of(self.trusted_root)) if self.trusted_root is not None else None,
                    "rules": sorted((rule.facts for rule in self.rules), key=lambda facts: str(facts["match"])),
                    "revoked": sorted(str(digest) for digest in self.revoked),
                }
            )
        )


def _trusted_root(table: Table, directory: Path) -> bytes | None:
    name = table.optional("trusted_root", str)
    table.done()
    if name is None:
        return None
    try:
        return read_small_file(directory / name, limit=MAX_ROOT_SIZE, error=MalformedPolicyError)
    except (NotFoundError, MalformedPolicyError) as error:
        raise MalformedPolicyError(f"{table.where}: {error}") from error


def _revoked(table: Table) -> tuple[Digest, str]:
    text = table.take("digest", str)
    reason = table.optional("reason", str) or ""
    table.done()
    try:
        return Digest(text), reason
    except InvalidContentError as error:
        raise MalformedPolicyError(f"{table.where}: {error}") from error


def _refuse_ambiguity(rules: tuple[Rule, ...], root: Table) -> None:
    for position, one in enumerate(rules):
        for other in rules[position + 1 :]:
            if one.specificity == other.specificity and glob.overlap(one.match, other.match):
                root.refuse(f"rules {one.match!r} and {other.match!r} are equally specific and can match the same name")
