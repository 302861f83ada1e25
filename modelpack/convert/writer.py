"""Writes GGUF: the header from values, then the weights as they stream by.

The layout is that of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, version 3. gguf's own writer wants
every tensor at once and says the size of a file only after writing it; a plan has to say it before.
"""

import contextlib
import hashlib
import itertools
import os
import struct
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType

from modelpack.atomic_file import disk_errors, sync_directory
from modelpack.convert import q8_0
from modelpack.convert.tensor import Rows, Tensor, are_finite, encode
from modelpack.errors import ConversionError, InvalidCheckpointError
from modelpack.oci.digest import Digest
from modelpack.progress import SILENT, Progress
from modelpack.writeback import Writeback

if TYPE_CHECKING:
    from typing_extensions import Buffer

ALIGNMENT = 32
CHUNK_SIZE = 1 << 20
_MOST_THREADS = 8
_MOST_BEHIND = 4  # pieces that are written and not yet hashed

_PACKED = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}
_LENGTH = struct.Struct("<Q").pack
# Weights in a block of each type, and its bytes.
_BLOCKS = {"F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "Q8_0": (q8_0.BLOCK, q8_0.BLOCK_SIZE)}


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor under its GGUF name, and the type in which it will be written: F32, F16, BF16 or Q8_0."""

    name: str
    type: str
    tensor: Tensor

    @property
    def size(self) -> int:
        weights, size = _BLOCKS[self.type]
        return prod(self.tensor.shape) // weights * size


def metadata_bytes(metadata: Mapping[str, gguf.GGUFValue]) -> bytes:
    """The keys and values, as they lie in a file."""
    parts = []
    for key, value in metadata.items():
        parts += [_string(key), struct.pack("<I", value.type), *_value(value)]
    return b"".join(parts)


def header_bytes(metadata: bytes, keys: int, tensors: Sequence[PlannedTensor]) -> bytes:
    """Everything before the weights, padded to where they begin: so many ``keys`` in ``metadata``, then the tensors'
    places.
    """
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), keys), metadata]
    offset = 0
    for planned in tensors:
        shape = planned.tensor.shape[::-1]  # ggml counts dimensions from the innermost
        parts += [_string(planned.name), struct.pack(f"<I{len(shape)}Q", len(shape), *shape)]
        parts.append(struct.pack("<IQ", GGMLQuantizationType[planned.type], offset))
        offset += planned.size + _padding(planned.size)
    header = b"".join(parts)
    return header + bytes(_padding(len(header)))


def data_size(tensors: Iterable[PlannedTensor]) -> int:
    """Bytes of the weights with the padding after each."""
    return sum(planned.size + _padding(planned.size) for planned in tensors)


def write_file(
    path: Path,
    header: bytes,
    tensors: Sequence[PlannedTensor],
    *,
    deep: bool = False,
    is_final: bool = True,
    between: Callable[[], None] = lambda: None,
    progress: Progress = SILENT,
) -> Digest | None:
    """Write a GGUF file, whole or not at all: under a temporary name beside ``path``, synced, then renamed. Its digest
    is known by then.

    Holds a few MiB of weights for each of up to eight processors; ``between`` is called between pieces, and what it
    raises ends the work. A file that is not ``is_final`` but only to be worked on is neither synced nor hashed: None.
    Raises InsufficientDiskError, and with ``deep`` InvalidCheckpointError for weights that are not finite.
    """
    with (
        _replacing(path, is_final=is_final) as file,
        contextlib.ExitStack() as stack,
        progress.step("convert", total=data_size(tensors)) as step,
    ):
        output = stack.enter_context(_hashed(file)) if is_final else file
        output.write(header)
        for planned, pieces in _encoded(tensors, deep=deep):
            written = 0
            for rows in pieces:
                output.write(rows.data)
                written += rows.nbytes
                step.advance(rows.nbytes)
                between()
            if written != planned.size:
                raise ConversionError(f"tensor {planned.name} came to {written} bytes instead of {planned.size}")
            padding = _padding(planned.size)
            output.write(bytes(padding))
            step.advance(padding)
        return output.digest() if isinstance(output, _Hashed) else None


def _encoded(tensors: Sequence[PlannedTensor], *, deep: bool) -> Iterator[tuple[PlannedTensor, Iterator[Rows]]]:
    """Each tensor with its pieces, to be taken in this order, while the next are encoded on the other processors."""
    jobs = [(planned, start) for planned in tensors for start in range(0, planned.tensor.rows, _rows_at_once(planned))]
    with ThreadPoolExecutor(_processors()) as pool:
        ahead: deque[Future[Rows]] = deque()
        waiting = iter(jobs)

        def next_piece() -> Rows:
            for planned, start in itertools.islice(waiting, _processors() + 1 - len(ahead)):
                ahead.append(pool.submit(_piece, planned, start, deep=deep))
            return ahead.popleft().result()

        try:
            for planned in tensors:
                count = -(-planned.tensor.rows // _rows_at_once(planned))
                yield planned, (next_piece() for _ in range(count))
        finally:
            pool.shutdown(cancel_futures=True)


def _piece(planned: PlannedTensor, start: int, *, deep: bool) -> Rows:
    tensor = planned.tensor
    rows = tensor.read(start, min(start + _rows_at_once(planned), tensor.rows))
    encoded = encode(rows, tensor.dtype, planned.type)
    if deep and not are_finite(encoded, planned.type):
        raise InvalidCheckpointError(f"tensor {planned.name} holds a NaN, or what {planned.type} cannot hold")
    return np.ascontiguousarray(encoded).reshape(-1)


def _rows_at_once(planned: PlannedTensor) -> int:
    return max(1, CHUNK_SIZE // (4 * planned.tensor.row_length))


def _processors() -> int:
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(found, _MOST_THREADS)


class _Hashed:
    """An open file, each piece of which is hashed on a thread of its own while it is written."""

    def __init__(self, file: BinaryIO, thread: Executor, writeback: Writeback) -> None:
        self._file, self._thread, self._writeback = file, thread, writeback
        self._hasher = hashlib.sha256()
        self._behind: deque[Future[None]] = deque()

    def write(self, content: "Buffer") -> None:
        """``content`` is not to change any more."""
        self._behind.append(self._thread.submit(self._hasher.update, content))
        self._writeback.wrote(self._file.write(content))
        self._wait(_MOST_BEHIND)

    def digest(self) -> Digest:
        self._wait(0)
        return Digest.from_hex(self._hasher.hexdigest())

    def _wait(self, left: int) -> None:
        while len(self._behind) > left:
            self._behind.popleft().result()


@contextlib.contextmanager
def _hashed(file: BinaryIO) -> Iterator[_Hashed]:
    with ThreadPoolExecutor(1) as thread, Writeback(file.fileno()) as writeback:
        yield _Hashed(file, thread, writeback)


@contextlib.contextmanager
def _replacing(path: Path, *, is_final: bool) -> Iterator[BinaryIO]:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with disk_errors(path), os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            if is_final:
                os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if is_final:
        sync_directory(path.parent)


def _value(value: gguf.GGUFValue) -> list[bytes]:
    if value.type != GGUFValueType.ARRAY:
        return [_scalar(value.value, value.type)]
    items = value.value
    if isinstance(items, (bytes, bytearray)):
        kind = GGUFValueType.UINT8
    else:
        kind = value.sub_type or GGUFValueType.get_type(items[0])
    head = struct.pack("<IQ", kind, len(items))
    if kind == GGUFValueType.STRING:
        return [head, *map(_string, items)]
    return [head, struct.pack(f"<{len(items)}{_PACKED[kind]}", *items)]


def _scalar(value: Any, kind: GGUFValueType) -> bytes:
    return _string(value) if kind == GGUFValueType.STRING else struct.pack("<" + _PACKED[kind], value)


def _string(value: str | bytes) -> bytes:
    content = value.encode("utf-8") if isinstance(value, str) else value
    return _LENGTH(len(content)) + content


def _padding(size: int) -> int:
    return -size % ALIGNMENT
