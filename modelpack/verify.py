"""verify: who made it, every byte, and how it behaves; each of the three on its own terms.

Trust and bytes protect, so they raise; smoke informs, so it is part of the report and the caller decides.
"""

from dataclasses import dataclass
from typing import Any

from modelpack import catalog
from modelpack.engine.worker import WorkerOptions
from modelpack.oci.manifest import Descriptor
from modelpack.oci.reference import Reference
from modelpack.progress import SILENT, Progress
from modelpack.rehash import BytesReport
from modelpack.smoke.report import SmokeReport
from modelpack.smoke.run import smoke
from modelpack.smoke.suite import Suite
from modelpack.store import Store
from modelpack.trust import Verdict


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was verified; None for what was not asked for."""

    reference: Reference
    descriptor: Descriptor
    verdict: Verdict | None
    content: BytesReport | None = None
    smoke: SmokeReport | None = None
    missed_gpu: bool = False
    """A GPU was asked for, and did not do the work."""

    @property
    def passed(self) -> bool:
        return not self.missed_gpu and (self.smoke is None or self.smoke.outcome in ("passed", "warned"))

    def to_json(self) -> dict[str, Any]:
        return {
            "reference": str(self.reference),
            "digest": str(self.descriptor.digest),
            "passed": self.passed,
            "trust": self.verdict.to_json() if self.verdict else None,
            "content": {"blobs": self.content.blobs, "bytes": self.content.size} if self.content else None,
            "smoke": self.smoke.to_json() if self.smoke else None,
        }


def run_smoke(
    store: Store,
    reference: Reference,
    descriptor: Descriptor,
    suite: Suite,
    options: WorkerOptions,
    *,
    progress: Progress = SILENT,
) -> SmokeReport:
    """Load a stored model in a worker and ask it the suite. Raises UnsupportedError for what is no model."""
    _, model = catalog.read_model(store.repository(reference.name), descriptor)
    model = catalog.usable(store, reference, descriptor, model)
    return smoke(catalog.weights_path(store, model), suite, options, name=str(reference), progress=progress)
