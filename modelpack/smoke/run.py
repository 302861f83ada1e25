"""Runs a suite on a model. What the model does wrong goes into the report; nothing of it is raised."""

import time
from pathlib import Path

from modelpack import template
from modelpack.engine.worker import ChatAnswer, Worker, WorkerOptions
from modelpack.errors import WorkerCrashedError, WorkerError, WorkerTimeoutError
from modelpack.gguf_header import read_header
from modelpack.progress import SILENT, Progress
from modelpack.smoke.checks import check
from modelpack.smoke.report import CaseResult, Outcome, SmokeReport, Verdict
from modelpack.smoke.suite import Case, Suite


def smoke(
    model: Path,
    suite: Suite,
    options: WorkerOptions | None = None,
    *,
    name: str | None = None,
    progress: Progress = SILENT,
) -> SmokeReport:
    """Load ``model`` in a worker and run ``suite`` on it.

    A model that crashes llama.cpp, takes too long or is refused gives a report that says so. Raises what
    ``Worker.start`` raises where llama.cpp is not to blame: NotFoundError, InvalidGGUFError (the file is broken),
    UnknownArchitectureError, InsufficientMemoryError. A model whose chat template fails the lint is not loaded at all.
    """
    if unsafe := template.problems(read_header(model).metadata):
        skipped = (CaseResult(case.name, "SKIP", ("the model was not loaded",)) for case in suite.cases)
        problem = f"the chat template is not safe to render: {unsafe[0]}"
        return SmokeReport("failed", (CaseResult("template", "FAIL", tuple(unsafe)), *skipped), error=problem)
    try:
        with progress.step(f"load {name or model.name}"):
            worker = Worker.start(model, options, name=name)
    except WorkerError as error:
        why = "the model did not load"
        cases = tuple(CaseResult(case.name, "SKIP", (why,)) for case in suite.cases)
        return SmokeReport(_outcome_of(error), cases, error=str(error))
    with worker:
        return run_suite(worker, suite, progress=progress)


def run_suite(worker: Worker, suite: Suite, *, progress: Progress = SILENT) -> SmokeReport:
    """Ask a loaded model all cases of ``suite``, within its time limit. After a crash the rest is skipped."""
    deadline = time.monotonic() + suite.timeout
    results: list[CaseResult] = []
    outcome: Outcome | None = None
    problem: str | None = None
    with progress.step("smoke", total=len(suite.cases), unit="cases") as step:
        for case in suite.cases:
            if problem is not None:
                results.append(CaseResult(case.name, "SKIP", ("llama.cpp had ended",)))
            elif case.messages is not None and not worker.has_chat_template:
                results.append(CaseResult(case.name, "SKIP", ("the model has no chat template",)))
            else:
                try:
                    results.append(_judge(case, _ask(worker, case, suite.seed, deadline - time.monotonic())))
                except (WorkerCrashedError, WorkerTimeoutError) as error:
                    outcome, problem = _outcome_of(error), str(error)
                    results.append(CaseResult(case.name, "FAIL", (problem.splitlines()[0],)))
                except WorkerError as error:
                    results.append(CaseResult(case.name, "FAIL", (f"llama.cpp refused: {error}",)))
            step.advance(1)
    return SmokeReport(
        outcome=outcome or _summarise([result.verdict for result in results]),
        cases=tuple(results),
        error=problem,
        llama_cpp=worker.llama_cpp,
        device=worker.device,
        context=worker.context,
        load_seconds=worker.load_seconds,
    )


def _ask(worker: Worker, case: Case, seed: int, seconds: float) -> ChatAnswer:
    timeout = max(seconds, 0.001)
    if case.messages is not None:
        return worker.chat(case.messages, max_tokens=case.max_tokens, seed=seed, timeout=timeout)
    return worker.complete(case.prompt or "", max_tokens=case.max_tokens, seed=seed, timeout=timeout)


def _judge(case: Case, answer: ChatAnswer) -> CaseResult:
    findings = check(case, answer)
    verdicts = [finding.verdict for finding in findings]
    return CaseResult(
        name=case.name,
        verdict="FAIL" if "FAIL" in verdicts else "WARN" if verdicts else "PASS",
        why=tuple(finding.why for finding in findings),
        answer=answer.text,
        finish_reason=answer.finish_reason,
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        seconds=answer.seconds,
        tokens_per_second=answer.tokens_per_second,
    )


def _summarise(verdicts: list[Verdict]) -> Outcome:
    if "FAIL" in verdicts:
        return "failed"
    if "WARN" in verdicts:
        return "warned"
    return "passed" if "PASS" in verdicts else "skipped"


def _outcome_of(error: WorkerError) -> Outcome:
    if isinstance(error, WorkerTimeoutError):
        return "timed-out"
    return "crashed" if isinstance(error, WorkerCrashedError) else "failed"
