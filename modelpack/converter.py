"""Which converter makes the GGUF file: modelpack's own, or llama.cpp's in its cage."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from modelpack import convert as native
from modelpack.convert import Checkpoint
from modelpack.errors import InvalidInputError, UnknownArchitectureError, UnsupportedError
from modelpack.oci.digest import Digest
from modelpack.progress import SILENT, Progress
from modelpack.upstream import UpstreamEnvironment, UpstreamPlan, plan_upstream, run_upstream

if TYPE_CHECKING:
    from modelpack.convert import ConversionPlan

    AnyPlan = ConversionPlan | UpstreamPlan

Converter = Literal["auto", "native", "upstream"]


@dataclass(frozen=True, slots=True)
class ConverterChoice:
    """``auto`` is native where that knows the architecture, else upstream's converter if it is installed."""

    converter: Converter = "auto"
    environment: UpstreamEnvironment | None = None
    trust_code: bool = False
    """Let upstream's converter run code that the checkpoint brings."""
    deep: bool = False
    """Look at every weight, and refuse what is no number; only modelpack's own converter can."""
    allow_mismatch: bool = False
    """Go on with a model that llama.cpp gives other tokens than the checkpoint's own tokenizer, and say so in it."""
    file_type: str | None = None
    """What modelpack's own converter makes: F32, F16, BF16 or Q8_0; the checkpoint's own type unless given."""

    def plan(self, checkpoint: Checkpoint, name: str) -> "AnyPlan":
        """Raises UnknownArchitectureError for an architecture that no converter at hand knows."""
        if self.converter == "upstream":
            return self._plan_upstream(checkpoint, name)
        try:
            return native.plan_conversion(checkpoint, file_type=self.file_type, name=name)
        except UnknownArchitectureError as error:
            if self.converter == "native":
                raise
            if self.environment is None or not self.environment.is_installed:
                raise UnknownArchitectureError(f"{error}; llama.cpp's own converter is not installed") from error
            return self._plan_upstream(checkpoint, name)

    def _plan_upstream(self, checkpoint: Checkpoint, name: str) -> UpstreamPlan:
        if self.deep:
            raise UnsupportedError("a deep look at the weights is what only modelpack's own converter takes")
        if self.environment is None:
            raise InvalidInputError("there is no place to look for llama.cpp's own converter")
        return plan_upstream(
            self.environment,
            checkpoint.directory,
            name=name,
            architecture=checkpoint.architecture,
            tensors=[(tensor.dtype, prod(tensor.shape)) for tensor in checkpoint.tensors.values()],
            asks_for_code=checkpoint.asks_for_code,
            trust_code=self.trust_code,
        )


def convert(
    plan: "AnyPlan",
    target: Path,
    *,
    deep: bool = False,
    is_final: bool = False,
    between: Callable[[], None] = lambda: None,
    progress: Progress = SILENT,
) -> Digest | None:
    """Carry either plan out, ``deep`` as it says at ``ConverterChoice``. ``between`` is called every few MiB of a
    native conversion, and what it raises ends the work. A native one that ``is_final``, and not only for what comes
    next, is synced to the disk, and its digest returned.

    Raises ConversionError, InvalidCheckpointError for what a deep look finds, and WorkerError for the caged converter.
    """
    if isinstance(plan, UpstreamPlan):
        run_upstream(plan, target, progress=progress)
    else:
        return native.run_conversion(plan, target, deep=deep, is_final=is_final, between=between, progress=progress)
    return None


def converter_annotations(plan: "AnyPlan | None") -> dict[str, str]:
    """Which converter it was, and that code of the checkpoint was run where it was."""
    if plan is None:
        return {}
    if not isinstance(plan, UpstreamPlan):
        return {"dev.modelpack.converter": "native"}
    annotations = {"dev.modelpack.converter": f"llama-cpp-python {plan.environment.release}"}
    if plan.code:
        annotations["dev.modelpack.remote-code"] = ",".join(plan.code)
    return annotations
