"""The new file before its weights: its header by ggml's own writer, and where each tensor comes from and goes to."""

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from modelpack.errors import ConversionError
from modelpack.gguf_types import GGML_TYPES
from modelpack.quantize.choice import Choice
from modelpack.quantize.libggml import GGUFInitParams, InitParams

QUANTIZATION_VERSION = 2
"""``GGML_QNT_VERSION`` of ggml.h."""

_MAX_DIMENSIONS = 4


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor in both files. Types are ggml's numbers, offsets count from the beginning of the file."""

    name: bytes
    shape: tuple[int, ...]
    """Four dimensions, the row length first."""
    shard: int
    """Which file of the source holds it."""
    offset: int
    type: int
    new_offset: int
    new_type: int

    @property
    def is_copied(self) -> bool:
        return self.type == self.new_type

    @property
    def cut(self) -> tuple[int, int, int]:
        """Columns, rows and matrices: where it may be cut. What is copied is so between any two blocks."""
        if not self.is_copied:
            return self.shape[0], self.shape[1], prod(self.shape[2:])
        _, block, _ = GGML_TYPES[self.type]
        return block, prod(self.shape) // block, 1


@dataclass(frozen=True, slots=True)
class Layout:
    """``head`` is everything before the weights, ``size`` the bytes of the whole file."""

    head: bytes
    tensors: tuple[Tensor, ...]
    size: int


def lay_out(
    ggml: Any, shards: Sequence[bytes], choices: Sequence[Choice], file_type: int, metadata: Mapping[str, int | bytes]
) -> Layout:
    """Step for step what llama_model_quantize_impl does. ``metadata`` is added to the source's.

    Raises ConversionError for a source that ggml does not read, or that holds other tensors than those chosen for.
    """
    sources = [_open(ggml, path) for path in shards]
    new = ggml.gguf_init_empty()
    tensors = ggml.ggml_init(InitParams(len(choices) * ggml.ggml_tensor_overhead(), None, no_alloc=True))
    _set_metadata(ggml, new, sources[0], file_type, metadata)
    found = {
        ggml.gguf_get_tensor_name(source, index): (shard, index)
        for shard, source in enumerate(sources)
        for index in range(ggml.gguf_get_n_tensors(source))
    }
    if len(choices) != len(found) or any(choice.tensor not in found for choice in choices):
        raise ConversionError("llama.cpp would quantize other tensors than there are")
    for choice in choices:
        shard, index = found[choice.tensor]
        shape = ggml.gguf_get_tensor_ne(sources[shard], index)
        type_ = ggml.gguf_get_tensor_type(sources[shard], index) if choice.type is None else choice.type
        tensor = ggml.ggml_new_tensor(tensors, type_, _MAX_DIMENSIONS, shape)
        ggml.ggml_set_name(tensor, choice.tensor)
        ggml.gguf_add_tensor(new, tensor)

    head = ctypes.create_string_buffer(ggml.gguf_get_meta_size(new))
    ggml.gguf_get_meta_data(new, head)
    placed = tuple(
        Tensor(
            name=choice.tensor,
            shape=tuple(ggml.gguf_get_tensor_ne(new, number)[:_MAX_DIMENSIONS]),
            shard=shard,
            offset=ggml.gguf_get_data_offset(sources[shard]) + ggml.gguf_get_tensor_offset(sources[shard], index),
            type=ggml.gguf_get_tensor_type(sources[shard], index),
            new_offset=len(head) + ggml.gguf_get_tensor_offset(new, number),
            new_type=ggml.gguf_get_tensor_type(new, number),
        )
        for number, choice in enumerate(choices)
        for shard, index in [found[choice.tensor]]
    )
    sizes = (ggml.gguf_get_tensor_size(new, number) for number in range(len(choices)))
    alignment = ggml.gguf_get_alignment(new)
    size = len(head) + sum(size + -size % alignment for size in sizes)
    for context in (*sources, new):
        ggml.gguf_free(context)
    ggml.ggml_free(tensors)
    return Layout(head.raw, placed, size)


def _open(ggml: Any, path: bytes) -> Any:
    source = ggml.gguf_init_from_file(path, GGUFInitParams(no_alloc=True, ctx=None))
    if not source:
        raise ConversionError("ggml does not read the source")
    return source


def _set_metadata(ggml: Any, new: Any, source: Any, file_type: int, metadata: Mapping[str, int | bytes]) -> None:
    ggml.gguf_set_kv(new, source)
    ggml.gguf_set_val_u32(new, b"general.quantization_version", QUANTIZATION_VERSION)
    ggml.gguf_set_val_u32(new, b"general.file_type", file_type)
    for key in (b"split.no", b"split.count", b"split.tensors.count"):
        ggml.gguf_remove_key(new, key)
    for name, value in metadata.items():
        if isinstance(value, int):
            ggml.gguf_set_val_u32(new, name.encode(), value)
        else:
            ggml.gguf_set_val_str(new, name.encode(), value)
