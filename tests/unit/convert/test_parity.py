"""The gate after a conversion: llama.cpp must tokenize as the checkpoint does."""

import json
import shutil
import struct
import unicodedata
from pathlib import Path

import pytest
from fakes.checkpoints import write_checkpoint
from fakes.tokenizers import write_vocabulary
from gguf import GGUFWriter, TokenType

from modelpack.convert import Checkpoint, parity, plan_conversion, run_conversion
from modelpack.convert.model_card import parse_model_card
from modelpack.convert.special_tokens import read_special_tokens
from modelpack.convert.wordpiece import wordpiece as vocabulary_of_wordpiece
from modelpack.engine.tokenize import tokenize
from modelpack.errors import ConversionError, InsufficientMemoryError, WorkerError

TINY = Path(__file__).parent.parent.parent / "data" / "tiny-llama"


def converted(directory: Path, path: Path) -> Path:
    run_conversion(plan_conversion(Checkpoint.open(directory)), path)
    return path


def test_there_are_about_three_hundred_texts_in_many_scripts() -> None:
    texts = [text for text, _ in parity.expected(Checkpoint.open(TINY))]

    assert len(texts) == len(set(texts)) >= 300
    for first in ("A", "\u0410", "\u05d0", "\u0627", "\u0905", "\u0e01", "\u1200", "\u4e00", "\uac00"):
        assert any(ord(first) <= ord(character) < ord(first) + 80 for text in texts for character in text), first


@pytest.mark.llama
@pytest.mark.parametrize("name", ["llama-bpe", "gemma", "bert", "roberta", "xlm-roberta", "t5-encoder"])
def test_every_kind_of_tokenizer_is_the_same_in_llama_cpp(tmp_path: Path, name: str) -> None:
    directory = write_checkpoint(name, tmp_path / "checkpoint")
    wanted = parity.expected(Checkpoint.open(directory))
    actual = tokenize(converted(directory, tmp_path / "out.gguf"), [text for text, _ in wanted])

    parity.check(wanted, actual)
    assert len(wanted) >= 300
    assert len({token for ids in actual for token in ids}) > 50


@pytest.mark.llama
def test_a_tokenizer_that_ships_as_json_alone_is_the_same_in_llama_cpp(tmp_path: Path) -> None:
    directory = Path(shutil.copytree(TINY, tmp_path / "tiny"))
    (directory / "tokenizer.model").unlink()
    wanted = parity.expected(Checkpoint.open(directory))

    parity.check(wanted, tokenize(converted(directory, tmp_path / "out.gguf"), [text for text, _ in wanted]))


@pytest.mark.llama
def test_a_wrong_vocabulary_is_an_error_that_shows_the_first_few(tmp_path: Path) -> None:
    wanted = parity.expected(Checkpoint.open(TINY))
    path = converted(TINY, tmp_path / "out.gguf")
    key = b"tokenizer.ggml.add_space_prefix" + struct.pack("<I", 7)
    content = path.read_bytes()
    assert key + b"\0" in content
    path.write_bytes(content.replace(key + b"\0", key + b"\1"))

    with pytest.raises(ConversionError, match=r"\d+ of 3\d\d texts .*'Hello world' becomes \["):
        parity.check(wanted, tokenize(path, [text for text, _ in wanted]))


@pytest.mark.llama
def test_a_file_that_llama_cpp_does_not_load_is_refused_with_the_reason(tmp_path: Path) -> None:
    path = converted(TINY, tmp_path / "bad.gguf")
    path.write_bytes(
        path.read_bytes().replace(
            b"ggml.model" + struct.pack("<IQ", 8, 5) + b"llama", b"ggml.model" + struct.pack("<IQ", 8, 5) + b"odder"
        )
    )

    with pytest.raises(WorkerError, match=r"refused to load bad\.gguf: .*unknown tokenizer: 'odder'"):
        tokenize(path, ["a"])


@pytest.mark.llama
def test_a_vocabulary_that_llama_cpp_has_no_memory_for_is_not_enough_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *map(str, range(1 << 20))])
    writer.add_token_types([TokenType.UNKNOWN, *[TokenType.BYTE] * 256, *[TokenType.NORMAL] * (1 << 20)])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()

    assert tokenize(path, ["a"], memory_limit=1 << 30)
    with pytest.raises(
        InsufficientMemoryError, match=r"more than 0\.2 GiB of memory for the vocabulary of large\.gguf"
    ):
        tokenize(path, ["a"], memory_limit=200 << 20)


def test_the_shown_ids_are_both_sides_of_the_difference() -> None:
    with pytest.raises(ConversionError, match=r"1 of 2 texts .*'b' becomes \[3\], not \[2\]"):
        parity.check([("a", [1]), ("b", [2])], [[1], [3]])


def nfd(text: str) -> str:
    return unicodedata.normalize("NFD", text)


def wordpiece(directory: Path, **normalizer: bool) -> tuple[Checkpoint, list[parity.Trial], list[list[int]]]:
    """BERT's kind with every character of the texts in its vocabulary, composed and taken apart; what is tried with it
    and what llama.cpp makes of that.
    """
    write_checkpoint("bert", directory / "checkpoint")
    path = directory / "checkpoint" / "tokenizer.json"
    document = json.loads(path.read_text())
    document["normalizer"] |= normalizer
    vocabulary = document["model"]["vocab"]
    characters = {character for text in parity.texts() for one in (text, text.lower()) for character in one + nfd(one)}
    for text in (text for character in sorted(characters) for text in (character, "##" + character)):
        vocabulary.setdefault(text, len(vocabulary))
    path.write_text(json.dumps(document))
    checkpoint = Checkpoint(directory / "checkpoint", {}, {}, parse_model_card(""))
    read = vocabulary_of_wordpiece(checkpoint, None)
    assert read is not None
    special = read_special_tokens(checkpoint, vocabulary_size=len(read.tokens))
    tried = parity.trials(checkpoint, pre=read.pre)
    written = write_vocabulary(read, directory / "out.gguf", special=special)
    return checkpoint, tried, tokenize(written, [one.text for one in tried])


@pytest.mark.llama
def test_a_cased_wordpiece_vocabulary_is_the_same_in_llama_cpp_for_every_text(tmp_path: Path) -> None:
    _, tried, actual = wordpiece(tmp_path, lowercase=False)

    assert {one.text for one in tried} >= set(parity.texts())
    assert parity.compare(tried, actual) == []


@pytest.mark.llama
def test_the_letters_that_llama_cpps_wordpiece_drops_with_the_accents_are_named(tmp_path: Path) -> None:
    checkpoint, tried, actual = wordpiece(tmp_path, lowercase=True)

    (limit,) = parity.compare(tried, actual)
    assert limit.startswith(
        "llama.cpp drops vowel signs, and of a Korean syllable all but the first letter (15 texts: "
    )
    assert len(parity.expected(checkpoint)) == len(tried) - 15


@pytest.mark.llama
def test_a_dot_that_llama_cpps_wordpiece_drops_from_a_letter_is_named(tmp_path: Path) -> None:
    _, tried, actual = wordpiece(tmp_path, lowercase=True, strip_accents=False)

    (limit,) = parity.compare(tried, actual)
    assert limit.startswith("llama.cpp makes a plain i of \u0130")
