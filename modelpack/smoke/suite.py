"""A suite of smoke cases: what to ask and what to expect, from a strict TOML file or built in."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from modelpack.errors import InvalidInputError
from modelpack.schemas import violations
from modelpack.small_file import read_small_file

_MAX_BYTES = 1 << 20
_DURATION = re.compile(r"([0-9]{1,6})(s|m)?")


@dataclass(frozen=True, slots=True)
class Expectation:
    """What an answer must be; None asks nothing. The names are promptfoo's where it has them."""

    equals: str | None = None
    contains: str | None = None
    icontains: str | None = None
    regex: str | None = None
    not_regex: str | None = None
    finish: str | None = None
    """``stop``, ``length`` or ``any``; None: ``stop`` is hoped for in a chat, and its absence a warning."""


@dataclass(frozen=True, slots=True)
class Case:
    """One question: either ``messages`` (rendered by the model's chat template) or a bare ``prompt``."""

    name: str
    messages: tuple[Mapping[str, str], ...] | None = None
    prompt: str | None = None
    max_tokens: int = 64
    expect: Expectation = Expectation()


@dataclass(frozen=True, slots=True)
class Suite:
    cases: tuple[Case, ...]
    timeout: float = 300.0
    """Seconds for all cases together; loading the model has its own limit."""
    seed: int = 7


def load(path: Path) -> Suite:
    """Read a suite (``schemas/suite.json`` describes it). Raises NotFoundError and InvalidInputError."""
    body = read_small_file(path, limit=_MAX_BYTES)
    try:
        document = tomllib.loads(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, UnicodeDecodeError; and too many brackets
        raise InvalidInputError(f"the smoke suite {path} is not TOML: {error}") from error
    return parse(document, name=str(path))


def parse(document: Mapping[str, Any], *, name: str = "the smoke suite") -> Suite:
    """A suite from parsed TOML; ``name`` says in errors where it came from. Raises InvalidInputError."""
    if broken := violations("suite", dict(document)):
        raise InvalidInputError(f"{name} is malformed: {broken[0]}")
    cases = tuple(_parse_case(case, name) for case in document["case"])
    names = [case.name for case in cases]
    if repeated := {case_name for case_name in names if names.count(case_name) > 1}:
        raise InvalidInputError(f"{name} is malformed: two cases are named {min(repeated)!r}")
    return Suite(cases, timeout=_seconds(document.get("timeout", 300)), seed=document.get("seed", 7))


def default_suite() -> Suite:
    """Cases for any chat or base model: it answers, in valid text, without looping, and a chat ends by itself.

    Only what every model should do, so nothing here asks for a particular answer.
    """
    return Suite(
        (
            Case("chat", messages=({"role": "user", "content": "Hello!"},), max_tokens=256),
            Case("completion", prompt="Once upon a time", max_tokens=32, expect=Expectation(finish="any")),
        )
    )


def _parse_case(case: Mapping[str, Any], name: str) -> Case:
    expect = Expectation(**case.get("expect", {}))
    for pattern in (expect.regex, expect.not_regex):
        try:
            re.compile(pattern or "")
        except re.error as error:
            message = f"{name} is malformed: case {case['name']!r}: {pattern!r} is not a regular expression: {error}"
            raise InvalidInputError(message) from error
    messages = cast("list[dict[str, str]] | None", case.get("messages"))
    return Case(
        name=case["name"],
        messages=None if messages is None else tuple(messages),
        prompt=case.get("prompt"),
        max_tokens=case.get("max_tokens", 64),
        expect=expect,
    )


def _seconds(duration: int | str) -> float:
    found = _DURATION.fullmatch(str(duration))
    if found is None:  # the schema lets nothing else through
        raise InvalidInputError(f"not a duration: {duration!r}")
    return float(found[1]) * (60 if found[2] == "m" else 1)
