"""Conversion of Hugging Face checkpoints to GGUF: native, without torch, transformers or code from the checkpoint."""

from modelpack.convert.checkpoint import Checkpoint
from modelpack.convert.conversion import ConversionPlan, plan_conversion, run_conversion

__all__ = ["Checkpoint", "ConversionPlan", "plan_conversion", "run_conversion"]
