"""One GGUF file as several, for registries and file systems that limit how large a file may be.

Names and keys are those of llama.cpp (``llama_split_path`` in src/llama.cpp, tools/gguf-split):
``NAME-00001-of-00003.gguf``, all metadata in the first shard, ``split.no``, ``split.count`` and ``split.tensors.count``
in each. Given the first, llama.cpp finds the others beside it.
"""

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from modelpack.atomic_file import disk_errors
from modelpack.errors import InvalidGGUFError, InvalidInputError
from modelpack.gguf_header import DEFAULT_ALIGNMENT, MAX_TENSORS, GGUFHeader, TensorInfo, read_header
from modelpack.gguf_types import TYPE_IDS
from modelpack.progress import SILENT, Progress

MAX_SHARDS = 10_000
COUNT_KEY = "split.count"

_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.ASCII)
_UINT16, _INT32 = 2, 5
_CHUNK_SIZE = 4 << 20


@dataclass(frozen=True, slots=True)
class Shard:
    """What a shard will hold: ``head`` is everything before the weights, ``size`` the bytes of the whole file."""

    head: bytes
    tensors: tuple[TensorInfo, ...]
    alignment: int
    size: int


def shard_name(stem: str, number: int, count: int) -> str:
    """As llama.cpp wants it; numbers begin with 1."""
    return f"{stem}-{number:05d}-of-{count:05d}.gguf"


def read_headers(path: Path) -> tuple[GGUFHeader, ...]:
    """The checked header of a GGUF file; of the first of several, those of all.

    Raises InvalidGGUFError also for a shard that is not the first, or that belongs to others than those beside it, and
    NotFoundError where one is missing.
    """
    first = read_header(path)
    count = first.metadata.get(COUNT_KEY, 1)
    if count in (0, 1):  # llama.cpp's tool leaves 0 in what it merged
        return (first,)
    named = _NAME.fullmatch(path.name)
    if not isinstance(count, int) or not 1 < count <= MAX_SHARDS or named is None or int(named[3]) != count:
        raise InvalidGGUFError(f"{path.name} is one of {count!r} shards, which its name does not say")
    if int(named[2]) != 1 or first.metadata.get("split.no") != 0:
        raise InvalidGGUFError(f"{path.name} is not the first of its {count} shards, which is the one to name")
    claimed = first.metadata.get("split.tensors.count")
    if not isinstance(claimed, int) or not 0 < claimed <= MAX_TENSORS:
        raise InvalidGGUFError(f"{path.name} claims {claimed!r} tensors with its shards")
    headers = [first]
    for number in range(2, count + 1):
        header = read_header(path.with_name(shard_name(named[1], number, count)))
        if (header.metadata.get("split.no"), header.metadata.get(COUNT_KEY)) != (number - 1, count):
            raise InvalidGGUFError(f"shard {number} beside {path.name} belongs to other shards")
        headers.append(header)
        if sum(len(one.tensors) for one in headers) > claimed:
            break
    tensors = [tensor.name for header in headers for tensor in header.tensors]
    if len(set(tensors)) != len(tensors) or len(tensors) != claimed:
        raise InvalidGGUFError(f"{path.name} and its shards do not hold the tensors that they claim")
    return tuple(headers)


def read_whole_header(path: Path) -> GGUFHeader:
    """The header of a GGUF file, or the first shard's with the tensors of all, each at its offset in its own file.

    Raises as ``read_headers``.
    """
    return whole_header(read_headers(path))


def whole_header(headers: Sequence[GGUFHeader]) -> GGUFHeader:
    """What ``read_whole_header`` returns, of headers that are read already."""
    if len(headers) == 1:
        return headers[0]
    return replace(headers[0], tensors=tuple(tensor for header in headers for tensor in header.tensors))


def shard_paths(path: Path) -> tuple[Path, ...]:
    """The file itself, or all shards that the first one names. Raises as ``read_headers`` for what is named as one."""
    named = _NAME.fullmatch(path.name)
    count = len(read_headers(path)) if named else 1
    if named is None or count == 1:
        return (path,)
    return tuple(path.with_name(shard_name(named[1], number, count)) for number in range(1, count + 1))


def plan_shards(source: Path, max_size: int) -> tuple[Shard, ...]:
    """How to cut a GGUF file so that no shard is larger than ``max_size`` bytes; one shard means not at all.

    Raises InvalidInputError where a tensor, or the metadata that the first shard holds, is larger by itself, and for
    what was split before.
    """
    header = read_header(source)
    if header.file_size <= max_size:
        return (Shard(b"", header.tensors, header.alignment, header.file_size),)
    if COUNT_KEY in header.metadata:
        raise InvalidInputError(f"{source.name} is a shard, or was merged from some, and is not split again")
    with source.open("rb") as file:
        file.seek(24)
        metadata = file.read(header.infos_offset - 24)
    groups: list[list[TensorInfo]] = [[]]
    head, data = len(metadata) + _HEAD_SIZE, 0
    for tensor in header.tensors:
        alignment = header.alignment if len(groups) == 1 else DEFAULT_ALIGNMENT
        if _padded(head + _info_size(tensor), alignment) + data + _padded(tensor.size, alignment) > max_size:
            groups.append([])
            head, data, alignment = _HEAD_SIZE, 0, DEFAULT_ALIGNMENT
        groups[-1].append(tensor)
        head += _info_size(tensor)
        data += _padded(tensor.size, alignment)
        if _padded(head, alignment) + data > max_size:
            raise InvalidInputError(f"tensor {tensor.name} alone takes {tensor.size} bytes, more than {max_size}")
    if not groups[0]:
        raise InvalidInputError(f"the metadata and the first tensor of {source.name} take more than {max_size} bytes")
    if len(groups) > MAX_SHARDS:
        raise InvalidInputError(f"{source.name} would become {len(groups)} shards; at most {MAX_SHARDS} are read")
    return tuple(_shard(header, metadata, group, number, len(groups)) for number, group in enumerate(groups))


def write_shards(source: Path, shards: Sequence[Shard], stem: Path, *, progress: Progress = SILENT) -> tuple[Path, ...]:
    """Write what was planned, as ``stem`` with a shard's ending. The same source and limit give the same bytes.

    Raises InsufficientDiskError.
    """
    header = read_header(source)
    paths = [stem.with_name(shard_name(stem.name, number, len(shards))) for number in range(1, len(shards) + 1)]
    with source.open("rb") as file, progress.step("split", total=sum(shard.size for shard in shards)) as step:
        for path, shard in zip(paths, shards, strict=True):
            with disk_errors(path), path.open("wb") as target:
                target.write(shard.head)
                step.advance(len(shard.head))
                for tensor in shard.tensors:
                    file.seek(header.data_offset + tensor.offset)
                    _copy(file, target, tensor.size)
                    padded = _padded(tensor.size, shard.alignment)
                    target.write(bytes(padded - tensor.size))
                    step.advance(padded)
    return tuple(paths)


def _shard(header: GGUFHeader, metadata: bytes, tensors: Sequence[TensorInfo], number: int, count: int) -> Shard:
    is_first = number == 0
    # Only the first one carries general.alignment.
    alignment = header.alignment if is_first else DEFAULT_ALIGNMENT
    keys = (len(header.metadata) if is_first else 0) + 3
    parts = [b"GGUF", struct.pack("<IQQ", header.version, len(tensors), keys), metadata if is_first else b""]
    parts.append(_split_keys(number, count, len(header.tensors)))
    offset = 0
    for tensor in tensors:
        parts.append(_info(tensor, offset))
        offset += _padded(tensor.size, alignment)
    head = b"".join(parts)
    head = head.ljust(_padded(len(head), alignment), b"\0")
    return Shard(head, tuple(tensors), alignment, len(head) + offset)


def _split_keys(number: int, count: int, tensors: int) -> bytes:
    values = (
        ("split.no", _UINT16, struct.pack("<H", number)),
        ("split.tensors.count", _INT32, struct.pack("<i", tensors)),
        (COUNT_KEY, _UINT16, struct.pack("<H", count)),
    )
    return b"".join(_string(key) + struct.pack("<I", kind) + value for key, kind, value in values)


def _info(tensor: TensorInfo, offset: int) -> bytes:
    dimensions = len(tensor.shape)
    shape = struct.pack(f"<I{dimensions}Q", dimensions, *tensor.shape)
    return _string(tensor.name) + shape + struct.pack("<IQ", TYPE_IDS[tensor.type], offset)


def _info_size(tensor: TensorInfo) -> int:
    return len(_info(tensor, 0))


def _string(text: str) -> bytes:
    content = text.encode()
    return struct.pack("<Q", len(content)) + content


def _padded(size: int, alignment: int) -> int:
    return size + -size % alignment


_HEAD_SIZE = 24 + len(_split_keys(0, 0, 0))
"""Bytes of a shard without metadata and tensors: magic, version, two counts, and the three keys."""


def _copy(source: BinaryIO, target: BinaryIO, size: int) -> None:
    while size:
        chunk = source.read(min(size, _CHUNK_SIZE))
        if not chunk:
            raise InvalidGGUFError("the file became shorter while it was split")
        target.write(chunk)
        size -= len(chunk)
