"""A bounded reader of a GGUF header: what a file says about itself, believed only after it was checked.

GGUF comes from strangers and goes into C++ code, so this parser is the first to open a file. It knows the layout
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3), reads the header once from front to back
and keeps little: a vocabulary of 256,000 tokens leaves a summary behind. What the weights are worth is left to others.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

from modelpack.errors import InvalidGGUFError
from modelpack.gguf_types import FILE_TYPES, GGML_TYPES
from modelpack.regular_file import open_regular

MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 17
MAX_KEY_LENGTH = (1 << 16) - 1
MAX_STRING_LENGTH = 1 << 24
MAX_HEADER = 1 << 27
MAX_STRINGS = 1 << 22  # a vocabulary of 262,000 tokens with its merges has a fifth of this
MAX_TENSOR_NAME = 63  # ggml keeps a name in 64 bytes with its terminating zero
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 1 << 16
DEFAULT_ALIGNMENT = 32
ARRAY_HEAD = 64

_SCALARS = {
    0: ("uint8", "B"),
    1: ("int8", "b"),
    2: ("uint16", "H"),
    3: ("int16", "h"),
    4: ("uint32", "I"),
    5: ("int32", "i"),
    6: ("float32", "f"),
    7: ("bool", "B"),
    10: ("uint64", "Q"),
    11: ("int64", "q"),
    12: ("float64", "d"),
}
_STRING = 8
_ARRAY = 9
_LENGTH = struct.Struct("<Q")

Scalar = bool | int | float | str


@dataclass(frozen=True, slots=True)
class ArraySummary:
    """An array of the metadata: its element type, its length, and no more than its first 64 elements."""

    type: str
    length: int
    head: tuple[Scalar, ...]

    @property
    def is_complete(self) -> bool:
        return len(self.head) == self.length


Value = Scalar | ArraySummary


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: ``shape`` in ggml's order (the row length first), ``offset`` from the start of the data, in bytes."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    """A header that was checked against its file."""

    version: int
    alignment: int
    metadata: Mapping[str, Value]
    tensors: tuple[TensorInfo, ...]
    infos_offset: int
    """Where the metadata ends and the descriptions of the tensors begin."""
    data_offset: int
    file_size: int

    @property
    def architecture(self) -> str | None:
        return self._string("general.architecture")

    @property
    def name(self) -> str | None:
        return self._string("general.name")

    @property
    def file_type(self) -> str | None:
        """The quantization the file declares, for example ``Q4_K_M``; None when it declares none that we know."""
        value = self._integer("general.file_type")
        return None if value is None else FILE_TYPES.get(value)

    @property
    def parameters(self) -> int:
        """How many weights the tensors hold, of this shard where the file is one of several."""
        return sum(prod(tensor.shape) for tensor in self.tensors)

    @property
    def context_length(self) -> int | None:
        """The longest context, in tokens, that the model was trained for."""
        return self._integer(f"{self.architecture}.context_length")

    @property
    def chat_template(self) -> str | None:
        """The default chat template (Jinja): untrusted text, never to be rendered outside a sandbox."""
        return self._string("tokenizer.chat_template")

    def _string(self, key: str) -> str | None:
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None

    def _integer(self, key: str) -> int | None:
        value = self.metadata.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None


def read_header(path: Path) -> GGUFHeader:
    """Read and check the header of a GGUF file.

    Time and memory are bounded by the size of the header that is really there, whatever its counts claim.
    Raises InvalidGGUFError, naming the file and what is wrong with it, MissingFileError, and InvalidInputError for
    what is no file.
    """
    with open_regular(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        return parse_header(file, size, name=path.name)


def parse_header(file: BinaryIO, size: int, *, name: str) -> GGUFHeader:
    """The header at the beginning of a file of ``size`` bytes, which is read from front to back and no further.

    Bounded as ``read_header`` is. Raises InvalidGGUFError.
    """
    return _Parser(name, file, size).parse()


class _Parser:
    """Reads front to back; every length is checked against what is left of the file before it is used."""

    def __init__(self, name: str, file: BinaryIO, size: int) -> None:
        self.name = name
        self.file = file
        self.size = size
        self.position = 0
        self.strings = 0

    def parse(self) -> GGUFHeader:
        version = self.read_version()
        tensor_count = self.read_uint64()
        key_count = self.read_uint64()
        # The smallest possible entries: key of one byte, type, value of one byte; name, dimensions, type, offset.
        self.check_count(key_count, MAX_KEYS, 14, "metadata keys")
        self.check_count(tensor_count, MAX_TENSORS, 33, "tensors")
        metadata = self.read_metadata(key_count)
        alignment = self.find_alignment(metadata)
        infos_offset = self.position
        infos = [self.read_tensor_info() for _ in range(tensor_count)]
        data_offset = _align(self.position, alignment)
        self.check_layout(infos, alignment, data_offset)
        return GGUFHeader(
            version, alignment, MappingProxyType(metadata), tuple(infos), infos_offset, data_offset, self.size
        )

    def read_version(self) -> int:
        if self.size < 24:
            raise self.invalid(f"has {self.size} bytes, too few for a GGUF header")
        if self.read(4) != b"GGUF":
            raise self.invalid("is not a GGUF file (its first four bytes are not 'GGUF')")
        (version,) = struct.unpack("<I", self.read(4))
        if version not in (2, 3):
            # The version's byte order is how big-endian files show themselves.
            reason = "is big-endian" if version & 0xFFFF == 0 else f"has version {version}"
            raise self.invalid(f"{reason}; modelpack reads little-endian GGUF of version 2 and 3")
        return int(version)

    def read_metadata(self, count: int) -> dict[str, Value]:
        metadata: dict[str, Value] = {}
        for _ in range(count):
            key = self.read_string(MAX_KEY_LENGTH, "a metadata key")
            if not key:
                raise self.invalid("has an empty metadata key")
            if key in metadata:
                raise self.invalid(f"repeats the metadata key {key!r}")
            metadata[key] = self.read_value(key)
        return metadata

    def read_value(self, key: str) -> Value:
        kind = self.read_uint32()
        if kind != _ARRAY:
            return self.read_scalar(kind, key)
        kind = self.read_uint32()
        length = self.read_uint64()
        if kind == _ARRAY:
            raise self.invalid(f"has an array of arrays in {key!r}")
        if kind == _STRING:
            self.check_count(length, self.size, 8, f"strings in {key!r}")
            head = [self.read_scalar(kind, key) for _ in range(min(length, ARRAY_HEAD))]
            self.skip_strings(length - len(head), f"the value of {key!r}")
            return ArraySummary("string", length, tuple(head))
        name, code = self.scalar_type(kind, key)
        width = struct.calcsize(code)
        self.check_count(length, self.size, width, f"elements in {key!r}")
        head = [self.read_scalar(kind, key) for _ in range(min(length, ARRAY_HEAD))]
        self.skip((length - len(head)) * width)
        return ArraySummary(name, length, tuple(head))

    def read_scalar(self, kind: int, key: str) -> Scalar:
        if kind == _STRING:
            return self.read_string(MAX_STRING_LENGTH, f"the value of {key!r}")
        name, code = self.scalar_type(kind, key)
        (value,) = struct.unpack("<" + code, self.read(struct.calcsize(code)))
        if name != "bool":
            return value  # type: ignore[no-any-return]  # struct gives the int or float that the code asks for
        if value > 1:
            raise self.invalid(f"has the value {value} for the boolean {key!r}")
        return bool(value)

    def scalar_type(self, kind: int, key: str) -> tuple[str, str]:
        if kind not in _SCALARS:
            raise self.invalid(f"has the unknown value type {kind} for {key!r}")
        return _SCALARS[kind]

    def find_alignment(self, metadata: Mapping[str, Value]) -> int:
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if (
            not isinstance(alignment, int)
            or isinstance(alignment, bool)
            or not 8 <= alignment <= MAX_ALIGNMENT
            or alignment & (alignment - 1)
        ):
            raise self.invalid(f"has the alignment {alignment!r}, not a power of two from 8 to {MAX_ALIGNMENT}")
        return alignment

    def read_tensor_info(self) -> TensorInfo:
        name = self.read_string(MAX_TENSOR_NAME, "a tensor name")
        dimensions = self.read_uint32()
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise self.invalid(f"has a tensor {name!r} of {dimensions} dimensions")
        shape = struct.unpack(f"<{dimensions}Q", self.read(8 * dimensions))
        kind = self.read_uint32()
        offset = self.read_uint64()
        if kind not in GGML_TYPES:
            raise self.invalid(f"has a tensor {name!r} of the unknown type {kind}")
        type_name, block, width = GGML_TYPES[kind]
        # Python's integers do not overflow, but ggml's int64_t do.
        if 0 in shape or prod(shape) >= 1 << 63:
            raise self.invalid(f"has a tensor {name!r} of the impossible shape {list(shape)}")
        if shape[0] % block:
            raise self.invalid(f"has a tensor {name!r} whose rows of {shape[0]} do not fill blocks of {type_name}")
        return TensorInfo(name, shape, type_name, offset, prod(shape) // block * width)

    def check_layout(self, infos: list[TensorInfo], alignment: int, data_offset: int) -> None:
        if len({info.name for info in infos}) != len(infos):
            raise self.invalid("repeats a tensor name")
        end = 0
        for info in sorted(infos, key=lambda info: info.offset):
            if info.offset % alignment:
                raise self.invalid(f"has a tensor {info.name!r} at the unaligned offset {info.offset}")
            if info.offset < end:
                raise self.invalid(f"has a tensor {info.name!r} that overlaps another")
            end = info.offset + info.size
            if data_offset + end > self.size:
                missing = data_offset + end - self.size
                raise self.invalid(f"ends {missing} bytes before its tensor {info.name!r} does")
        if self.size > _align(data_offset + end, alignment):
            raise self.invalid(f"has {self.size - data_offset - end} bytes after its last tensor")

    def check_count(self, count: int, limit: int, width: int, what: str) -> None:
        if count > limit or count * width > self.size - self.position:
            raise self.invalid(f"claims {count} {what}, more than it can hold")

    def read_string(self, limit: int, what: str) -> str:
        self.strings += 1
        if self.strings > MAX_STRINGS:
            raise self.invalid(f"has more than {MAX_STRINGS} strings in its header")
        length = self.read_uint64()
        if length > limit or length > self.size - self.position:
            raise self.invalid(f"claims {length} bytes for {what}")
        try:
            return self.read(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.invalid(f"has bytes that are not UTF-8 in {what}") from error

    def skip_strings(self, count: int, what: str) -> None:
        """With the checks of ``read_string`` in a quarter of its time: most of a header are tokens and merges."""
        self.strings += count
        if self.strings > MAX_STRINGS:
            raise self.invalid(f"has more than {MAX_STRINGS} strings in its header")
        read, length_of, position = self.file.read, _LENGTH.unpack, self.position
        try:
            for _ in range(count):
                (length,) = length_of(read(8))
                position += 8 + length
                if length > MAX_STRING_LENGTH or position > self.size:
                    raise self.invalid(f"claims {length} bytes for {what}")
                if position > MAX_HEADER:
                    break
                if len(content := read(length)) != length:
                    raise self.invalid("is cut off inside its header")
                content.decode("utf-8")
        except struct.error as error:
            raise self.invalid("is cut off inside its header") from error
        except UnicodeDecodeError as error:
            raise self.invalid(f"has bytes that are not UTF-8 in {what}") from error
        self.advance(position - self.position)

    def read_uint32(self) -> int:
        return int.from_bytes(self.read(4), "little")

    def read_uint64(self) -> int:
        return int.from_bytes(self.read(8), "little")

    def read(self, length: int) -> bytes:
        self.advance(length)
        content = self.file.read(length)
        if len(content) != length:
            raise self.invalid("is cut off inside its header")
        return content

    def skip(self, length: int) -> None:
        self.advance(length)
        while length:
            passed = len(self.file.read(min(length, 1 << 20)))
            if not passed:
                raise self.invalid("is cut off inside its header")
            length -= passed

    def advance(self, length: int) -> None:
        self.position += length
        if self.position > MAX_HEADER:
            raise self.invalid(f"has a header of more than {MAX_HEADER >> 20} MiB")

    def invalid(self, reason: str) -> InvalidGGUFError:
        return InvalidGGUFError(f"{self.name} {reason}")


def _align(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment
