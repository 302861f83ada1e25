"""The weights, row by row: read, widened to F32, quantized and written, by as many threads as wanted.

ggml quantizes each row by itself, so any cut between rows gives the same bytes. llama_model_quantize_impl maps the
source, takes a slab of one tensor at a time and has its threads wait for each other; here each thread takes the next
few rows, whatever tensor they are of, through small buffers of its own.
"""

import ctypes
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelpack.errors import ConversionError
from modelpack.gguf_types import GGML_TYPES, TYPE_IDS
from modelpack.quantize.layout import Tensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_F32 = TYPE_IDS["F32"]
_FLOAT_SIZE = 4
# What a thread's buffers take together; larger ones are no faster.
_CHUNK_SIZE = 1 << 20


@dataclass(frozen=True, slots=True)
class _Chunk:
    """``rows`` of one matrix of a tensor from row ``first`` on, counted over all its matrices."""

    tensor: Tensor
    first: int
    rows: int


@dataclass(frozen=True, slots=True)
class Work:
    """``sources`` are descriptors of the source's shards, ``target`` is that of the new file.

    ``importance`` has a value for each column of each matrix. Together the threads buffer at most ``buffer_size``
    bytes, or one row each where a row takes more.
    """

    sources: Sequence[int]
    target: int
    tensors: Sequence[Tensor]
    importance: "Mapping[bytes, NDArray[np.float32]]"
    threads: int
    buffer_size: int


def write_rows(ggml: Any, work: Work, *, announce: Callable[[Tensor], None]) -> None:
    """Write each tensor to its place; ``announce`` hears of it first.

    Raises ConversionError for weights that are no numbers or of a type that is not widened to F32, and OSError.
    """
    lock, failures = threading.Lock(), []
    chunks = _cut(ggml, work, announce)

    def run() -> None:
        writer = _Writer(ggml, work)
        try:
            while chunk := take():
                writer.write(chunk)
        except BaseException as failure:
            failures.append(failure)

    def take() -> _Chunk | None:
        with lock:
            return None if failures else next(chunks, None)

    others = [threading.Thread(target=run) for _ in range(work.threads - 1)]
    for thread in others:
        thread.start()
    run()
    for thread in others:
        thread.join()
    if failures:
        raise failures[0]


def _cut(ggml: Any, work: Work, announce: Callable[[Tensor], None]) -> Iterator[_Chunk]:
    size = min(_CHUNK_SIZE, work.buffer_size // work.threads)
    for tensor in work.tensors:
        announce(tensor)
        columns, rows, matrices = tensor.cut
        types = (_F32, tensor.type, tensor.new_type)
        row_size = sum(ggml.ggml_row_size(type_, columns) for type_ in types)
        step = max(1, size // row_size)
        for matrix in range(matrices):
            for row in range(0, rows, step):
                yield _Chunk(tensor, matrix * rows + row, min(step, rows - row))


class _Writer:
    """One thread's buffers, and its way with a chunk."""

    def __init__(self, ggml: Any, work: Work) -> None:
        self.ggml = ggml
        self.work = work
        self.raw = self.floats = self.quantized = ctypes.create_string_buffer(0)

    def write(self, chunk: _Chunk) -> None:
        tensor, ggml = chunk.tensor, self.ggml
        columns, *_ = tensor.cut
        row_size, new_row_size = (ggml.ggml_row_size(type_, columns) for type_ in (tensor.type, tensor.new_type))
        size, new_size = chunk.rows * row_size, chunk.rows * new_row_size
        self.raw = _at_least(self.raw, size)
        _read(self.work.sources[tensor.shard], self.raw, size, tensor.offset + chunk.first * row_size)
        if not ggml.ggml_validate_row_data(tensor.type, self.raw, size):
            raise ConversionError(f"tensor '{tensor.name.decode()}' has invalid data")
        if tensor.is_copied:
            content = self.raw
        else:
            self.quantized = content = _at_least(self.quantized, new_size)
            floats = self._widened(tensor.type, chunk.rows * columns)
            importance = self._importance(chunk)
            ggml.ggml_quantize_chunk(tensor.new_type, floats, content, 0, chunk.rows, columns, importance)
            if not ggml.ggml_validate_row_data(tensor.new_type, content, new_size):
                raise ConversionError("quantized data validation failed")
        _write(self.work.target, content, new_size, tensor.new_offset + chunk.first * new_row_size)

    def _widened(self, type_: int, count: int) -> Any:
        if type_ == _F32:
            return self.raw
        name, block, block_size = GGML_TYPES[type_]
        traits = self.ggml.ggml_get_type_traits(type_).contents
        # Another layout of it than ours would be read as an address to jump to.
        if (traits.block, traits.block_size) != (block, block_size) or not traits.to_float:
            raise ConversionError(f"cannot dequantize/convert tensor type {name}")
        self.floats = _at_least(self.floats, count * _FLOAT_SIZE)
        traits.to_float(self.raw, self.floats, count)
        return self.floats

    def _importance(self, chunk: _Chunk) -> int | None:
        """The address of the values for the chunk's matrix."""
        values = self.work.importance.get(chunk.tensor.name)
        if values is None:
            return None
        columns, rows, _ = chunk.tensor.cut
        return values.ctypes.data + chunk.first // rows * columns * _FLOAT_SIZE


def _at_least(buffer: Any, size: int) -> Any:
    return buffer if len(buffer) >= size else ctypes.create_string_buffer(size)


def _read(file: int, buffer: Any, size: int, offset: int) -> None:
    view = memoryview(buffer)[:size]
    while view:
        count = os.preadv(file, [view], offset)
        if not count:
            raise ConversionError("the source became shorter while it was quantized")
        view, offset = view[count:], offset + count


def _write(file: int, buffer: Any, size: int, offset: int) -> None:
    view = memoryview(buffer)[:size]
    while view:
        count = os.pwrite(file, view, offset)
        view, offset = view[count:], offset + count
