"""Globs over repository names: ``*`` stays within one segment of the path, ``**`` does not."""

import re

MAX_PATTERN = 255

_PATTERN = re.compile(r"[A-Za-z0-9._:/*\[\]-]+", re.ASCII)
_WILDCARDS = ("*", "**")
_WILDCARD = re.compile(r"\*\*|\*")


def matches(match: str, name: str) -> bool:
    """Whether the whole of ``name`` fits. Registries are named without regard to case, so both are lowered."""
    return overlap(match.lower(), name.lower())


def fits(pattern: str, text: str) -> bool:
    """Whether the whole of a certificate's subject fits, in exactly this case.

    A subject is somebody else's text, so one that could pass for a glob itself fits nothing.
    """
    return "*" not in text and text.isprintable() and overlap(pattern, text)


def specificity(match: str) -> tuple[int, int, int]:
    """How narrow a glob is: longest literal prefix first, then the narrower wildcard, then the longer text."""
    wildcards = _WILDCARD.findall(match)
    prefix = len(_WILDCARD.split(match, maxsplit=1)[0])
    narrowness = 2 if not wildcards else 1 if "**" not in wildcards else 0
    return prefix, narrowness, len(_WILDCARD.sub("", match))


def fault(match: str) -> str | None:
    """What is wrong with a glob, or None."""
    if not match or len(match) > MAX_PATTERN:
        return f"is empty, or longer than {MAX_PATTERN} characters"
    if "://" in match or not _PATTERN.fullmatch(match):
        return "is not a glob over registry/repository"
    if "***" in match or "//" in match or match.startswith("/") or match.endswith("/"):
        return "can match no repository"
    if ":" in match.rpartition("/")[2]:
        return "names a tag; rules are about repositories"
    return None


def overlap(one: str, other: str) -> bool:
    """Whether some name fits both globs; a name is a glob that fits itself alone.

    Both are walked at once, and no pair of places twice, so the work is bounded by the product of the lengths.
    """
    left, right = (re.findall(r"\*\*|.", glob) for glob in (one, other))
    reached = {(0, 0)}
    waiting = [(0, 0)]
    while waiting:
        i, j = waiting.pop()
        if i == len(left) and j == len(right):
            return True
        a = left[i] if i < len(left) else ""
        b = right[j] if j < len(right) else ""
        steps = [(i + 1, j + 1)] if a == b else []
        # A wildcard takes nothing more, or one more step of the other side.
        if a in _WILDCARDS:
            steps += [(i + 1, j), *([(i, j + 1)] if b and (a == "**" or b != "/") else [])]
        if b in _WILDCARDS:
            steps += [(i, j + 1), *([(i + 1, j)] if a and (b == "**" or a != "/") else [])]
        waiting += [step for step in steps if step not in reached]
        reached.update(steps)
    return False
