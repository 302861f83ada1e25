"""JSON from strangers: bounded depth, no duplicate keys, no NaN, no halves of characters.

Two parsers that disagree about a duplicate key are how one document passes a check and another is used
(CVE-2021-41190 is of this kind), so such documents are refused. A lone surrogate is such a matter, too (RFC 7493,
section 2.1): Go reads all of them as one and the same character, and nobody can write them down again.
"""

import json
import re
from typing import Any

from modelpack.errors import InvalidContentError

MAX_DEPTH = 64

MAX_CONTAINERS = 1 << 22

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

# A string that never ends swallows the rest, so that a hostile document is scanned once and not once per quote.
_STRING_OR_BRACKETS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|[\[{]+|[\]}]+', re.DOTALL)
_STRING_OF_BRACKETS = re.compile(rb'"[^"]*(?:"|\Z)')
_AS_SQUARE = bytes.maketrans(b"{}", b"[]")
_NEITHER_QUOTE_NOR_BRACKET = bytes(byte for byte in range(256) if byte not in b'"[]{}')


def parse_object(raw: bytes, *, what: str) -> dict[str, Any]:
    """Parse a JSON object.

    Raises InvalidContentError, naming ``what``, when the bytes are not UTF-8 JSON, not an object, nested deeper than
    64, of more than four million arrays and objects, repeat a key, or hold a lone surrogate.
    """

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise InvalidContentError(f"{what} repeats a key")
        return result

    def no_constant(name: str) -> Any:
        raise InvalidContentError(f"{what} holds {name}, which is not JSON")

    _check_depth(raw, what)
    try:
        document = json.loads(raw.decode("utf-8"), object_pairs_hook=no_duplicates, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidContentError(f"{what} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise InvalidContentError(f"{what} is not a JSON object")
    if _SURROGATE.search(raw):
        try:
            json.dumps(document, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise InvalidContentError(f"{what} holds half of a character") from error
    return document


def canonical(document: object) -> bytes:
    """How modelpack spells JSON: compact, UTF-8, keys in the order they were given."""
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode("utf-8")


def _is_plainly_shallow(raw: bytes) -> bool:
    """Whether nothing is too deep or too much, found out without a step in Python for each string and bracket: a
    vocabulary has a million of them.
    """
    # 1. Escapes go, two characters each, so that every quote left begins or ends a string; then all but quotes and
    #    brackets, then the strings.
    brackets = raw.replace(rb"\\", b"").replace(rb"\"", b"")
    brackets = brackets.translate(_AS_SQUARE, _NEITHER_QUOTE_NOR_BRACKET).replace(b'""', b"")
    brackets = _STRING_OF_BRACKETS.sub(b"", brackets)
    if not brackets.count(b"]") == brackets.count(b"[") <= MAX_CONTAINERS:
        return False
    # 2. Each round takes away what holds nothing any more: one level.
    for _ in range(MAX_DEPTH):
        brackets = brackets.replace(b"[]", b"")
    return not brackets


def _check_depth(raw: bytes, what: str) -> None:
    # Before json.loads, whose recursion a deep document exhausts, and whose memory many small ones do. Brackets inside
    # strings do not count.
    if _is_plainly_shallow(raw):
        return
    depth = containers = 0
    for match in _STRING_OR_BRACKETS.finditer(raw):
        first, length = raw[match.start()], match.end() - match.start()
        if first in b"[{":
            depth += length
            containers += length
            if depth > MAX_DEPTH:
                raise InvalidContentError(f"{what} is nested deeper than {MAX_DEPTH}")
            if containers > MAX_CONTAINERS:
                raise InvalidContentError(f"{what} has more than {MAX_CONTAINERS} arrays and objects")
        elif first in b"]}":
            depth -= length
