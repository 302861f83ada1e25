"""Text from strangers on its way to a terminal."""

import re

# C0 but tab and line feed, DEL, C1, and the characters that turn the direction of writing: what could move the
# cursor, rewrite what stands there, or make one name look like another.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """``text`` with every control character shown as a replacement character."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
