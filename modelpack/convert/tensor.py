"""Tensors that are read a few rows at a time, and what an architecture does to them on their way.

An operation takes a Tensor and gives a Tensor; nothing is read before the writer asks for rows, and then only those.
"""

import mmap
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelpack.convert.safetensors import StoredTensor
from modelpack.errors import InvalidCheckpointError, UnsupportedError

Rows = NDArray[Any]

# BF16 is unknown to numpy: it travels as the 16 bits that it is.
_STORAGE: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


@dataclass(frozen=True, slots=True)
class Tensor:
    """``shape`` in the checkpoint's order (rows first); ``dtype`` one of F32, F16 and BF16.

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
    """The safetensors files of a checkpoint, mapped when a tensor of theirs is first read."""

    def __init__(self) -> None:
        self._maps: dict[Path, mmap.mmap] = {}

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
        for mapped in self._maps.values():
            if hasattr(mmap, "MADV_DONTNEED"):
                mapped.madvise(mmap.MADV_DONTNEED)

    def _map(self, path: Path) -> mmap.mmap:
        if path not in self._maps:
            with path.open("rb") as file:
                self._maps[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps[path]


def constant(values: Rows) -> Tensor:
    """A tensor that no checkpoint holds: one row of float32."""
    row = values.astype("<f4").reshape(1, -1)
    return Tensor((row.shape[1],), "F32", lambda start, stop: row[start:stop])


def interleave_halves(tensor: Tensor, heads: int) -> Tensor:
    """Put the two halves of each head's rows one between the other.

    The checkpoint rotates pairs that lie half a head apart, llama.cpp neighbours: rows 0, n/2, 1, n/2 + 1, ...
    """
    count = tensor.shape[0]
    if heads < 1 or count % (2 * heads):
        raise InvalidCheckpointError(f"{count} rows cannot be split into the halves of {heads} heads")
    order = np.arange(count).reshape(heads, 2, count // heads // 2).swapaxes(1, 2).reshape(-1)
    if len(tensor.shape) == 1:
        return replace(tensor, read=lambda start, stop: tensor.read(start, stop)[:, order])

    def read(start: int, stop: int) -> Rows:
        wanted = order[start:stop]
        first = int(wanted.min())
        return tensor.read(first, int(wanted.max()) + 1)[wanted - first]

    return replace(tensor, read=read)


def encode(rows: Rows, source: str, target: str) -> Rows:
    """Rows of one type as another: exact to a wider type, rounded to nearest, ties to even, to a narrower one."""
    if source == target:
        return rows
    values = (rows.astype("<u4") << 16).view("<f4") if source == "BF16" else rows.astype("<f4")
    if target == "F32":
        return values
    if target == "F16":
        with np.errstate(over="ignore"):  # what F16 cannot hold becomes infinite, as in llama.cpp
            return values.astype("<f2")
    return _to_bf16(values)


def _to_bf16(values: Rows) -> Rows:
    bits = values.view("<u4")
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype("<u2")
    # Rounding could carry a NaN over into infinity: keep its upper half, and make it a quiet one.
    is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return np.where(is_nan, (bits >> 16 | 0x40).astype("<u2"), rounded)
