"""What llama.cpp quantizes to: mixtures for a whole file, and types for single tensors."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from modelpack.errors import InvalidInputError, UnknownQuantizationError
from modelpack.gguf_types import FILE_TYPES, GGML_TYPES

MAX_PATTERN_LENGTH = 512

# Types that no weights are stored in: indices, intermediate results, and what llama.cpp has no quantizer for.
_NO_TARGETS = {"F64", "I8", "I16", "I32", "I64", "Q8_1", "Q8_K", "NVFP4"}


@dataclass(frozen=True, slots=True)
class Quantization:
    """One of llama.cpp's mixtures. ``bits_per_weight`` is that of an 8B model: good for an estimate of sizes."""

    name: str
    file_type: int
    bits_per_weight: float
    needs_importance_matrix: bool = False


# Bits per weight: tools/quantize/README.md of llama.cpp (Llama 3.1 8B), its program's own list for the rest.
_BITS_PER_WEIGHT = {
    "F32": 32.0,
    "BF16": 16.0,
    "F16": 16.0,
    "Q8_0": 8.5,
    "Q6_K": 6.56,
    "Q5_K_M": 5.70,
    "Q5_K_S": 5.57,
    "Q5_1": 6.06,
    "Q5_0": 5.57,
    "Q4_K_M": 4.89,
    "Q4_K_S": 4.67,
    "Q4_1": 5.12,
    "Q4_0": 4.64,
    "Q3_K_L": 4.30,
    "Q3_K_M": 4.00,
    "Q3_K_S": 3.64,
    "Q2_K": 3.16,
    "Q2_K_S": 2.97,
    "Q2_0": 2.7,
    "Q1_0": 1.6,
    "IQ4_NL": 4.68,
    "IQ4_XS": 4.46,
    "IQ3_M": 3.76,
    "IQ3_S": 3.66,
    "IQ3_XS": 3.50,
    "IQ3_XXS": 3.25,
    "IQ2_M": 2.93,
    "IQ2_S": 2.74,
    "IQ2_XS": 2.59,
    "IQ2_XXS": 2.38,
    "IQ1_M": 2.15,
    "IQ1_S": 2.00,
    "TQ2_0": 2.4,
    "TQ1_0": 2.1,
    "MXFP4_MOE": 4.4,
}
# Below some three bits llama.cpp only quantizes with an importance matrix, without which the result is garbage.
_NEEDS_IMPORTANCE_MATRIX = {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "Q2_K_S"}
_ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
_FILE_TYPE_IDS = {name: number for number, name in FILE_TYPES.items()}

QUANTIZATIONS: Mapping[str, Quantization] = MappingProxyType(
    {
        name: Quantization(name, _FILE_TYPE_IDS[name], bits, name in _NEEDS_IMPORTANCE_MATRIX)
        for name, bits in _BITS_PER_WEIGHT.items()
    }
)
"""By name, what the llama.cpp of llama-cpp-python 0.3.36 quantizes to; F16, BF16 and F32 included."""


def parse_quantization(name: str) -> Quantization:
    """A quantization by its name in any case. Raises UnknownQuantizationError, which names them all."""
    key = name.strip().upper()
    quantization = QUANTIZATIONS.get(_ALIASES.get(key, key))
    if quantization is None:
        raise UnknownQuantizationError(f"there is no quantization {name[:60]!r}; there are {', '.join(QUANTIZATIONS)}")
    return quantization


TENSOR_TYPES = tuple(name for name, _, _ in GGML_TYPES.values() if name not in _NO_TARGETS)
"""Names of the types that single tensors can be given."""


@dataclass(frozen=True, slots=True)
class TensorRule:
    """Tensors whose name contains a match of ``pattern`` (ECMAScript, lower case) get ``type``."""

    pattern: str
    type: str

    def __str__(self) -> str:
        return f"{self.pattern}={self.type}"


@dataclass(frozen=True, slots=True)
class Recipe:
    """What departs from a mixture, as llama-quantize's options of the same names say it."""

    tensor_types: tuple[TensorRule, ...] = ()
    """The first whose pattern matches counts."""
    output_tensor_type: str | None = None
    token_embedding_type: str | None = None
    pure: bool = False
    """One type for all tensors, no mixture."""
    allow_requantize: bool = False
    """Also what is quantized already and would get another type; else it is refused."""


PLAIN_RECIPE = Recipe()
"""The mixture as it is."""


def parse_tensor_type(name: str) -> str:
    """A tensor's type by its name in any case, such as ``Q8_0``. Raises UnknownQuantizationError."""
    key = name.strip().upper()
    if key not in TENSOR_TYPES:
        raise UnknownQuantizationError(f"there is no tensor type {name[:60]!r}; there are {', '.join(TENSOR_TYPES)}")
    return key


def parse_tensor_rule(text: str) -> TensorRule:
    """``REGEX=TYPE``. Raises InvalidInputError, UnknownQuantizationError."""
    pattern, separator, name = text.rpartition("=")
    if not separator or not pattern or len(pattern) > MAX_PATTERN_LENGTH:
        raise InvalidInputError(f"not REGEX=TYPE, such as ffn_down=Q6_K: {text[:80]!r}")
    # llama-quantize lowers the case of its patterns, and tensors' names have no capitals.
    return TensorRule(pattern.lower(), parse_tensor_type(name))
