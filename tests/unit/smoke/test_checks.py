import pytest

from modelpack.engine.worker import ChatAnswer
from modelpack.smoke.checks import check
from modelpack.smoke.suite import Case, Expectation

QUESTION = ({"role": "user", "content": "What is the capital of France?"},)


def answer(text: str, finish_reason: str = "stop") -> ChatAnswer:
    return ChatAnswer(text, finish_reason, 10, 10, seconds=1.0, first_token_seconds=0.1)


def verdicts(expect: Expectation, given: ChatAnswer, *, chat: bool = True) -> list[str]:
    case = Case("case", QUESTION, expect=expect) if chat else Case("case", prompt="Once", expect=expect)
    return [finding.verdict for finding in check(case, given)]


@pytest.mark.parametrize(
    "expect",
    [
        Expectation(),
        Expectation(equals="The capital is Paris."),
        Expectation(contains="Paris"),
        Expectation(icontains="PARIS"),
        Expectation(regex=r"Par\w+\."),
        Expectation(not_regex="London"),
        Expectation(finish="stop"),
        Expectation(finish="any"),
    ],
)
def test_an_answer_that_meets_its_expectation_passes(expect: Expectation):
    assert verdicts(expect, answer("The capital is Paris.")) == []


@pytest.mark.parametrize(
    "expect",
    [
        Expectation(equals="The capital is Paris"),
        Expectation(contains="paris"),
        Expectation(icontains="London"),
        Expectation(regex=r"^Paris"),
        Expectation(not_regex="capital"),
        Expectation(finish="length"),
    ],
)
def test_an_answer_that_misses_its_expectation_fails(expect: Expectation):
    assert verdicts(expect, answer("The capital is Paris.")) == ["FAIL"]


@pytest.mark.parametrize(
    ("text", "finish_reason", "verdict"),
    [
        ("", "stop", "FAIL"),
        (" \n", "stop", "FAIL"),
        ("Gr\ufffd\ufffde", "stop", "FAIL"),
        ("G" * 200, "length", "FAIL"),
        ("Paris " + "is the " * 30, "length", "FAIL"),
        ("Paris<|im_end|>", "stop", "WARN"),
        ("Paris [/INST] and", "stop", "WARN"),
        ("Paris is a city that", "length", "WARN"),
    ],
)
def test_what_no_sound_model_says_is_found_without_being_asked_for(text: str, finish_reason: str, verdict: str):
    assert verdict in verdicts(Expectation(), answer(text, finish_reason))


@pytest.mark.parametrize(
    ("text", "finish_reason"),
    [
        ("a table\n" + "-" * 40, "stop"),  # it ended by itself, so it was no loop
        ("It is 20 \ufffd", "length"),  # cut off inside a character
        ("and then, and then, and then", "length"),
    ],
)
def test_what_only_looks_odd_passes(text: str, finish_reason: str):
    assert verdicts(Expectation(finish="any"), answer(text, finish_reason)) == []


def test_a_completion_may_go_on_for_ever():
    assert verdicts(Expectation(), answer(" upon a time there was", "length"), chat=False) == []
