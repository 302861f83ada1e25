"""Text from strangers on its way to a terminal."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

# C0 but tab and line feed, DEL, C1, and the characters that turn the direction of writing: what could move the
# cursor, rewrite what stands there, or make one name look like another.
# Lone surrogates are what Python makes of file names that are no UTF-8: no stream takes them.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def printable(text: str) -> str:
    """``text`` with every control character shown as a replacement character."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def json_text(document: Mapping[str, Any]) -> str:
    """``document`` as JSON for a stream: characters as they are, but for lone surrogates, which no stream takes.

    Numbers that JSON does not have, which a GGUF file may hold, become the text that names them.
    """
    try:
        text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError:
        text = json.dumps(_with_names_for_numbers(document), indent=2, ensure_ascii=False)
    return _SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _with_names_for_numbers(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _with_names_for_numbers(one) for key, one in value.items()}
    return [_with_names_for_numbers(one) for one in value] if isinstance(value, list | tuple) else value
