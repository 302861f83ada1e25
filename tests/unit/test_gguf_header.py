"""The bounded GGUF reader: good files are described, hostile ones refused, whatever their bytes."""

import os
import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelpack.errors import InvalidGGUFError, InvalidInputError, MissingFileError
from modelpack.gguf_header import MAX_HEADER, MAX_STRINGS, ArraySummary, read_header

HOSTILE = Path(__file__).parent.parent / "data" / "gguf-hostile"

F32, BF16, Q4_K = 0, 30, 12
UINT32, STRING, ARRAY, BOOL = 4, 8, 9, 7


def text(value: str | bytes) -> bytes:
    content = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(content)) + content


def key(name: str | bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str | bytes, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def gguf(
    keys: list[bytes], tensors: list[bytes], data: int = 0, *, version: int = 3, counts: tuple[int, int] | None = None
) -> bytes:
    tensor_count, key_count = counts or (len(tensors), len(keys))
    header = b"GGUF" + struct.pack("<IQQ", version, tensor_count, key_count) + b"".join(keys + tensors)
    return header + bytes(-len(header) % 32) + bytes(data)


ARCHITECTURE = key("general.architecture", STRING, text("llama"))
VECTOR = tensor("t", (8,), F32, 0)
# All but the last of 80.
STRINGS = struct.pack("<IQ", STRING, 80) + text("a") * 79


@pytest.fixture
def write(tmp_path: Path):
    def write_file(content: bytes) -> Path:
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        return path

    return write_file


def test_a_good_file_is_described(write) -> None:
    keys = [
        ARCHITECTURE,
        key("general.name", STRING, text("Tiny")),
        key("general.file_type", UINT32, struct.pack("<I", 15)),
        key("llama.context_length", UINT32, struct.pack("<I", 4096)),
        key("tokenizer.chat_template", STRING, text("{{ messages }}")),
        key("tokenizer.ggml.add_bos_token", BOOL, b"\x01"),
        key("tokenizer.ggml.tokens", ARRAY, struct.pack("<IQ", STRING, 100) + text("a") * 100),
        key("llama.sections", ARRAY, struct.pack("<IQ4I", UINT32, 4, 1, 2, 3, 4)),
    ]
    tensors = [tensor("a.weight", (256, 2), Q4_K, 0), tensor("b.weight", (8,), F32, 288)]

    header = read_header(write(gguf(keys, tensors, 288 + 32)))

    assert (header.version, header.architecture, header.name, header.file_type) == (3, "llama", "Tiny", "Q4_K_M")
    assert (header.parameters, header.context_length, header.chat_template) == (520, 4096, "{{ messages }}")
    assert header.metadata["tokenizer.ggml.add_bos_token"] is True
    assert header.metadata["tokenizer.ggml.tokens"] == ArraySummary("string", 100, ("a",) * 64)
    assert header.metadata["llama.sections"] == ArraySummary("uint32", 4, (1, 2, 3, 4))
    assert [(info.name, info.shape, info.type, info.size) for info in header.tensors] == [
        ("a.weight", (256, 2), "Q4_K", 288),
        ("b.weight", (8,), "F32", 32),
    ]
    assert header.data_offset + 288 + 32 == header.file_size


def test_a_file_that_says_little_answers_none(write) -> None:
    header = read_header(write(gguf([], [])))

    assert (header.architecture, header.name, header.file_type, header.context_length) == (None,) * 4
    assert (header.chat_template, header.parameters) == (None, 0)


def test_the_weights_of_a_whole_file_need_no_padding_at_its_end(write) -> None:
    content = gguf([ARCHITECTURE], [tensor("t", (3,), F32, 0)], 12)

    assert read_header(write(content)).tensors[0].size == 12


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("align0", "alignment 0"),
        ("arr_len_240_str", "claims 1099511627776 strings"),
        ("bad_ttype", "unknown type 9999"),
        ("bigendian", "big-endian"),
        ("dims_overflow", "impossible shape"),
        ("dupkeys", "repeats the metadata key 'general.architecture'"),
        ("empty", "too few"),
        ("offset_oob", "ends 1099511627776 bytes before"),
        ("offset_unaligned", "unaligned offset 1"),
        ("ok", None),
        ("str_len_260", "claims 1152921504606846976 bytes"),
        ("tensor_count_263", "claims 9223372036854775807 tensors"),
        ("truncated", "claims 2 metadata keys"),
        ("version_99", "version 99"),
    ],
)
def test_each_hostile_file_gets_the_expected_answer(name: str, reason: str | None) -> None:
    path = HOSTILE / f"{name}.gguf"
    if reason is None:
        assert read_header(path).architecture == "llama"
        return
    with pytest.raises(InvalidGGUFError, match=f"{name}.gguf .*{reason}"):
        read_header(path)


def test_every_hostile_file_was_tried() -> None:
    tried = test_each_hostile_file_gets_the_expected_answer.pytestmark[0].args[1]
    assert {path.stem for path in HOSTILE.glob("*.gguf")} == {name for name, _ in tried}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"GGML" + bytes(60), "not a GGUF file"),
        (gguf([ARCHITECTURE], [VECTOR], 32, version=1), "version 1"),
        (gguf([key("", STRING, text("x"))], [VECTOR], 32), "empty metadata key"),
        (gguf([key("k" * 70_000, STRING, text("x"))], [VECTOR], 32), "claims 70000 bytes for a metadata key"),
        (gguf([key(b"\xff", STRING, text("x"))], [VECTOR], 32), "not UTF-8 in a metadata key"),
        (gguf([key("k", STRING, text(b"\xc3("))], [VECTOR], 32), "not UTF-8 in the value of 'k'"),
        # Beyond what is kept of an array.
        (gguf([key("k", ARRAY, STRINGS + text(b"\xc3("))], [VECTOR], 32), "not UTF-8 in the value of 'k'"),
        (gguf([key("k", ARRAY, STRINGS + struct.pack("<Q", 99))], []), "claims 99 bytes for the value of 'k'"),
        (gguf([key("k", ARRAY, STRINGS + b"\1")], [])[:-7], "cut off inside its header"),
        (gguf([key("k", 13, bytes(8))], [VECTOR], 32), "unknown value type 13"),
        (gguf([key("k", BOOL, b"\x02")], [VECTOR], 32), "the value 2 for the boolean"),
        (gguf([key("k", ARRAY, struct.pack("<IQ", ARRAY, 1) + bytes(32))], [VECTOR], 32), "array of arrays"),
        (gguf([key("k", ARRAY, struct.pack("<IQ", UINT32, 1 << 61))], [VECTOR], 32), "claims 2305843009213693952"),
        (gguf([key("k", ARRAY, struct.pack("<IQ", 99, 1))], [VECTOR], 32), "unknown value type 99"),
        (gguf([key("general.alignment", UINT32, struct.pack("<I", 48))], [VECTOR], 32), "alignment 48"),
        (gguf([key("general.alignment", UINT32, struct.pack("<I", 1 << 17))], [VECTOR], 32), "alignment 131072"),
        (gguf([key("general.alignment", STRING, text("32"))], [VECTOR], 32), "alignment '32'"),
        (gguf([], [tensor("t", (), F32, 0)], 32), "0 dimensions"),
        (gguf([], [tensor("t", (1,) * 5, F32, 0)], 32), "5 dimensions"),
        (gguf([], [tensor("t", (8, 0), F32, 0)], 32), "impossible shape"),
        (gguf([], [tensor("t", (1 << 32, 1 << 32), F32, 0)], 32), "impossible shape"),
        (gguf([], [tensor("t", (100,), Q4_K, 0)], 144), "do not fill blocks"),
        (gguf([], [tensor("t" * 64, (8,), F32, 0)], 32), "claims 64 bytes for a tensor name"),
        (gguf([], [VECTOR, VECTOR], 64), "repeats a tensor name"),
        (gguf([], [tensor("a", (16,), F32, 0), tensor("b", (8,), F32, 32)], 64), "'b' that overlaps another"),
        (gguf([], [VECTOR], 31), "ends 1 bytes before its tensor 't'"),
        (gguf([], [VECTOR], 65), "33 bytes after its last tensor"),
        (gguf([], [VECTOR], 32, counts=(1 << 20, 0)), "claims 1048576 tensors"),
        (gguf([ARCHITECTURE], [], 0, counts=(0, 9)), "claims 9 metadata keys"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_broken_header_is_refused_with_its_reason(write, content: bytes, reason: str) -> None:
    with pytest.raises(InvalidGGUFError, match=reason):
        read_header(write(content))


def test_what_is_no_file_is_told_from_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        read_header(tmp_path / "nothing.gguf")
    with pytest.raises(InvalidInputError, match="it is a folder, not a file"):
        read_header(tmp_path)
    os.mkfifo(tmp_path / "fifo.gguf")
    with pytest.raises(InvalidInputError, match="it is a pipe, not a file"):
        read_header(tmp_path / "fifo.gguf")


def test_a_large_vocabulary_leaves_memory_flat(write) -> None:
    tokens = b"".join(text(f"token {number}") for number in range(200_000))
    keys = [ARCHITECTURE, key("tokenizer.ggml.tokens", ARRAY, struct.pack("<IQ", STRING, 200_000) + tokens)]
    path = write(gguf(keys, [VECTOR], 32))

    tracemalloc.start()
    header = read_header(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert header.metadata["tokenizer.ggml.tokens"].length == 200_000
    assert peak < 1 << 20


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (struct.pack("<IQ", STRING, 1 << 25), f"more than {MAX_STRINGS} strings"),
        (struct.pack("<IQ", UINT32, 1 << 26), f"header of more than {MAX_HEADER >> 20} MiB"),
    ],
)
def test_an_endless_header_is_given_up(tmp_path: Path, array: bytes, reason: str) -> None:
    # A sparse file of zeros, which costs its author nothing.
    path = tmp_path / "endless.gguf"
    start = gguf([], [], counts=(0, 1))[:24] + key("k", ARRAY, array)
    with path.open("wb") as file:
        file.write(start)
        file.truncate(len(start) + (1 << 28))

    with pytest.raises(InvalidGGUFError, match=reason):
        read_header(path)


GOOD = gguf(
    [
        ARCHITECTURE,
        key("general.alignment", UINT32, struct.pack("<I", 32)),
        key("tokenizer.ggml.tokens", ARRAY, struct.pack("<IQ", STRING, 3) + text("a") * 3),
    ],
    [tensor("a", (256,), Q4_K, 0), tensor("b", (4, 2), BF16, 160)],
    192,
)


@settings(max_examples=300, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=6),
    length=st.integers(0, len(GOOD)),
    cut=st.booleans(),
)
def test_no_mutation_of_a_file_gets_past_the_reader_as_another_error(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], length: int, cut: bool
) -> None:
    content = bytearray(GOOD)
    for position, value in changes:
        content[position] = value
    path = tmp_path_factory.getbasetemp() / "mutated.gguf"
    path.write_bytes(content[:length] if cut else content)

    try:
        header = read_header(path)
    except InvalidGGUFError:
        return
    ends = [header.data_offset + info.offset + info.size for info in header.tensors]
    assert max(ends, default=0) <= header.file_size
