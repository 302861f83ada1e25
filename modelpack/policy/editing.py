"""Changing a policy file without disturbing what people wrote in it: text is added, then the whole is read back."""

import re
from dataclasses import replace
from pathlib import Path

from modelpack.atomic_file import write_atomically
from modelpack.errors import InvalidInputError
from modelpack.policy import glob
from modelpack.policy.rules import KEY_NAME, MAX_POLICY_SIZE, Policy, Rule, TrustedKey, read_bounded
from modelpack.signing.keys import MAX_KEY_SIZE, PublicKey


def add_key_rule(path: Path, name: str, public_key_pem: bytes, match: str) -> None:
    """Trust a key for the repositories that ``match`` names: what ``trust add`` does.

    Makes the file if there is none, copies the key to ``keys/NAME.pub`` beside it, adds a rule, or the signer to the
    rule of exactly that match. What stands in the file stays as it is; the result is read back before it replaces it.
    Raises InvalidKeyError, MalformedPolicyError for a file that is broken already, InvalidInputError for a name that
    means another key, and for a rule written in a way that cannot be extended.
    """
    if not KEY_NAME.fullmatch(name):
        raise InvalidInputError(f"not a name for a key: {name!r:.80} (letters, digits, - and _)")
    fault = glob.fault(match)
    if fault:
        raise InvalidInputError(f"match {match!r:.120} {fault}")
    path = path.resolve()  # a linked policy stays linked
    key = PublicKey.load(public_key_pem)
    key_path = path.parent / "keys" / f"{name}.pub"
    raw = read_bounded(path, MAX_POLICY_SIZE) if path.exists() else _NEW_FILE
    before = Policy.parse(raw, path)
    text = raw.decode("utf-8")

    signer = before.keys.get(name)
    is_known = signer is not None
    if signer is None:
        signer = TrustedKey(name, key)
        text = _append(text, f'[keys.{name}]\npath = "keys/{name}.pub"\nid = "{key.id}"')
    if signer.key != key:
        raise InvalidInputError(f"{path} knows {name!r} as another key, {signer.key.id}")
    if signer.status != "active":
        raise InvalidInputError(f"{path} says that {name!r} is {signer.status}")
    rules = list(before.rules)
    position = next((index for index, rule in enumerate(rules) if rule.match == match.lower()), None)
    if position is None:
        rules.append(Rule(match.lower(), (signer,)))
        text = _append(text, f'[[rule]]\nmatch = "{match}"\nsigners = ["{name}"]')
    elif signer not in rules[position].signers:
        rules[position] = replace(rules[position], signers=(*rules[position].signers, signer))
        text = _extend_signers(text, match, name)
    wanted = replace(before, keys={**before.keys, name: signer}, rules=tuple(rules))

    is_new_file = not is_known and not _holds(key_path, key)
    if is_new_file:
        write_atomically(key_path, key.pem)
    try:
        # Whatever the text looked like, the file that replaces it must mean the old policy and this one thing more.
        if Policy.parse(text.encode(), path) != wanted:
            raise InvalidInputError(f"{path} is written in a way that cannot be extended; add {name!r} to it by hand")
        write_atomically(path, text.encode())
    except BaseException:
        if is_new_file:
            key_path.unlink()
        raise


_NEW_FILE = b"""\
# Who may sign what. The most specific rule decides; what no rule matches is refused.
version = 1
"""


def _holds(path: Path, key: PublicKey) -> bool:
    """Whether the file is there and holds this key. Raises InvalidInputError where it holds something else."""
    if not path.exists():
        return False
    if PublicKey.load(read_bounded(path, MAX_KEY_SIZE)) != key:
        raise InvalidInputError(f"{path} holds another key already")
    return True


def _append(text: str, block: str) -> str:
    return f"{text.rstrip()}\n\n{block}\n"


def _extend_signers(text: str, match: str, name: str) -> str:
    """Add a name to the ``signers`` of the [[rule]] with this match, in its text; unchanged where that is not plain."""
    blocks = re.split(r"(?m)^(?=\s*\[)", text)
    matching = re.compile(rf"(?m)^\s*match\s*=\s*([\"']){re.escape(match)}\1")
    for position, block in enumerate(blocks):
        if re.match(r"\s*\[\[\s*rule\s*\]\]", block) and matching.search(block):
            extended = re.sub(r"(?m)^(\s*signers\s*=\s*\[[^\]#]*?),?\s*\]", rf'\1, "{name}"]', block, count=1)
            return "".join([*blocks[:position], extended, *blocks[position + 1 :]])
    return text
