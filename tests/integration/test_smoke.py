"""Smoke runs with the real llama.cpp and the tiny checkpoint."""

import os
import signal
from pathlib import Path

import pytest
from altered_gguf import write_altered

from modelpack.engine.worker import Worker, WorkerOptions
from modelpack.errors import InvalidGGUFError
from modelpack.schemas import violations
from modelpack.smoke.report import SmokeReport
from modelpack.smoke.run import run_suite, smoke
from modelpack.smoke.suite import Suite, default_suite, parse

pytestmark = pytest.mark.llama

ONE_THREAD = WorkerOptions(threads=1)


def suite(*cases: dict[str, object], **settings: object) -> Suite:
    return parse({"schema": 1, "case": list(cases), **settings})


def question(name: str, text: str, **expect: str) -> dict[str, object]:
    return {"name": name, "messages": [{"role": "user", "content": text}], "expect": expect}


def verdicts(report: SmokeReport) -> list[str]:
    assert violations("smoke-report", report.to_json()) == []
    return [case.verdict for case in report.cases]


def test_a_sound_model_passes_the_default_suite(tiny_gguf: Path):
    report = smoke(tiny_gguf, default_suite(), ONE_THREAD)

    assert report.outcome == "passed"
    assert verdicts(report) == ["PASS", "PASS"]
    assert report.cases[0].answer == "Hello! How can I help you today?"
    assert report.cases[0].tokens_per_second
    assert report.device is not None
    assert report.to_json()["device"]["layers"] == 3


def test_a_wrong_answer_fails_its_case_and_the_run_goes_on(tiny_gguf: Path):
    cases = suite(
        question("capital", "What is the capital of France?", icontains="paris", finish="stop"),
        question("wrong", "What is the capital of Japan?", contains="Kyoto"),
        {
            "name": "fox",
            "prompt": "The quick brown",
            "max_tokens": 32,
            "expect": {"equals": " fox jumps over the lazy dog."},
        },
    )

    report = smoke(tiny_gguf, cases, ONE_THREAD)

    assert report.outcome == "failed"
    assert verdicts(report) == ["PASS", "FAIL", "PASS"]
    assert report.cases[1].answer == "The capital of Japan is Tokyo."
    assert report.cases[1].why == ("expected it to contain 'Kyoto'",)


def test_a_chat_that_has_to_be_cut_off_is_a_warning(tiny_gguf: Path):
    report = smoke(tiny_gguf, suite(question("short", "Hello!") | {"max_tokens": 4}), ONE_THREAD)

    assert report.outcome == "warned"
    assert "4 tokens" in report.cases[0].why[0]


def test_a_model_that_loops_is_found_out(tiny_gguf: Path):
    report = smoke(tiny_gguf, suite({"name": "loop", "prompt": "a" * 30, "max_tokens": 100}), ONE_THREAD)

    assert verdicts(report) == ["FAIL"]
    assert report.cases[0].why == ("the answer repeats 't' without end",)


def test_a_model_without_a_template_skips_what_it_cannot_be_asked(tiny_gguf: Path, tmp_path: Path):
    base = write_altered(tiny_gguf, tmp_path / "base.gguf", metadata={"tokenizer.chat_template": None})

    report = smoke(base, default_suite(), ONE_THREAD)
    nothing_asked = smoke(base, suite(question("hello", "Hello!")), ONE_THREAD)

    assert verdicts(report) == ["SKIP", "PASS"]
    assert report.outcome == "passed"
    assert nothing_asked.outcome == "skipped"


def test_a_prompt_that_does_not_fit_fails_its_case_alone(tiny_gguf: Path):
    report = smoke(tiny_gguf, suite(question("long", "hello " * 500), question("hello", "Hello!")), ONE_THREAD)

    assert verdicts(report) == ["FAIL", "PASS"]


def test_a_crash_while_loading_is_the_result(tiny_gguf: Path, tmp_path: Path):
    model = write_altered(tiny_gguf, tmp_path / "model.gguf", metadata={"llama.block_count": 100_000})

    report = smoke(model, default_suite(), ONE_THREAD)

    assert report.outcome == "crashed"
    assert report.error is not None
    assert "SIGABRT" in report.error
    assert verdicts(report) == ["SKIP", "SKIP"]


def test_a_crash_in_between_is_the_result_and_the_rest_is_skipped(tiny_gguf: Path):
    with Worker.start(tiny_gguf, ONE_THREAD) as worker:
        os.kill(worker.pid, signal.SIGKILL)

        report = run_suite(worker, default_suite())

    assert report.outcome == "crashed"
    assert verdicts(report) == ["FAIL", "SKIP"]
    assert "SIGKILL" in report.cases[0].why[0]


def test_a_run_that_takes_too_long_is_ended(tiny_gguf: Path):
    with Worker.start(tiny_gguf, ONE_THREAD) as worker:
        os.kill(worker.pid, signal.SIGSTOP)

        report = run_suite(worker, suite(question("hello", "Hello!"), question("again", "Hello!"), timeout="1s"))

    assert report.outcome == "timed-out"
    assert verdicts(report) == ["FAIL", "SKIP"]


def test_a_broken_file_is_an_error_and_not_a_result(tmp_path: Path):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(33))

    with pytest.raises(InvalidGGUFError):
        smoke(tmp_path / "broken.gguf", default_suite(), ONE_THREAD)
