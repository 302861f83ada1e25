"""Tokenizers as people have them, and as attackers would: the same in llama.cpp, or refused with the reason."""

import base64
import contextlib
import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fakes.checkpoints import write_checkpoint
from fakes.tokenizers import byte_level, sequence, split, trained, write_vocabulary

from modelpack.convert import Checkpoint, parity, plan_conversion
from modelpack.convert.model_card import parse_model_card
from modelpack.convert.special_tokens import read_special_tokens
from modelpack.convert.tokenizer import byte_level_bpe, sentencepiece, sentencepiece_json
from modelpack.convert.unigram import unigram
from modelpack.convert.vocabulary import VocabularyReader
from modelpack.convert.wordpiece import wordpiece
from modelpack.engine.tokenize import tokenize
from modelpack.errors import ConversionError, InvalidCheckpointError, ModelpackError, UnsupportedError
from modelpack.oci import strict_json

TINY = Path(__file__).parent.parent.parent / "data" / "tiny-llama"
PREPEND = {"type": "Prepend", "prepend": "\u2581"}
ONE, TWO = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}

Json = dict[str, Any]


@pytest.fixture(scope="module")
def gpt2_like() -> Json:
    return trained(byte_level(use_regex=True))


def llama_like(**changes: object) -> Json:
    document: Json = json.loads((TINY / "tokenizer.json").read_text())
    return {**document, "normalizer": {"type": "Sequence", "normalizers": [PREPEND, REPLACE]}, **changes}


def metaspace(**settings: object) -> Json:
    return {"type": "Metaspace", "replacement": "\u2581", **settings}


def added(token: int, content: str, **settings: bool) -> Json:
    usual = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    return {"id": token, "content": content, **usual, **settings}


def opened(directory: Path, document: Json, **config: object) -> Checkpoint:
    (directory / "tokenizer.json").write_text(json.dumps(document))
    return Checkpoint(directory, config, {}, parse_model_card(""))


def check_parity(checkpoint: Checkpoint, read: VocabularyReader, size: int | None = None) -> list[bytes]:
    """The gate. Gives the tokens of the vocabulary that passed it."""
    vocabulary = read(checkpoint, size)
    assert vocabulary is not None
    wanted = parity.expected(checkpoint)
    assert len(wanted) > 300
    special = read_special_tokens(checkpoint, vocabulary_size=len(vocabulary.tokens))
    path = write_vocabulary(vocabulary, checkpoint.directory / "out.gguf", special=special)
    parity.check(wanted, tokenize(path, [text for text, _ in wanted]))
    return vocabulary.tokens


@pytest.mark.llama
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"normalizer": REPLACE, "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "invert": False}},
        {"normalizer": None, "pre_tokenizer": metaspace(prepend_scheme="first", split=False)},
        {"normalizer": None, "pre_tokenizer": metaspace(prepend_scheme="always", split=True)},
        {"normalizer": None, "pre_tokenizer": metaspace(prepend_scheme="never", split=False)},
        {"normalizer": None, "pre_tokenizer": metaspace(add_prefix_space=True)},
        {"truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}},
    ],
    ids=["llama-2", "gemma", "mistral", "always", "never", "older", "truncating"],
)
def test_sentencepiece_as_tokenizer_json_alone_in_every_familys_form(tmp_path: Path, changes: Json) -> None:
    if "Split" in str(changes):
        changes = {**changes, "pre_tokenizer": {**changes["pre_tokenizer"], "behavior": "MergedWithPrevious"}}

    check_parity(opened(tmp_path, llama_like(**changes)), sentencepiece_json)


@pytest.mark.llama
def test_merges_may_be_texts_and_ignored(tmp_path: Path) -> None:
    document = llama_like()
    document["model"]["merges"] = [
        merge if isinstance(merge, str) else " ".join(merge) for merge in document["model"]["merges"]
    ]
    document["model"]["ignore_merges"] = True

    check_parity(opened(tmp_path, document), sentencepiece_json)


def test_dropout_is_for_training_so_every_reading_gives_the_same_ids(tmp_path: Path, gpt2_like: Json) -> None:
    document = {**gpt2_like, "model": {**gpt2_like["model"], "dropout": 0.5}}

    assert parity.expected(opened(tmp_path, document)) == parity.expected(opened(tmp_path, gpt2_like))


@pytest.mark.llama
def test_an_added_token_whose_id_leaves_a_hole_has_the_id_that_it_was_trained_with(
    tmp_path: Path, gpt2_like: Json
) -> None:
    size = len(gpt2_like["model"]["vocab"])
    document = {**gpt2_like, "added_tokens": [*gpt2_like["added_tokens"], added(size + 5, "<tool>")]}
    checkpoint = opened(tmp_path, document)

    assert check_parity(checkpoint, byte_level_bpe).index(b"<tool>") == size
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<tool>"}')
    assert read_special_tokens(checkpoint, vocabulary_size=size + 1).ids == {"eos": size}


@pytest.mark.llama
def test_an_added_token_that_the_vocabulary_has_already_is_that_token(tmp_path: Path, gpt2_like: Json) -> None:
    known = gpt2_like["model"]["vocab"]
    document = {**gpt2_like, "added_tokens": [*gpt2_like["added_tokens"], added(len(known), "the")]}

    assert len(check_parity(opened(tmp_path, document), byte_level_bpe)) == len(known)


@pytest.mark.llama
@pytest.mark.parametrize("entry", [added(512, "<tool>", normalized=True), added(512, "cat", single_word=True)])
def test_an_added_token_that_llama_cpp_would_find_elsewhere_is_an_error(tmp_path: Path, entry: Json) -> None:
    document = llama_like()
    document["added_tokens"].append(entry)

    with pytest.raises(ConversionError, match=f"'a{entry['content']}' becomes"):
        check_parity(opened(tmp_path, document), sentencepiece_json)


@pytest.mark.llama
def test_an_added_token_that_the_model_has_no_row_for_is_left_out(tmp_path: Path) -> None:
    document = llama_like()
    document["added_tokens"].append(added(512, "[PAD]", special=True))

    tokens = check_parity(opened(tmp_path, document, vocab_size=512), sentencepiece_json, size=512)

    assert b"[PAD]" not in tokens


def test_an_added_token_without_a_row_is_not_asked_for_where_config_json_is_silent(tmp_path: Path) -> None:
    document = llama_like()
    document["added_tokens"] += [added(512, "<tool>"), added(513, "<beyond>")]

    texts = {text for text, _ in parity.expected(opened(tmp_path, document), rows=513)}

    assert "<tool>" in texts
    assert "<beyond>" not in texts


@pytest.mark.llama
def test_a_piece_that_is_called_as_our_holes_are_does_not_crash_llama_cpp(tmp_path: Path, gpt2_like: Json) -> None:
    known = gpt2_like["model"]["vocab"]
    hole = f"[PAD{len(known) + 1}]"
    document = {**gpt2_like, "added_tokens": [*gpt2_like["added_tokens"], added(len(known), hole)]}

    assert check_parity(opened(tmp_path, document), byte_level_bpe, size=len(known) + 2)[-2:] == [
        hole.encode(),
        hole.encode() + b"_",
    ]


def test_two_tokens_that_are_one_to_llama_cpp_are_refused(tmp_path: Path) -> None:
    document = llama_like()
    document["added_tokens"] += [added(512, "\u2581\u2581"), added(513, "  ")]

    with pytest.raises(InvalidCheckpointError, match=r"tokens 512 and 513 are both '  ' to llama\.cpp"):
        sentencepiece_json(opened(tmp_path, document), None)


def test_bytes_as_added_tokens_stay_apart(tmp_path: Path, gpt2_like: Json) -> None:
    size = len(gpt2_like["model"]["vocab"])
    document = copy.deepcopy(gpt2_like) | {"added_tokens": [added(size, "\u00f5"), added(size + 1, "\u00f7")]}
    del document["model"]["vocab"]["\u00f5"], document["model"]["vocab"]["\u00f7"]
    vocabulary = byte_level_bpe(opened(tmp_path, document), None)

    assert vocabulary is not None
    assert {"\u00f5".encode(), "\u00f7".encode()} <= set(vocabulary.tokens)


@pytest.mark.llama
def test_gemmas_added_lines_and_tags_are_the_same_in_llama_cpp(tmp_path: Path) -> None:
    directory = Path(shutil.copytree(TINY, tmp_path / "tiny"))
    document = llama_like(normalizer=REPLACE, pre_tokenizer=None)
    entries = [added(512, "<h1>"), added(513, "\n\n"), added(514, "<unused0>")]
    document["added_tokens"] += entries
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    listed = {str(entry["id"]): entry for entry in entries[:1]}  # not all of them: the others are tokenizer.json's
    (directory / "tokenizer_config.json").write_text(json.dumps(settings | {"added_tokens_decoder": listed}))

    tokens = check_parity(opened(directory, document), sentencepiece, size=515)

    assert tokens[512:] == [b"<h1>", b"\n\n", b"<unused0>"]


def test_a_sentencepiece_model_saved_by_transformers_5_keeps_its_added_tokens(tmp_path: Path) -> None:
    directory = Path(shutil.copytree(TINY, tmp_path / "tiny"))
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    settings.pop("added_tokens_decoder", None)
    settings |= {"backend": "tokenizers", "extra_special_tokens": ["<|tool|>"]}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    document = json.loads((directory / "tokenizer.json").read_text())
    document["added_tokens"].append(added(512, "<|tool|>", special=True))
    (directory / "tokenizer.json").write_text(json.dumps(document))

    vocabulary = sentencepiece(Checkpoint.open(directory), 514)

    assert vocabulary is not None
    assert vocabulary.tokens[512:] == [b"<|tool|>", b"[PAD513]"]


@pytest.mark.parametrize("processor", [None, {"type": "TemplateProcessing", "single": [ONE]}])
def test_no_bos_is_added_where_a_retrained_llama_3_tokenizer_adds_none(tmp_path: Path, processor: Json | None) -> None:
    directory = write_checkpoint("llama-bpe", tmp_path / "checkpoint")
    document = json.loads((directory / "tokenizer.json").read_text())
    regex = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
        r"\s+(?!\S)|\s+"
    )
    if processor is not None:
        processor = {**processor, "pair": [ONE, TWO], "special_tokens": {}}
    document |= {"pre_tokenizer": sequence(split(regex), byte_level()), "post_processor": processor}
    document["model"]["ignore_merges"] = True
    (directory / "tokenizer.json").write_text(json.dumps(document))

    metadata = plan_conversion(Checkpoint.open(directory)).metadata

    assert metadata["tokenizer.ggml.pre"] == "llama-bpe"
    assert metadata["tokenizer.ggml.add_bos_token"] is False


def test_chat_templates_may_be_named_in_an_object(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": {"default": "a", "tool_use": "b"}}')
    checkpoint = Checkpoint(tmp_path, {}, {}, parse_model_card(""))

    assert read_special_tokens(checkpoint, vocabulary_size=1).chat_template == [
        {"name": "default", "template": "a"},
        {"name": "tool_use", "template": "b"},
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tekken.json", b"{}"),
        ("tokenizer.model", b"IQ== 0\nIg== 1\n"),
        ("qwen.tiktoken", b"IQ== 0\n"),
        ("vocab.txt", b"[PAD]\n"),
    ],
)
def test_a_tokenizer_in_another_form_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    directory = Path(shutil.copytree(TINY, tmp_path / "tiny"))
    for known in directory.glob("tokenizer.*"):
        known.unlink()
    (directory / name).write_bytes(content)

    with pytest.raises(InvalidCheckpointError, match=f"it has {name}, but no tokenizer.json"):
        plan_conversion(Checkpoint.open(directory))


def test_tiktokens_file_beside_a_tokenizer_json_is_passed_over(tmp_path: Path) -> None:
    directory = Path(shutil.copytree(TINY, tmp_path / "tiny"))
    (directory / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")

    assert plan_conversion(Checkpoint.open(directory)).metadata["tokenizer.ggml.model"] == "llama"


def bert_like(pieces: list[str], **normalizer: object) -> Json:
    usual = {"clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True}
    tokens = ["[UNK]", "[CLS]", "[SEP]", *pieces]
    return {
        "version": "1.0",
        "added_tokens": [added(token, text, special=True) for token, text in enumerate(tokens[:3])],
        "normalizer": {"type": "BertNormalizer", **usual, **normalizer},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {text: token for token, text in enumerate(tokens)},
        },
    }


@pytest.mark.llama
@pytest.mark.parametrize("is_lowered", [True, False])
@pytest.mark.parametrize("strips", [None, True, False])
def test_wordpiece_lowers_letters_and_strips_accents_as_it_is_told(
    tmp_path: Path, is_lowered: bool, strips: bool | None
) -> None:
    characters = sorted({character for text in parity.texts() for character in text if not character.isspace()})
    pieces = [prefix + character for character in characters for prefix in ("", "##")]
    document = bert_like(pieces, lowercase=is_lowered, strip_accents=strips)

    check_parity(opened(tmp_path, document), wordpiece)


def test_the_unknown_token_is_the_models_own_where_the_settings_are_silent(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, bert_like(["a"]))

    assert read_special_tokens(checkpoint, vocabulary_size=4).ids == {"unk": 0}


def unigram_like(**changes: object) -> Json:
    model = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]], "byte_fallback": False}
    return {"version": "1.0", "added_tokens": [], "model": {**model, **changes}}


def test_a_unigram_model_that_falls_back_to_bytes_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="falls back to bytes"):
        unigram(opened(tmp_path, unigram_like(byte_fallback=True)), None)


def growing(content: str, times: int) -> Json:
    step = {"type": "Replace", "pattern": {"Regex": "."}, "content": content}
    return {"type": "Sequence", "normalizers": [step] * times}


def charsmap(replacement: bytes) -> Json:
    table = (4).to_bytes(4, "little") + bytes(4) + replacement + b"\0"
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(table).decode()}


@pytest.mark.parametrize(
    ("normalizer", "reason"),
    [
        (growing("x" * 1000, 4), "characters of one"),
        (growing("xx", 9), "characters of one"),
        (charsmap(b"y" * 1000), "characters of one"),
        (charsmap(b"y"), "cannot be loaded"),
        ({"type": "Sequence", "normalizers": [growing("x" * 100, 2)]}, "sequence of sequences"),
    ],
)
def test_a_normalizer_that_eats_memory_or_panics_is_refused(tmp_path: Path, normalizer: Json, reason: str) -> None:
    checkpoint = opened(tmp_path, {**unigram_like(), "normalizer": normalizer})

    with pytest.raises(InvalidCheckpointError, match=reason):
        parity.expected(checkpoint)


BETWEEN = {"type": "Replace", "pattern": {"Regex": "(?=.)"}, "content": "x"}
GROWS = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 300}


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("decoder", {"type": "Sequence", "decoders": [GROWS] * 4}),
        ("decoder", {"type": "Sequence", "decoders": [{"type": "Sequence", "decoders": [GROWS] * 2}] * 2}),
        ("decoder", {**GROWS, "decoders": [], "precompiled_charsmap": ""}),
        ("decoder", {"type": "Sequence", "decoders": [{"type": "BPEDecoder", "suffix": ""}] * 40}),
        ("normalizer", {"type": "Sequence", "normalizers": [BETWEEN] * 40}),
        ("normalizer", {"type": "Sequence", "normalizers": [{"type": "ByteLevel"}] * 40}),
        ("pre_tokenizer", sequence(*[byte_level()] * 40)),
    ],
)
def test_a_step_that_eats_memory_is_refused_wherever_it_is(
    tmp_path: Path, gpt2_like: Json, kind: str, value: Json
) -> None:
    document = {**gpt2_like, kind: value}
    document["added_tokens"] = [*document["added_tokens"], added(len(document["model"]["vocab"]), "aaaa")]

    with pytest.raises(InvalidCheckpointError, match=f"{kind} may make \\d+ characters of one"):
        byte_level_bpe(opened(tmp_path, document), None)


@pytest.mark.parametrize("name", ["llama-bpe", "bert", "roberta", "xlm-roberta", "t5-encoder", "gemma"])
def test_no_usual_tokenizer_is_taken_for_one_that_eats_memory(tmp_path: Path, name: str) -> None:
    assert len(parity.expected(Checkpoint.open(write_checkpoint(name, tmp_path / "checkpoint")))) > 300


def test_the_usual_steps_together_do_not_eat_memory(tmp_path: Path) -> None:
    spaces = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "\u2581"}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    back = {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}
    document = llama_like(
        normalizer={"type": "Sequence", "normalizers": [spaces, PREPEND, REPLACE]},
        decoder={"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, strip]},
    )

    assert len(parity.expected(opened(tmp_path, document))) > 300


@pytest.mark.parametrize("regex", [r"(?:\w*\s*)*\z!", "("])
def test_a_regular_expression_that_never_ends_is_refused(tmp_path: Path, gpt2_like: Json, regex: str) -> None:
    split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}

    with pytest.raises(InvalidCheckpointError, match="cannot be loaded"):
        byte_level_bpe(opened(tmp_path, {**gpt2_like, "pre_tokenizer": split}), None)


def test_wordpiece_without_its_unknown_token_is_refused(tmp_path: Path) -> None:
    document = bert_like(["a"])
    document["model"]["unk_token"] = "[NONE]"

    with pytest.raises(InvalidCheckpointError, match="cannot be loaded"):
        wordpiece(opened(tmp_path, document), None)


@pytest.mark.parametrize(
    "content",
    [b'{"a":' * 5_000_000, b'{"a":[' + b"[]," * 5_000_000 + b"[]]}", b'{"version":"' + b"x" * (96 << 20) + b'"}'],
    ids=["deep", "wide", "long"],
)
def test_a_json_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    checkpoint = Checkpoint(tmp_path, {}, {}, parse_model_card(""))

    with pytest.raises(InvalidCheckpointError, match=r"nested deeper|arrays and objects|larger than 96 MiB"):
        byte_level_bpe(checkpoint, None)


def test_brackets_in_strings_are_no_arrays() -> None:
    assert strict_json.parse_object(b'{"a": "[[[[\\"{{{", "b": ["]"]}', what="x") == {"a": '[[[["{{{', "b": ["]"]}


MARKED = bytes([3 << 3, 4])  # a piece's type, USER_DEFINED


@pytest.mark.parametrize(
    "tail",
    [
        bytes([1 << 3, 7]),
        bytes([1 << 3, 7]) + bytes([9 << 3 | 2, 2]) + MARKED,
        bytes([1 << 3 | 1]) + MARKED * 4,
        bytes([1 << 3 | 2, 5]) + MARKED + bytes([9 << 3 | 3, 3 << 3 | 4, 0]),
        bytes([9 << 3 | 3, 9 << 3 | 4]) + MARKED,
    ],
    ids=["number", "number-and-mark", "fixed", "group-within", "group"],
)
def test_a_hostile_sentencepiece_model_is_read_or_refused_without_a_traceback(tmp_path: Path, tail: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes((TINY / "tokenizer.model").read_bytes() + tail)
    checkpoint = Checkpoint(tmp_path, {}, {}, parse_model_card(""))

    with contextlib.suppress(InvalidCheckpointError):
        vocabulary = sentencepiece(checkpoint, 512)
        assert vocabulary is not None
        assert len(vocabulary.tokens) == 512


def test_an_added_token_whose_id_has_5000_digits_has_no_row(tmp_path: Path) -> None:
    shutil.copy(TINY / "tokenizer.model", tmp_path)
    settings = {"added_tokens_decoder": {"9" * 5000: added(0, "<far>"), "512": added(512, "<near>")}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))

    vocabulary = sentencepiece(Checkpoint(tmp_path, {}, {}, parse_model_card("")), 513)

    assert vocabulary is not None
    assert vocabulary.tokens[512] == b"<near>"
    assert b"<far>" not in vocabulary.tokens


@pytest.mark.parametrize("position", range(0, 400, 7))
def test_a_sentencepiece_model_with_a_wrong_byte_is_read_or_refused(tmp_path: Path, position: int) -> None:
    content = bytearray((TINY / "tokenizer.model").read_bytes())
    content[position % 40 if position < 280 else -(position - 279)] ^= 0xFF
    (tmp_path / "tokenizer.model").write_bytes(bytes(content))
    checkpoint = Checkpoint(tmp_path, {}, {}, parse_model_card(""))

    for read in (sentencepiece, unigram):
        with contextlib.suppress(ModelpackError):
            read(checkpoint, 512)
