"""Tensors that are read a few rows at a time, and what an architecture does to them on their way.

An operation takes a Tensor and gives a Tensor; nothing is read before the writer asks for rows, and then only those.
"""

import mmap
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelpack.convert import q8_0
from modelpack.convert.safetensors import StoredTensor
from modelpack.errors import InvalidCheckpointError, UnsupportedError

Rows = NDArray[Any]

# BF16 and FP8 are unknown to numpy: they travel as the bits that they are.
_STORAGE: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "F8_E4M3": np.dtype("u1"),
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """``shape`` in the checkpoint's order (rows first); ``dtype`` one of F32, F16 and BF16, or FP8 until it is scaled.

    ``read(start, stop)`` gives rows of the tensor, its leading dimensions taken as one, as an array of two dimensions
    in the stored type.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[int, int], Rows]

    @property
    def rows(self) -> int:
        return prod(self.shape[:-1])

    @property
    def row_length(self) -> int:
        return self.shape[-1]


class Shards:
    """The safetensors files of a checkpoint, mapped when a tensor of theirs is first read, from any thread."""

    def __init__(self) -> None:
        self._maps: dict[Path, mmap.mmap] = {}
        self._opening = threading.Lock()

    def tensor(self, name: str, stored: StoredTensor) -> Tensor:
        """A stored tensor, ready to be read.

        Raises UnsupportedError for elements that are not F32, F16 or BF16, InvalidCheckpointError when it has none.
        """
        if stored.dtype not in _STORAGE:
            raise UnsupportedError(f"tensor {name!r} holds {stored.dtype}; only F32, F16 and BF16 are converted")
        if stored.size == 0:
            raise InvalidCheckpointError(f"tensor {name!r} is empty")
        shape = stored.shape or (1,)
        dtype, length = _STORAGE[stored.dtype], shape[-1]

        def read(start: int, stop: int) -> Rows:
            first = stored.offset + start * length * dtype.itemsize
            rows: Rows = np.frombuffer(self._map(stored.path), dtype, (stop - start) * length, first)
            return rows.reshape(stop - start, length)

        return Tensor(shape, stored.dtype, read)

    def forget(self) -> None:
        """Let go of the pages that were read, so that memory stays flat however large the files are."""
        for mapped in list(self._maps.values()):
            if hasattr(mmap, "MADV_DONTNEED"):
                mapped.madvise(mmap.MADV_DONTNEED)

    def _map(self, path: Path) -> mmap.mmap:
        with self._opening:
            if path not in self._maps:
                with path.open("rb") as file:
                    self._maps[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return self._maps[path]


def constant(values: Rows) -> Tensor:
    """A tensor that no checkpoint holds: one row of float32."""
    row = values.astype("<f4").reshape(1, -1)
    return Tensor((row.shape[1],), "F32", lambda start, stop: row[start:stop])


def take_rows(tensor: Tensor, order: NDArray[np.int64], shape: tuple[int, ...]) -> Tensor:
    """The tensor whose rows are those of ``tensor`` that ``order`` names, in that order, as a tensor of ``shape``.

    Leading dimensions count as one; the elements of a vector count as its rows.
    """
    if len(tensor.shape) == 1:
        return replace(tensor, shape=shape, read=lambda start, stop: tensor.read(start, stop)[:, order])

    def read(start: int, stop: int) -> Rows:
        wanted = order[start:stop]
        first = int(wanted.min())
        return tensor.read(first, int(wanted.max()) + 1)[wanted - first]

    return replace(tensor, shape=shape, read=read)


def take_part(tensor: Tensor, start: int, stop: int) -> Tensor:
    """The rows ``start`` to ``stop`` of a matrix, or of each matrix in a stack; for a vector, of its elements.

    Raises InvalidCheckpointError where there are not as many.
    """
    axis = max(len(tensor.shape) - 2, 0)
    count = tensor.shape[axis]
    if not 0 <= start < stop <= count:
        raise InvalidCheckpointError(f"the rows {start} to {stop} of a tensor of the shape {list(tensor.shape)}")
    stacked = prod(tensor.shape[:axis])
    order = (np.arange(stacked)[:, None] * count + np.arange(start, stop)).reshape(-1)
    return take_rows(tensor, order, (*tensor.shape[:axis], stop - start, *tensor.shape[axis + 1 :]))


def half(tensor: Tensor, which: int) -> Tensor:
    """The first (0) or the second (1) half of the rows: two matrices that were saved as one."""
    count = tensor.shape[-2] if len(tensor.shape) > 1 else tensor.shape[0]
    if count % 2:
        raise InvalidCheckpointError(f"{count} rows cannot be split into halves")
    return take_part(tensor, which * (count // 2), (which + 1) * (count // 2))


def interleave_halves(tensor: Tensor, heads: int) -> Tensor:
    """Put the two halves of each head's rows one between the other.

    The checkpoint rotates pairs that lie half a head apart, llama.cpp neighbours: rows 0, n/2, 1, n/2 + 1, ...
    """
    count = tensor.shape[0]
    if heads < 1 or count % (2 * heads):
        raise InvalidCheckpointError(f"{count} rows cannot be split into the halves of {heads} heads")
    order = np.arange(count).reshape(heads, 2, count // heads // 2).swapaxes(1, 2).reshape(-1)
    return take_rows(tensor, order, tensor.shape)


def separate_groups(tensor: Tensor, groups: int, parts: Sequence[int]) -> Tensor:
    """Queries, keys and values that lie group by group, as all queries, then all keys, then all values.

    ``parts`` says how many heads of each there are in one of the ``groups``.
    """
    count, per_group = tensor.shape[0], sum(parts)
    if groups < 1 or count % (groups * per_group):
        raise InvalidCheckpointError(f"{count} rows cannot be split into {groups} groups of {per_group} heads")
    heads = np.arange(count).reshape(groups, per_group, -1)
    bounds = np.cumsum([0, *parts])
    order = np.concatenate([heads[:, first:last].reshape(-1) for first, last in pairwise(bounds)])
    return take_rows(tensor, order, tensor.shape)


def transposed(tensor: Tensor) -> Tensor:
    """Rows as columns, in each matrix of a stack. A vector stays what it is."""
    if len(tensor.shape) == 1:
        return tensor
    *stacked, rows, columns = tensor.shape

    def read(start: int, stop: int) -> Rows:
        pieces = []
        while start < stop:
            matrix, first = divmod(start, columns)
            last = min(columns, first + stop - start)
            pieces.append(tensor.read(matrix * rows, (matrix + 1) * rows)[:, first:last].T)
            start += last - first
        return np.concatenate(pieces)

    return replace(tensor, shape=(*stacked, columns, rows), read=read)


def stack(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors of one shape and type as one of a dimension more. Raises InvalidCheckpointError where they differ."""
    first = tensors[0]
    if any((tensor.shape, tensor.dtype) != (first.shape, first.dtype) for tensor in tensors):
        raise InvalidCheckpointError("experts of one block differ in shape or type")

    def read(start: int, stop: int) -> Rows:
        pieces = []
        while start < stop:
            number, row = divmod(start, first.rows)
            last = min(first.rows, row + stop - start)
            pieces.append(tensors[number].read(row, last))
            start += last - row
        return np.concatenate(pieces)

    return Tensor((len(tensors), *first.shape), first.dtype, read)


def as_type(tensor: Tensor, dtype: str) -> Tensor:
    """The tensor in another type, as ``encode`` gives it."""
    if tensor.dtype == dtype:
        return tensor
    return Tensor(tensor.shape, dtype, lambda start, stop: encode(tensor.read(start, stop), tensor.dtype, dtype))


def add_one(tensor: Tensor) -> Tensor:
    """In F32: some models store how far their norm's weights are from one."""
    return Tensor(
        tensor.shape,
        "F32",
        lambda start, stop: encode(tensor.read(start, stop), tensor.dtype, "F32") + np.float32(1),
    )


def encode(rows: Rows, source: str, target: str) -> Rows:
    """Rows of one type as another: exact to a wider type, rounded to nearest, ties to even, to a narrower one; or as
    blocks of Q8_0.
    """
    if source == target:
        return rows
    if source == "BF16" and target == "F16":
        # There are only 65,536 of them.
        halves: Rows = np.take(_bf16_as_f16(), rows, mode="clip")
        return halves
    values = _widened(rows) if source == "BF16" else rows.astype("<f4", copy=False)
    if target == "F32":
        return values
    if target == "Q8_0":
        return q8_0.quantize(values)
    return _to_f16(values) if target == "F16" else _to_bf16(values)


def are_finite(rows: Rows, dtype: str) -> bool:
    """Whether there is no NaN and no infinity among them."""
    if dtype == "Q8_0":
        return q8_0.are_finite(rows)
    return bool(np.isfinite(encode(rows, dtype, "F32")).all())


def _widened(bf16: Rows) -> Rows:
    bits = bf16.astype("<u4")
    bits <<= 16
    return bits.view("<f4")


@cache
def _bf16_as_f16() -> Rows:
    return _to_f16(_widened(np.arange(1 << 16, dtype="<u2")))


def _to_f16(values: Rows) -> Rows:
    with np.errstate(over="ignore"):  # what F16 cannot hold becomes infinite, as in llama.cpp
        return values.astype("<f2")


def _to_bf16(values: Rows) -> Rows:
    bits = np.ascontiguousarray(values).view("<u4")
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    result: Rows = np.ascontiguousarray(rounded.view("<u2")[..., 1::2])
    if np.isnan(values.max(initial=-np.inf)):
        # Rounding could carry a NaN over into infinity: keep its upper half, and make it a quiet one.
        is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
        result[is_nan] = bits[is_nan] >> 16 | 0x40
    return result
