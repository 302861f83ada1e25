"""Numbers on their way from one type to another, and rows on their way to other places."""

import struct
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpack.convert.safetensors import StoredTensor
from modelpack.convert.tensor import Shards, Tensor, encode, interleave_halves
from modelpack.errors import InvalidCheckpointError

bits = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=64)


def tensor(array: np.ndarray) -> Tensor:
    rows = array.reshape(-1, array.shape[-1])
    return Tensor(array.shape, "F32", lambda start, stop: rows[start:stop])


def test_every_bf16_becomes_the_f16_that_its_f32_does() -> None:
    every = np.arange(1 << 16, dtype="<u2").reshape(256, 256)

    assert encode(every, "BF16", "F16").tobytes() == encode(encode(every, "BF16", "F32"), "F32", "F16").tobytes()


@given(bits)
def test_f32_becomes_bf16_as_in_gguf(values: list[int]) -> None:
    row = np.array(values, "<u4").view("<f4").reshape(1, -1)

    ours = encode(row, "F32", "BF16")

    expected = gguf.quants.quantize(row, gguf.GGMLQuantizationType.BF16)
    assert ours.tobytes() == expected.tobytes()


@given(bits)
def test_f32_becomes_f16_as_in_gguf_without_a_warning(values: list[int]) -> None:
    row = np.array(values, "<u4").view("<f4").reshape(1, -1)
    row = np.where(np.isnan(row), np.float32(1), row)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = encode(row, "F32", "F16")

    with np.errstate(over="ignore"):
        assert ours.tobytes() == gguf.quants.quantize(row, gguf.GGMLQuantizationType.F16).tobytes()


@given(st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=64))
def test_bf16_to_f32_and_back_is_exact(values: list[int]) -> None:
    row = np.array(values, "<u2").reshape(1, -1)
    is_nan = (row & 0x7FFF) > 0x7F80

    back = encode(encode(row, "BF16", "F32"), "F32", "BF16")

    assert np.array_equal(back[~is_nan], row[~is_nan])
    assert encode(row, "BF16", "BF16") is row


@given(heads=st.integers(1, 4), half=st.integers(1, 5), start=st.integers(0, 40), count=st.integers(1, 40))
def test_halves_are_interleaved_whichever_rows_are_asked_for(heads: int, half: int, start: int, count: int) -> None:
    rows = heads * 2 * half
    array = np.arange(rows * 3, dtype="<f4").reshape(rows, 3)
    expected = array.reshape(heads, 2, half, 3).swapaxes(1, 2).reshape(rows, 3)
    start, stop = min(start, rows - 1), min(start + count, rows)

    result = interleave_halves(tensor(array), heads)

    assert result.shape == array.shape
    assert np.array_equal(result.read(start, max(stop, start + 1)), expected[start : max(stop, start + 1)])


def test_a_bias_is_interleaved_as_its_weight_is() -> None:
    result = interleave_halves(tensor(np.arange(8, dtype="<f4")), 2)

    assert result.read(0, 1).tolist() == [[0, 2, 1, 3, 4, 6, 5, 7]]


def test_rows_that_do_not_divide_into_heads_are_refused() -> None:
    with pytest.raises(InvalidCheckpointError, match="6 rows"):
        interleave_halves(tensor(np.zeros((6, 2), "<f4")), 2)


def test_shards_are_opened_by_many_threads_while_pages_are_let_go(tmp_path: Path) -> None:
    shards = Shards()
    tensors = []
    for number in range(200):
        path = tmp_path / f"{number}.bin"
        path.write_bytes(struct.pack("<2f", number, number))
        tensors.append(shards.tensor("t", StoredTensor(path, "F32", (1, 2), 0, 8)))

    with ThreadPoolExecutor(4) as pool:
        reading = [pool.submit(tensor.read, 0, 1) for tensor in tensors]
        while not all(one.done() for one in reading):
            shards.forget()

    assert [float(one.result()[0, 0]) for one in reading] == list(range(200))
