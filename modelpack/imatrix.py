"""Importance matrices: how much each column of each weight matters, in the two formats of llama.cpp's llama-imatrix.

A reader that believes nothing before it is checked: these files come from strangers and their numbers go into C++ code.
The formats are those of common/imatrix-loader.cpp: GGUF with ``NAME.in_sum2`` and ``NAME.counts``, and the legacy
``.dat`` without a header.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from modelpack.errors import InvalidContentError
from modelpack.gguf_header import MAX_TENSORS, GGUFHeader, read_header
from modelpack.regular_file import open_regular

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

MAX_NAME_LENGTH = 128
MAX_DATASET_LENGTH = 4096

_SUMS = ".in_sum2"
_COUNTS = ".counts"


@dataclass(frozen=True, slots=True)
class Entry:
    """One weight: the sums of squared activations per column and, per expert matrix, over how many tokens they are."""

    sums: "Floats"
    """Shape (matrices, columns)."""
    counts: "Floats"
    """Shape (matrices,)."""

    @property
    def importance(self) -> "Floats":
        """Mean squared activations, matrices after one another; 1 for an expert that no token reached.

        That is what llama-quantize hands to llama.cpp, computed in single precision like there.
        """
        import numpy as np

        counts = self.counts[:, None]
        means = np.divide(self.sums, counts, out=np.ones_like(self.sums), where=counts > 0)
        return np.ascontiguousarray(means.reshape(-1), dtype=np.float32)


@dataclass(frozen=True, slots=True)
class ImportanceMatrix:
    """A whole file. ``datasets`` are names of what it was computed on, untrusted text."""

    entries: Mapping[str, Entry]
    chunk_count: int
    datasets: tuple[str, ...] = ()

    @classmethod
    def load(cls, path: Path) -> "ImportanceMatrix":
        """Raises MissingFileError, InvalidInputError for what is no file, InvalidContentError naming what is wrong."""
        with open_regular(path) as file:
            is_gguf = file.read(4) == b"GGUF"
        matrix = _load_gguf(path) if is_gguf else _Legacy(path).load()
        if not matrix.entries:
            raise InvalidContentError(f"{path.name} is an importance matrix without entries")
        return matrix

    def save(self, path: Path) -> None:
        """Write as GGUF, as llama-imatrix does: the same matrix gives the same bytes."""
        import gguf
        import numpy as np

        writer = gguf.GGUFWriter(path, "")
        writer.kv_data[0].clear()  # an importance matrix has no architecture
        writer.add_string("general.type", "imatrix")
        writer.add_array("imatrix.datasets", list(self.datasets))
        writer.add_uint32("imatrix.chunk_count", self.chunk_count)
        writer.add_uint32("imatrix.chunk_size", self.chunk_size)
        for name in sorted(self.entries):
            entry = self.entries[name]
            counts = entry.counts[:, None]
            for suffix, rows in ((_SUMS, entry.sums), (_COUNTS, counts)):
                # ggml writes no dimension of one at the end of a shape.
                values = rows[0] if len(rows) == 1 else rows
                writer.add_tensor(name + suffix, np.ascontiguousarray(values, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    @property
    def chunk_size(self) -> int:
        """Tokens in a chunk, as far as the counts tell; 0 where they do not."""
        most = max(int(entry.counts.max()) for entry in self.entries.values())
        return most // self.chunk_count if self.chunk_count else 0


def _load_gguf(path: Path) -> ImportanceMatrix:
    import numpy as np

    header = read_header(path)
    tensors = {tensor.name: tensor for tensor in header.tensors}
    names = {name.removesuffix(suffix) for name in tensors for suffix in (_SUMS, _COUNTS) if name.endswith(suffix)}
    entries: dict[str, Entry] = {}
    for name in sorted(names):
        pair = [tensors[name + suffix] for suffix in (_SUMS, _COUNTS) if name + suffix in tensors]
        if [tensor.type for tensor in pair] != ["F32", "F32"]:
            raise InvalidContentError(f"{path.name} lacks sums or counts in F32 for {name!r}")
        sums, counts = (
            np.fromfile(path, "<f4", tensor.size // 4, offset=header.data_offset + tensor.offset) for tensor in pair
        )
        entries[name] = _entry(path, name, sums, counts)
    return ImportanceMatrix(entries, _count(header, path), _datasets(header))


def _count(header: GGUFHeader, path: Path) -> int:
    value = header.metadata.get("imatrix.chunk_count", 0)
    if not isinstance(value, int) or not 0 <= value < 1 << 31:
        raise InvalidContentError(f"{path.name} has an impossible imatrix.chunk_count")
    return value


def _datasets(header: GGUFHeader) -> tuple[str, ...]:
    value = header.metadata.get("imatrix.datasets")
    head = getattr(value, "head", ())
    return tuple(text[:MAX_DATASET_LENGTH] for text in head if isinstance(text, str))


def _entry(path: Path, name: str, sums: "Floats", counts: "Floats") -> Entry:
    import numpy as np

    if not 0 < len(name) <= MAX_NAME_LENGTH or len(sums) % len(counts):
        raise InvalidContentError(f"{path.name} has an entry {name[:MAX_NAME_LENGTH]!r} of {len(sums)} impossible sums")
    if not np.isfinite(sums).all() or not np.isfinite(counts).all() or (sums < 0).any() or (counts < 0).any():
        raise InvalidContentError(f"{path.name} has numbers in {name!r} that no sums of squares are")
    return Entry(sums.reshape(len(counts), -1), np.rint(counts))


class _Legacy:
    """The format before GGUF: a count of entries, then each with lengths that nothing vouches for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.left = path.stat().st_size

    def load(self) -> ImportanceMatrix:
        import numpy as np

        entries: dict[str, Entry] = {}
        with self.path.open("rb") as file:
            for _ in range(self.number(file, MAX_TENSORS, "entries")):
                name = self.text(file, MAX_NAME_LENGTH, "a name")
                calls = self.number(file, 1 << 31, "calls")
                count = self.number(file, self.left // 4, "values")
                values = np.frombuffer(self.read(file, 4 * count), "<f4")
                if name in entries or not count:
                    raise self.invalid(f"repeats {name!r} or says nothing of it")
                # The sums are means times the calls; without calls they stand for themselves.
                entries[name] = _entry(self.path, name, values, np.array([max(calls, 1)], np.float32))
            if not self.left:
                return ImportanceMatrix(entries, 0)
            chunks = self.number(file, 1 << 31, "chunks")
            dataset = self.text(file, MAX_DATASET_LENGTH, "a dataset's name") if self.left else ""
        return ImportanceMatrix(entries, chunks, (dataset,) if dataset else ())

    def number(self, file: BinaryIO, limit: int, what: str) -> int:
        (value,) = struct.unpack("<i", self.read(file, 4))
        if not 0 <= value <= limit:
            raise self.invalid(f"claims {value} {what}")
        return int(value)

    def text(self, file: BinaryIO, limit: int, what: str) -> str:
        try:
            return self.read(file, self.number(file, limit, f"bytes for {what}")).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.invalid(f"has bytes that are not UTF-8 in {what}") from error

    def read(self, file: BinaryIO, length: int) -> bytes:
        self.left -= length
        content = file.read(length) if self.left >= 0 else b""
        if len(content) != length:
            raise self.invalid("is cut off")
        return content

    def invalid(self, reason: str) -> InvalidContentError:
        return InvalidContentError(f"{self.path.name} is not an importance matrix: it {reason}")


def as_metadata(matrix: ImportanceMatrix, name: str) -> dict[str, Any]:
    """The keys that llama-quantize writes about the matrix it used, texts cut to the 127 bytes that it has for them."""
    metadata: dict[str, Any] = {"quantize.imatrix.file": name}
    if matrix.datasets:
        metadata["quantize.imatrix.dataset"] = matrix.datasets[0]
    metadata["quantize.imatrix.entries_count"] = len(matrix.entries)
    if matrix.chunk_count:
        metadata["quantize.imatrix.chunks_count"] = matrix.chunk_count
    return metadata
