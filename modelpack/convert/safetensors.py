"""The safetensors format (https://huggingface.co/docs/safetensors): a bounded reader of its header.

Eight bytes of length, a JSON object that says where each tensor lies, then the data. Own code, because the library's
numpy side has no BF16, and because offsets from strangers are checked before anything is mapped.
"""

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TypeGuard

from modelpack.errors import InvalidCheckpointError, InvalidContentError, UnsupportedError
from modelpack.oci import strict_json

MAX_HEADER_SIZE = 100_000_000  # the reference implementation's own limit
MAX_DIMENSIONS = 8
_WIDTHS = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E5M2": 1,
    "F8_E4M3": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "F64": 8,
    "I64": 8,
    "U64": 8,
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies: ``shape`` in the checkpoint's order (rows first), ``offset`` from the start of the file."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


def read_tensors(path: Path) -> dict[str, StoredTensor]:
    """What a safetensors file holds, sorted by name, from its header alone.

    Raises InvalidCheckpointError when the header is malformed or its tensors overlap or leave the file, and
    UnsupportedError for an element type that we do not know.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(MAX_HEADER_SIZE, size - 8):
            raise InvalidCheckpointError(f"{path.name} claims a header of {length} bytes and has {size}")
        raw = file.read(length)
    try:
        header = strict_json.parse_object(raw, what=f"the header of {path.name}")
    except InvalidContentError as error:
        raise InvalidCheckpointError(str(error)) from error
    header.pop("__metadata__", None)
    start = 8 + length
    tensors = {name: _read_entry(path, name, header[name], start) for name in sorted(header)}
    _check_layout(path, tensors, start, size)
    return tensors


def _read_entry(path: Path, name: str, entry: object, start: int) -> StoredTensor:
    where = f"{path.name}: tensor {name[:100]!r}"
    if not isinstance(entry, dict):
        raise InvalidCheckpointError(f"{where} is not described by an object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or not _are_sizes(shape) or not _are_sizes(offsets):
        raise InvalidCheckpointError(f"{where} lacks a proper dtype, shape or data_offsets")
    if dtype not in _WIDTHS:
        raise UnsupportedError(f"{where} has elements of type {dtype[:20]!r}, which modelpack does not read")
    if len(offsets) != 2 or offsets[0] > offsets[1] or len(shape) > MAX_DIMENSIONS:
        raise InvalidCheckpointError(f"{where} has impossible offsets or dimensions")
    size = offsets[1] - offsets[0]
    if prod(shape) * _WIDTHS[dtype] != size:
        raise InvalidCheckpointError(f"{where} has {size} bytes for the shape {shape} of {dtype}")
    return StoredTensor(path, dtype, tuple(shape), start + offsets[0], size)


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def _check_layout(path: Path, tensors: dict[str, StoredTensor], start: int, size: int) -> None:
    end = start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].size)):
        if tensor.offset < end and tensor.size:
            raise InvalidCheckpointError(f"{path.name}: tensor {name[:100]!r} overlaps another")
        end = max(end, tensor.offset + tensor.size)
        if end > size:
            raise InvalidCheckpointError(f"{path.name} ends {end - size} bytes before its tensor {name[:100]!r} does")
