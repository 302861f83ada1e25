"""Changing a policy file without disturbing what people wrote in it: its text is edited, then the whole is read back.

Each change says what the policy must mean afterwards. A file whose text these small edits cannot bring there stays as
it is, and a person is asked to write it.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from modelpack.atomic_file import write_atomically
from modelpack.errors import InvalidInputError, MalformedPolicyError, NotFoundError
from modelpack.policy import glob, text
from modelpack.policy.policy import MAX_POLICY_SIZE, Policy
from modelpack.policy.rules import Rule
from modelpack.policy.signers import TrustedKey, TrustedSigner, count_distinct
from modelpack.policy.table import NAME
from modelpack.signing.keys import MAX_KEY_SIZE, PublicKey
from modelpack.small_file import read_small_file
from modelpack.store import locks


def write_starting_policy(path: Path) -> None:
    """A policy that refuses everything and shows, in comments, how to say more.

    Raises InvalidInputError where there is a file already: what people wrote is never overwritten.
    """
    with _editing(path):
        if os.path.lexists(path):
            raise InvalidInputError(f"{path} is there already")
        write_atomically(path, text.COMMENTED_FILE.encode())


def add_key_rule(path: Path, name: str, public_key_pem: bytes, match: str) -> None:
    """Trust a key for the repositories that ``match`` names: what ``trust add`` does.

    Makes the file if there is none, copies the key to ``keys/NAME.pub`` beside it, adds a rule, or the signer to the
    rule of exactly that match. What stands in the file stays as it is; the result is read back before it replaces it.
    Raises InvalidKeyError, MalformedPolicyError for a file that is broken already, InvalidInputError for a name that
    means another key, and for a rule written in a way that cannot be extended.
    """
    if not NAME.fullmatch(name):
        raise InvalidInputError(f"not a name for a key: {name!r:.80} (letters, digits, - and _)")
    fault = glob.fault(match)
    if fault:
        raise InvalidInputError(f"match {match!r:.120} {fault}")
    key = PublicKey.load(public_key_pem)
    key_path = path.parent / "keys" / f"{name}.pub"
    with _editing(path):
        content = _read(path) if path.exists() else text.SMALLEST_FILE
        before = Policy.parse(content.encode(), path)

        signer = before.keys.get(name)
        is_known = signer is not None
        if signer is None:
            signer = TrustedKey(name, key)
            content = text.append(content, f'[keys.{name}]\npath = "keys/{name}.pub"\nid = "{key.id}"')
        if signer.key != key:
            raise InvalidInputError(f"{path} knows {name!r} as another key, {signer.key.id}")
        if signer.status != "active":
            raise InvalidInputError(f"{path} says that {name!r} is {signer.status}")
        rules = list(before.rules)
        position = next((index for index, rule in enumerate(rules) if rule.match == match.lower()), None)
        if position is None:
            rules.append(Rule(match.lower(), (signer,)))
            content = text.append(content, f'[[rule]]\nmatch = "{match}"\nsigners = ["{name}"]')
        elif signer not in rules[position].signers:
            rules[position] = replace(rules[position], signers=(*rules[position].signers, signer))
            content = text.extend_signers(content, match, name)
        wanted = replace(before, keys={**before.keys, name: signer}, rules=tuple(rules))

        is_new_file = not is_known and not _holds(key_path, key)
        if is_new_file:
            write_atomically(key_path, key.pem)
        try:
            _write(path, content, wanted, f"add {name!r} to it by hand")
        except BaseException:
            if is_new_file:
                key_path.unlink()
            raise


def revoke_key(path: Path, name: str) -> TrustedKey:
    """Mark a key as revoked, so that none of its signatures counts any more; returns it as it is now.

    Raises NotFoundError without the file or the key in it, InvalidInputError where the text is not plain enough.
    """
    with _editing(path):
        content = _read(path)
        before = Policy.parse(content.encode(), path)
        if name not in before.keys:
            raise NotFoundError(f"{path} knows no key {name!r:.80}")
        revoked = replace(before.keys[name], status="revoked")
        if before.keys[name] != revoked:
            _write(
                path,
                text.set_status(content, name, "revoked"),
                _with_key(before, revoked),
                f'set status = "revoked" in [keys.{name}] by hand',
            )
        return revoked


def remove_signer(path: Path, name: str) -> None:
    """Take a key or an identity out of the policy and of its rules; a rule that it signed alone goes with it.

    The file of the key stays. Raises NotFoundError without the file or the name in it, InvalidInputError where a rule
    could not be met any more or the text is not plain enough.
    """
    with _editing(path):
        content = _read(path)
        before = Policy.parse(content.encode(), path)
        signer: TrustedSigner | None = before.keys.get(name) or before.identities.get(name)
        if signer is None:
            raise NotFoundError(f"{path} knows no key and no identity {name!r:.80}")
        rules = []
        for rule in before.rules:
            if any(signer in requirement.signers for requirement in rule.attestations):
                raise InvalidInputError(f"{path}: the rule {rule.match!r} wants an attestation by {name!r}")
            left = tuple(one for one in rule.signers if one != signer)
            if left and rule.threshold > count_distinct(left):
                raise InvalidInputError(f"{path}: without {name!r} the rule {rule.match!r} could not be met any more")
            if left:
                rules.append(replace(rule, signers=left))
        wanted = replace(
            before,
            keys={key: value for key, value in before.keys.items() if key != name},
            identities={key: value for key, value in before.identities.items() if key != name},
            rules=tuple(rules),
        )
        _write(path, text.without_signer(content, name), wanted, f"take {name!r} out of it by hand")


@contextlib.contextmanager
def _editing(path: Path) -> Iterator[None]:
    """One editor at a time: of two that read the same file, the later would undo the earlier's change."""
    real = path.resolve()
    for folder in (path.parent, real.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with locks.locked(real.parent / f".{real.name}.lock"):
        yield


def _read(path: Path) -> str:
    try:
        return read_small_file(path, limit=MAX_POLICY_SIZE, error=MalformedPolicyError).decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedPolicyError(f"{path}: not TOML: {error}") from error


def _write(path: Path, content: str, wanted: Policy, advice: str) -> None:
    # Whatever the text looked like, the file that replaces it must mean the old policy and this one change.
    if Policy.parse(content.encode(), path) != wanted:
        raise InvalidInputError(f"{path} is written in a way that cannot be edited; {advice}")
    # A linked policy stays linked; its keys lie where it is read, beside the link.
    write_atomically(path.resolve(), content.encode())


def _with_key(policy: Policy, key: TrustedKey) -> Policy:
    def changed(signers: tuple[TrustedSigner, ...]) -> tuple[TrustedSigner, ...]:
        return tuple(key if signer.name == key.name else signer for signer in signers)

    rules = tuple(
        replace(
            rule,
            signers=changed(rule.signers),
            attestations=tuple(replace(one, signers=changed(one.signers)) for one in rule.attestations),
        )
        for rule in policy.rules
    )
    return replace(policy, keys={**policy.keys, key.name: key}, rules=rules)


def _holds(path: Path, key: PublicKey) -> bool:
    """Whether the file is there and holds this key. Raises InvalidInputError where it holds something else."""
    if not path.exists():
        return False
    if PublicKey.load(read_small_file(path, limit=MAX_KEY_SIZE, error=MalformedPolicyError)) != key:
        raise InvalidInputError(f"{path} holds another key already")
    return True
