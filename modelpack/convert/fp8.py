"""Weights in FP8 with a scale for each block of them, as DeepSeek V3 publishes its own.

E4M3 without infinities (https://arxiv.org/abs/2209.05433, table 1); each 128 x 128 block is multiplied by its scale,
which lies beside it as ``weight_scale_inv``.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from modelpack.convert.tensor import Rows, Tensor
from modelpack.errors import InvalidCheckpointError

SCALE_SUFFIX = "_scale_inv"


def _e4m3() -> Rows:
    """What each of the 256 bytes means, in F32, which holds them all."""
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    values = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    values[(codes & 127) == 127] = np.nan
    return np.where(codes < 128, values, -values).astype("<f4")


_VALUES = _e4m3()


def block_size(config: Mapping[str, Any]) -> tuple[int, int]:
    """Rows and columns that share a scale. Raises InvalidCheckpointError where config.json says something else."""
    scheme = config.get("quantization_config")
    size = scheme.get("weight_block_size", [128, 128]) if isinstance(scheme, dict) else [128, 128]
    if not isinstance(size, list) or len(size) != 2 or any(type(n) is not int or not 1 <= n < 1 << 20 for n in size):
        raise InvalidCheckpointError(f"config.json has {size!r:.50} for quantization_config.weight_block_size")
    return size[0], size[1]


def scaled(name: str, weights: Tensor, scales: Tensor, block: tuple[int, int]) -> Tensor:
    """The weights in F32. Raises InvalidCheckpointError where there is not one scale for each block."""
    rows, columns = block
    shape = weights.shape
    expected = (-(-shape[0] // rows), -(-shape[-1] // columns))
    if len(shape) != 2 or scales.shape != expected or scales.dtype != "F32":
        raise InvalidCheckpointError(f"tensor {name[:200]!r} has no F32 scales of the shape {list(expected)}")

    def read(start: int, stop: int) -> Rows:
        first = start // rows
        factors = scales.read(first, -(-stop // rows))
        of_row = np.arange(start, stop) // rows - first
        wide = np.repeat(factors, columns, axis=1)[:, : shape[1]]
        values: Rows = _VALUES[weights.read(start, stop)] * wide[of_row]
        return values

    return Tensor(shape, "F32", read)
