"""Checks of one answer: pure functions from an answer to findings."""

import re
from dataclasses import dataclass

from modelpack.engine.worker import ChatAnswer
from modelpack.smoke.report import Verdict
from modelpack.smoke.suite import Case, Expectation

_SPECIAL_TOKEN = re.compile(r"<\|[^|\n]{1,40}\|>|\[/?INST\]|</?s>")
_LOOP_REPEATS = 12
_LOOP_UNIT = 24
"""Characters; a unit that is repeated so often at the end of an answer is a loop."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a check did not like."""

    verdict: Verdict
    why: str


def check(case: Case, answer: ChatAnswer) -> list[Finding]:
    """All findings, the built-in ones included; empty when the answer is as it should be."""
    return [*_check_expectation(case.expect, answer), *_check_sanity(case, answer)]


def _check_expectation(expect: Expectation, answer: ChatAnswer) -> list[Finding]:
    text = answer.text
    failures = []
    if expect.equals is not None and text != expect.equals:
        failures.append(f"expected exactly {expect.equals!r}")
    if expect.contains is not None and expect.contains not in text:
        failures.append(f"expected it to contain {expect.contains!r}")
    if expect.icontains is not None and expect.icontains.casefold() not in text.casefold():
        failures.append(f"expected it to contain {expect.icontains!r} in upper or lower case")
    if expect.regex is not None and not re.search(expect.regex, text):
        failures.append(f"expected a match of {expect.regex!r}")
    if expect.not_regex is not None and (found := re.search(expect.not_regex, text)):
        failures.append(f"expected no match of {expect.not_regex!r}, found {found[0]!r}")
    if expect.finish not in (None, "any", answer.finish_reason):
        failures.append(f"expected it to end by {expect.finish!r}, not by {answer.finish_reason!r}")
    return [Finding("FAIL", why) for why in failures]


def _check_sanity(case: Case, answer: ChatAnswer) -> list[Finding]:
    """What no sound model does."""
    text, findings = answer.text, []
    if not text.strip() and case.expect.equals is None:
        findings.append(Finding("FAIL", "the answer is empty"))
    if "\ufffd" in text.rstrip("\ufffd") or (text.endswith("\ufffd") and answer.finish_reason == "stop"):
        # Only an answer that is cut off may end inside a character.
        findings.append(Finding("FAIL", "the answer is not valid UTF-8"))
    if answer.finish_reason == "length" and (unit := _find_loop(text)):
        findings.append(Finding("FAIL", f"the answer repeats {unit!r} without end"))
    if case.messages is not None:
        if found := _SPECIAL_TOKEN.search(text):
            findings.append(Finding("WARN", f"the answer contains the special token {found[0]!r}"))
        if answer.finish_reason == "length" and case.expect.finish is None:
            findings.append(Finding("WARN", f"the answer did not end by itself within {case.max_tokens} tokens"))
    return findings


def _find_loop(text: str) -> str | None:
    """The shortest unit that ends ``text`` twelve times or more."""
    for length in range(1, _LOOP_UNIT + 1):
        unit = text[-length:]
        if len(text) >= length * _LOOP_REPEATS and text.endswith(unit * _LOOP_REPEATS):
            return unit
    return None
