"""A smoke report as an in-toto test result v0.1
(https://github.com/in-toto/attestation/blob/main/spec/predicates/test-result.md).

What was asked and what ran it are named by digest, because "PASSED" alone says nothing.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from modelpack.evidence.toolchain import Toolchain
from modelpack.oci import strict_json
from modelpack.oci.digest import Digest
from modelpack.smoke.report import Outcome, SmokeReport, Verdict
from modelpack.smoke.suite import Suite

DETAILS = "urn:modelpack:smoke:v1"
"""The one field of our own: ``outcome``, ``skippedTests``, ``device``, ``isGpu``, ``context``, ``error``."""

_RESULTS: dict[Outcome, str] = {"passed": "PASSED", "warned": "WARNED"}


def digest_of(suite: Suite) -> Digest:
    """Names a suite that is in no file: the built-in one."""
    return Digest.of(strict_json.canonical(asdict(suite)))


def smoke_result(
    report: SmokeReport,
    toolchain: Toolchain,
    *,
    suite_name: str,
    suite_digest: Digest,
    failed_assertions: Sequence[str] = (),
) -> dict[str, Any]:
    """The predicate. ``failed_assertions`` are demands beyond the suite that were not met, such as ``device: gpu``.

    Whatever neither passed nor passed with warnings FAILED, a crash and a suite that could not be asked among them.
    Timings are left out: the same behaviour gives the same predicate.
    """

    def names(verdict: Verdict) -> list[str]:
        return [case.name for case in report.cases if case.verdict == verdict]

    details = {
        "outcome": report.outcome,
        "skippedTests": names("SKIP"),
        "device": report.device.name if report.device else None,
        "isGpu": report.device.is_gpu if report.device else None,
        "context": report.context,
        "error": report.error.splitlines()[0][:500] if report.error else None,
    }
    return {
        "result": "FAILED" if failed_assertions else _RESULTS.get(report.outcome, "FAILED"),
        "configuration": [
            {"name": suite_name, "digest": {"sha256": suite_digest.hex}},
            {"name": "modelpack", "uri": f"pkg:pypi/modelpack-oci@{toolchain.modelpack}"},
            *toolchain.runtime,
        ],
        "passedTests": names("PASS"),
        "warnedTests": names("WARN"),
        "failedTests": [*names("FAIL"), *failed_assertions],
        DETAILS: {key: value for key, value in details.items() if value is not None},
    }
