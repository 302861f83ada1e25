"""What a smoke run found. ``schemas/smoke-report.json`` describes its JSON."""

from dataclasses import dataclass
from typing import Any, Literal

from modelpack.engine.device import DeviceReport

Verdict = Literal["PASS", "WARN", "FAIL", "SKIP"]
Outcome = Literal["passed", "warned", "failed", "crashed", "timed-out", "skipped"]
"""Of a whole run. ``crashed`` and ``timed-out`` tell of llama.cpp; ``skipped``: nothing could be asked."""


@dataclass(frozen=True, slots=True)
class CaseResult:
    name: str
    verdict: Verdict
    why: tuple[str, ...] = ()
    """One sentence per finding; for SKIP the reason."""
    answer: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float | None = None
    tokens_per_second: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "verdict": self.verdict,
            "why": list(self.why),
            "answer": self.answer,
            "finish_reason": self.finish_reason,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "seconds": _round(self.seconds),
            "tokens_per_second": _round(self.tokens_per_second),
        }


@dataclass(frozen=True, slots=True)
class SmokeReport:
    """The cases and how the model was run. What is None was not reached: the model did not load."""

    outcome: Outcome
    cases: tuple[CaseResult, ...]
    error: str | None = None
    """How llama.cpp crashed, timed out or refused, with the last lines of its log."""
    llama_cpp: str | None = None
    device: DeviceReport | None = None
    context: int | None = None
    load_seconds: float | None = None

    def count(self, verdict: Verdict) -> int:
        return sum(case.verdict == verdict for case in self.cases)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": 1,
            "outcome": self.outcome,
            "error": self.error,
            "counts": {verdict: self.count(verdict) for verdict in ("PASS", "WARN", "FAIL", "SKIP")},
            "llama_cpp": self.llama_cpp,
            "device": None if self.device is None else _device_to_json(self.device),
            "context": self.context,
            "load_seconds": _round(self.load_seconds),
            "cases": [case.to_json() for case in self.cases],
        }


def _device_to_json(device: DeviceReport) -> dict[str, Any]:
    return {
        "name": device.name,
        "is_gpu": device.is_gpu,
        "offloaded_layers": device.offloaded_layers,
        "layers": device.layers,
        "reason": device.reason,
        "buffers": [
            {"device": buffer.device, "purpose": buffer.purpose, "mebibytes": buffer.mebibytes}
            for buffer in device.buffers
        ],
    }


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
