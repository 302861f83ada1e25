"""Blocks of Q8_0 equal those of gguf's own, slower way; with ggml's the integration tests compare them."""

import gguf
import numpy as np
import pytest
from gguf.quants import quantize
from numpy.typing import NDArray

from modelpack.convert import q8_0

RANDOM = np.random.default_rng(8)
ROWS, COLUMNS = 600, 416  # more than is quantized at once, and no multiple of it


def ties() -> NDArray[np.float32]:
    """Blocks whose largest number is 127, so that halves stay halves."""
    values = RANDOM.integers(-253, 254, (ROWS, COLUMNS)).astype("<f4") / 2
    values[:, ::32] = RANDOM.choice([-127, 127], (ROWS, COLUMNS // 32))
    return values


def just_below_ties() -> NDArray[np.float32]:
    return np.where(np.abs(ties()) == 127, np.float32(127), np.nextafter(ties(), np.float32(0)))


def of_all_sizes() -> NDArray[np.float32]:
    exponents = RANDOM.integers(-120, 22, (ROWS, COLUMNS // 32)).repeat(32, axis=1)
    return (RANDOM.standard_normal((ROWS, COLUMNS)) * 2.0**exponents).astype("<f4")


def with_zeros() -> NDArray[np.float32]:
    values = of_all_sizes()
    values[::2] = RANDOM.choice([0.0, -0.0], (ROWS // 2, COLUMNS))
    return values


@pytest.mark.parametrize("make", [ties, just_below_ties, of_all_sizes, with_zeros])
def test_blocks_are_those_of_gguf(make) -> None:
    values = make()
    blocks = q8_0.quantize(values)

    assert np.array_equal(blocks, quantize(values, gguf.GGMLQuantizationType.Q8_0))
    assert q8_0.are_finite(blocks)


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf, 127 * 65520.0])
def test_what_no_scale_can_hold_is_seen(value: float) -> None:
    values = of_all_sizes()
    values[ROWS - 1, 7] = value

    assert not q8_0.are_finite(q8_0.quantize(values))
