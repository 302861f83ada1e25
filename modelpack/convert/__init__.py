"""Conversion of Hugging Face checkpoints to GGUF: native, without torch, transformers or code from the checkpoint."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from modelpack.convert.checkpoint import Checkpoint

if TYPE_CHECKING:
    from modelpack.convert.conversion import ConversionPlan, plan_conversion, run_conversion

__all__ = ["Checkpoint", "ConversionPlan", "plan_conversion", "run_conversion"]


def __getattr__(name: str) -> Any:
    """Planning a conversion takes gguf and numpy, 100 ms of them; whoever starts from a GGUF file does without."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("modelpack.convert.conversion"), name)
