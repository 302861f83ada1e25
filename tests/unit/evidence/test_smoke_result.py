"""A smoke report as a test result: what passed, what ran it, and that nothing bad becomes PASSED."""

import pytest

from modelpack.engine.device import DeviceReport
from modelpack.evidence.predicates import TEST_RESULT, check_predicate
from modelpack.evidence.smoke_result import DETAILS, digest_of, smoke_result
from modelpack.evidence.toolchain import Library, Toolchain
from modelpack.oci.digest import Digest
from modelpack.smoke.report import CaseResult, SmokeReport
from modelpack.smoke.suite import Case, Suite, default_suite

TOOLS = Toolchain("0.1.0", "0.19.0", "0.3.36", None, (Library("libllama.so", "ab" * 32),))
CPU = DeviceReport("CPU", 0, 31, (), "as requested")
CASES = (
    CaseResult("chat", "PASS"),
    CaseResult("loop", "WARN"),
    CaseResult("json", "FAIL"),
    CaseResult("vision", "SKIP"),
)


def result_of(report, **also):
    predicate = smoke_result(report, TOOLS, **{"suite_name": "suite.toml", "suite_digest": Digest.of(b"suite"), **also})
    check_predicate(TEST_RESULT, predicate)
    return predicate


@pytest.mark.parametrize(
    ("outcome", "result"),
    [
        ("passed", "PASSED"),
        ("warned", "WARNED"),
        ("failed", "FAILED"),
        ("crashed", "FAILED"),
        ("timed-out", "FAILED"),
        ("skipped", "FAILED"),
    ],
)
def test_only_what_passed_is_said_to_have_passed(outcome, result):
    assert result_of(SmokeReport(outcome, ()))["result"] == result


def test_the_result_names_the_cases_the_suite_and_the_runtime():
    predicate = result_of(SmokeReport("failed", CASES, device=CPU, context=256))

    assert predicate["passedTests"] == ["chat"]
    assert predicate["warnedTests"] == ["loop"]
    assert predicate["failedTests"] == ["json"]
    assert predicate[DETAILS] == {
        "outcome": "failed",
        "skippedTests": ["vision"],
        "device": "CPU",
        "isGpu": False,
        "context": 256,
    }
    assert predicate["configuration"][0] == {"name": "suite.toml", "digest": {"sha256": Digest.of(b"suite").hex}}
    assert {"name": "libllama.so", "digest": {"sha256": "ab" * 32}}.items() <= predicate["configuration"][-1].items()


def test_a_demand_beyond_the_suite_that_was_not_met_fails_the_whole():
    predicate = result_of(SmokeReport("passed", CASES[:1]), failed_assertions=("device: gpu",))

    assert predicate["result"] == "FAILED"
    assert predicate["failedTests"] == ["device: gpu"]


def test_a_crash_says_its_first_line_and_not_the_log():
    predicate = result_of(SmokeReport("crashed", (), error="llama.cpp ended by SIGSEGV\nsecret/path\n"))

    assert predicate[DETAILS]["error"] == "llama.cpp ended by SIGSEGV"


def test_how_long_it_took_does_not_make_another_result():
    slow = (CaseResult("chat", "PASS", seconds=9.0, tokens_per_second=1.0),)
    fast = (CaseResult("chat", "PASS", seconds=0.1, tokens_per_second=90.0),)

    assert result_of(SmokeReport("passed", slow, load_seconds=3.0)) == result_of(SmokeReport("passed", fast))


def test_a_suite_that_asks_something_else_has_another_digest():
    assert digest_of(default_suite()) == digest_of(default_suite())
    assert digest_of(Suite((Case("a", prompt="b"),))) != digest_of(default_suite())
