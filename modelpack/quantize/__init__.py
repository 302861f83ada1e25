"""Quantization: a GGUF file into a smaller one, as llama.cpp quantizes it, in a child process."""

from modelpack.quantize.run import Fallback, QuantizeResult, quantize
from modelpack.quantize.types import (
    PLAIN_RECIPE,
    QUANTIZATIONS,
    Quantization,
    Recipe,
    TensorRule,
    parse_quantization,
    parse_tensor_rule,
    parse_tensor_type,
)

__all__ = [
    "PLAIN_RECIPE",
    "QUANTIZATIONS",
    "Fallback",
    "Quantization",
    "QuantizeResult",
    "Recipe",
    "TensorRule",
    "parse_quantization",
    "parse_tensor_rule",
    "parse_tensor_type",
    "quantize",
]
