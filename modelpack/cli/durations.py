"""How long things last, as people type it."""

import re
from datetime import timedelta

from modelpack.errors import InvalidInputError

_DURATION = re.compile(r"([0-9]{1,5})([smhdw])", re.ASCII)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def parse_duration(text: str) -> timedelta:
    """``90d``, ``12h``, ``0s``. Raises InvalidInputError."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise InvalidInputError(f"not a duration: {text!r} (30m, 12h, 90d, 4w)")
    return timedelta(**{_UNITS[match.group(2)]: int(match.group(1))})
