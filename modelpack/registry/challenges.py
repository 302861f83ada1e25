"""WWW-Authenticate headers (RFC 9110, section 11.6.1): several challenges, quoted strings, in any order."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_MAX_LENGTH = 8192
_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_SCHEME = re.compile(_NAME)
_TOKEN68 = re.compile(r"\s+[A-Za-z0-9._~+/-]+=*(?=\s*(?:,|\Z))")
_PARAMETER = re.compile(rf'({_NAME})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')
_SEPARATORS = re.compile(r"[\s,]*")


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to authenticate: a scheme in lower case, and its parameters by lower-case name."""

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """All challenges of all headers; reading stops at what makes no sense."""
    return [challenge for header in headers for challenge in _parse(header[:_MAX_LENGTH])]


def _parse(header: str) -> list[Challenge]:
    found: list[tuple[str, dict[str, str]]] = []
    position = _end(_SEPARATORS.match(header))
    while position < len(header):
        if found and (parameter := _PARAMETER.match(header, position)):
            name, quoted, bare = parameter.groups()
            found[-1][1].setdefault(name.lower(), re.sub(r"\\(.)", r"\1", quoted) if bare is None else bare)
            position = parameter.end()
        elif scheme := _SCHEME.match(header, position):
            found.append((scheme.group().lower(), {}))
            position = scheme.end()
            if token68 := _TOKEN68.match(header, position):
                position = token68.end()
        else:
            break
        position = _end(_SEPARATORS.match(header, position))
    return [Challenge(scheme, parameters) for scheme, parameters in found]


def _end(match: re.Match[str] | None) -> int:
    return match.end() if match else 0
