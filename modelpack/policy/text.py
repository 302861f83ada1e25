"""The text of a policy file: small edits that leave comments and spelling alone.

The text is cut before every line that looks like a header. A header inside a string or a list fools the cut, so whoever
edits reads the result back and compares what it means.
"""

import re

SMALLEST_FILE = """\
# Who may sign what. The most specific rule decides; what no rule matches is refused.
version = 1
"""

COMMENTED_FILE = (
    SMALLEST_FILE
    + """\
# modelpack policy check validates this file; modelpack policy explain REF says what it means for a reference.

# A public key, in a file beside this one: modelpack trust add NAME KEY.pub --match GLOB writes these lines.
# [keys.team]
# path = "keys/team.pub"
# id = "SHA256:..."                        # a pin, as modelpack keygen prints it
# not_after = 2027-12-31T00:00:00Z
# status = "active"                        # retired: only for what a lock file names; revoked: never

# Whoever an issuer of OIDC tokens says it is (keyless). The subject is a glob over the whole name.
# [identities.ci]
# issuer = "https://token.actions.githubusercontent.com"
# subject = "https://github.com/acme/models/.github/workflows/release.yml@refs/tags/*"

# [[rule]]
# match = "registry.example.com/team/**"   # * stays within one segment, ** does not
# signers = ["team", "ci"]
# threshold = 1                            # how many different ones must have signed
# require_ref = true                       # signed for the very repository:tag that is asked for
# max_age = "180d"
# licenses = ["Apache-2.0", "MIT"]
# template_sha256 = ["sha256:..."]         # its chat templates, as modelpack inspect prints them

# What must be attested besides, by whom, and what it must say.
# [[rule.attestation]]
# type = "https://in-toto.io/attestation/test-result/v0.1"
# signers = ["ci"]
# where = { "result" = "PASSED" }

# Refused whoever signed it: a manifest, or a blob of one, such as the weights.
# [[revoked]]
# digest = "sha256:..."
# reason = "trained on the wrong data"
"""
)

_HEADER = re.compile(r"(?m)^(?=[ \t]*\[)")
_RULE = re.compile(r"\s*\[\[\s*rule\s*\]\]")
_FIELD = re.compile(r"(?m)^[ \t]*[^\s#].*\n?")
_SIGNERS = re.compile(r"(?m)^\s*signers\s*=\s*\[([^\]#]*)\]")
_STATUS = re.compile(r"(?m)^(\s*status\s*=\s*)([\"'])\w+\2")


def append(text: str, block: str) -> str:
    return f"{text.rstrip()}\n\n{block}\n"


def extend_signers(text: str, match: str, name: str) -> str:
    """Add a name to the ``signers`` of the [[rule]] with this match; unchanged where that is not plain."""
    blocks = _HEADER.split(text)
    matching = re.compile(rf"(?m)^\s*match\s*=\s*([\"']){re.escape(match)}\1")
    for position, block in enumerate(blocks):
        if _RULE.match(block) and matching.search(block):
            extended = re.sub(r"(?m)^(\s*signers\s*=\s*\[[^\]#]*?),?\s*\]", rf'\1, "{name}"]', block, count=1)
            return "".join([*blocks[:position], extended, *blocks[position + 1 :]])
    return text


def set_status(text: str, name: str, status: str) -> str:
    """Give [keys.NAME] a status, in place of the one that it has; unchanged where there is no such header."""
    blocks = _HEADER.split(text)
    for position, block in enumerate(blocks):
        if _is_about(block, name):
            changed, count = _STATUS.subn(rf'\1"{status}"', block, count=1)
            if not count:
                fields, rest = _cut(block)
                changed = f'{fields.rstrip()}\nstatus = "{status}"\n{rest}'
            return "".join([*blocks[:position], changed, *blocks[position + 1 :]])
    return text


def without_signer(text: str, name: str) -> str:
    """Take away the [keys.NAME] or [identities.NAME], the name in every rule, and rules that have no other."""
    return "".join(_block_without(block, name) for block in _HEADER.split(text))


def _block_without(block: str, name: str) -> str:
    if _is_about(block, name):
        return _cut(block)[1]
    signers = _SIGNERS.search(block)
    if not signers or not _RULE.match(block):
        return block
    names = [item.strip() for item in signers[1].split(",") if item.strip()]
    left = [item for item in names if item.strip("\"'") != name]
    if not left:
        return _cut(block)[1]
    return block if left == names else f"{block[: signers.start(1)]}{', '.join(left)}{block[signers.end(1) :]}"


def _is_about(block: str, name: str) -> bool:
    return bool(re.match(rf"\s*\[\s*(keys|identities)\s*\.\s*([\"']?){re.escape(name)}\2\s*\]", block))


def _cut(block: str) -> tuple[str, str]:
    """The header with its fields, and the comments and empty lines after them, which belong to what follows."""
    end = max(field.end() for field in _FIELD.finditer(block))
    return block[:end], block[end:]
