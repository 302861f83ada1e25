"""Importance matrices as files: what is read, what is refused, and what is handed on."""

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpack.errors import InvalidContentError, InvalidGGUFError, NotFoundError
from modelpack.gguf_header import read_header
from modelpack.imatrix import Entry, ImportanceMatrix, as_metadata

DATA = Path(__file__).parent.parent / "data" / "quantize"


def legacy(*entries: tuple[bytes, int, list[float]], tail: bytes = b"") -> bytes:
    content = struct.pack("<i", len(entries))
    for name, calls, values in entries:
        content += struct.pack("<i", len(name)) + name + struct.pack("<ii", calls, len(values))
        content += struct.pack(f"<{len(values)}f", *values)
    return content + tail


def test_both_formats_of_one_matrix_say_the_same() -> None:
    modern, old = ImportanceMatrix.load(DATA / "imatrix.gguf"), ImportanceMatrix.load(DATA / "imatrix.dat")

    assert modern.entries.keys() == old.entries.keys()
    assert modern.chunk_count == old.chunk_count == 36
    assert modern.chunk_size == 256
    assert modern.datasets == old.datasets == ("calibration.txt",)
    for name, entry in modern.entries.items():
        np.testing.assert_allclose(entry.importance, old.entries[name].importance, rtol=1e-6)


@pytest.mark.parametrize("name", ["imatrix.gguf", "imatrix-experts.gguf"])
def test_a_matrix_is_written_in_the_bytes_of_llama_imatrix(tmp_path: Path, name: str) -> None:
    ImportanceMatrix.load(DATA / name).save(tmp_path / "again.gguf")

    assert (tmp_path / "again.gguf").read_bytes() == (DATA / name).read_bytes()


def test_an_expert_that_no_token_reached_counts_as_much_as_any() -> None:
    entry = Entry(np.array([[4, 8], [0, 0]], np.float32), np.array([2, 0], np.float32))

    assert entry.importance.tolist() == [2, 4, 1, 1]


def test_the_keys_are_those_of_llama_quantize() -> None:
    matrix = ImportanceMatrix({"a": Entry(np.ones((1, 2), np.float32), np.ones(1, np.float32))}, 7, ("text.txt",))

    assert as_metadata(matrix, "m.gguf") == {
        "quantize.imatrix.file": "m.gguf",
        "quantize.imatrix.dataset": "text.txt",
        "quantize.imatrix.entries_count": 1,
        "quantize.imatrix.chunks_count": 7,
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cut off"),
        (struct.pack("<i", -1), "claims -1 entries"),
        (struct.pack("<i", 1 << 30), "claims 1073741824 entries"),
        (struct.pack("<ii", 1, 1 << 30), "claims 1073741824 bytes for a name"),
        (struct.pack("<ii", 1, 1) + b"a" + struct.pack("<ii", 1, 1 << 30), "claims 1073741824 values"),
        (legacy((b"a", 1, [])), "says nothing"),
        (legacy((b"a", 1, [1.0]), (b"a", 1, [1.0])), "repeats 'a'"),
        (legacy((b"\xff", 1, [1.0])), "not UTF-8"),
        (legacy((b"a", 1, [float("nan")])), "no sums of squares"),
        (legacy((b"a", 1, [-1.0])), "no sums of squares"),
        (legacy(), "without entries"),
        (legacy((b"a", 1, [1.0]), tail=struct.pack("<ii", 3, 99)), "cut off"),
    ],
)
def test_a_hostile_legacy_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "m.dat").write_bytes(content)

    with pytest.raises(InvalidContentError, match=message):
        ImportanceMatrix.load(tmp_path / "m.dat")


def test_a_hostile_gguf_file_is_refused(tmp_path: Path) -> None:
    good = (DATA / "imatrix.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(good[:-100])
    with pytest.raises(InvalidGGUFError):
        ImportanceMatrix.load(tmp_path / "cut.gguf")

    (tmp_path / "odd.gguf").write_bytes(good.replace(b".counts", b".cuonts", 1))
    with pytest.raises(InvalidContentError, match="lacks sums or counts"):
        ImportanceMatrix.load(tmp_path / "odd.gguf")

    data = read_header(DATA / "imatrix.gguf").data_offset
    (tmp_path / "nan.gguf").write_bytes(good[:data] + struct.pack("<f", float("inf")) + good[data + 4 :])
    with pytest.raises(InvalidContentError, match="no sums of squares"):
        ImportanceMatrix.load(tmp_path / "nan.gguf")

    with pytest.raises(NotFoundError):
        ImportanceMatrix.load(tmp_path / "none.gguf")


@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_be_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.dat"
    path.write_bytes(content)
    try:
        matrix = ImportanceMatrix.load(path)
    except InvalidContentError:
        return
    assert matrix.entries
