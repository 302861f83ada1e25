"""Vocabularies and special tokens, as llama.cpp needs them."""

import json
import shutil
from pathlib import Path

import pytest
from fakes.checkpoints import write_checkpoint
from gguf import TokenType
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceTrainer

from modelpack.convert import Checkpoint, parity, plan_conversion, protobuf, run_conversion
from modelpack.convert.special_tokens import read_special_tokens
from modelpack.convert.tokenizer import byte_level_bpe, sentencepiece, sentencepiece_json
from modelpack.convert.unigram import unigram
from modelpack.engine.tokenize import tokenize
from modelpack.errors import InvalidCheckpointError, UnsupportedError

TINY = Path(__file__).parent.parent.parent / "data" / "tiny-llama"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "tiny-llama"))


def change(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_sentencepiece_tokenizer_that_ships_as_json_alone_is_the_same_vocabulary(tiny: Path) -> None:
    original = sentencepiece(Checkpoint.open(tiny), 512)
    (tiny / "tokenizer.model").unlink()
    rebuilt = sentencepiece_json(Checkpoint.open(tiny), 512)

    assert original is not None
    assert rebuilt is not None
    assert (rebuilt.model, rebuilt.pre, rebuilt.add_space_prefix) == ("llama", "default", False)
    assert (rebuilt.tokens, rebuilt.types) == (original.tokens, original.types)
    # Scores only have to order merges alike: more is merged first.
    merged = [
        i for i, kind in enumerate(original.types) if kind == TokenType.NORMAL and len(original.tokens[i].decode()) > 1
    ]
    assert len(merged) > 100
    by_score = sorted(merged, key=lambda token: -original.scores[token])
    assert by_score == sorted(merged, key=lambda token: -rebuilt.scores[token])


def test_a_json_only_checkpoint_is_planned_without_a_sentencepiece_model(tiny: Path) -> None:
    (tiny / "tokenizer.model").unlink()

    plan = plan_conversion(Checkpoint.open(tiny))

    assert plan.metadata["tokenizer.ggml.model"] == "llama"
    assert plan.metadata["tokenizer.ggml.add_space_prefix"] is False


@pytest.mark.parametrize(
    ("normalizer", "pre_tokenizer", "expected"),
    [
        ({"type": "Prepend", "prepend": "\u2581"}, None, True),
        ({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}]}, None, True),
        (None, {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first"}, True),
        (None, {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "never"}, False),
        (None, None, False),
    ],
)
def test_whether_a_space_is_put_before_a_text_is_read_from_the_rules_where_the_settings_are_silent(
    tiny: Path, normalizer: object, pre_tokenizer: object, expected: bool
) -> None:
    change(tiny / "tokenizer.json", normalizer=normalizer, pre_tokenizer=pre_tokenizer)
    change(tiny / "tokenizer_config.json", add_prefix_space=None)

    vocabulary = sentencepiece_json(Checkpoint.open(tiny), 512)

    assert vocabulary is not None
    assert vocabulary.add_space_prefix is expected


def test_a_sentencepiece_model_without_space_prefix_says_so_where_the_settings_are_silent(tiny: Path) -> None:
    change(tiny / "tokenizer_config.json", add_prefix_space=None)

    vocabulary = sentencepiece(Checkpoint.open(tiny), 512)

    assert vocabulary is not None
    assert vocabulary.add_space_prefix is False


def test_holes_and_added_tokens_have_their_kinds(tmp_path: Path) -> None:
    vocabulary = sentencepiece(Checkpoint.open(write_checkpoint("llama3-rope", tmp_path)), 520)

    assert vocabulary is not None
    assert vocabulary.tokens[512:516] == [b"<extra>", b"<|tool|>", b" two words", b"[PAD515]"]
    assert vocabulary.types[512:516] == [
        TokenType.USER_DEFINED,
        TokenType.CONTROL,
        TokenType.USER_DEFINED,
        TokenType.UNUSED,
    ]


@pytest.mark.llama
def test_symbols_that_a_sentencepiece_model_takes_out_of_the_text_are_taken_out_by_llama_cpp_too(tiny: Path) -> None:
    (tiny / "tokenizer.json").unlink()
    (tiny / "tokenizer_config.json").write_text('{"add_bos_token": true}')
    text = tiny / "text.txt"
    text.write_text((TINY / "LICENSE").read_text())
    SentencePieceTrainer.Train(
        input=str(text), model_prefix=str(tiny / "tokenizer"), model_type="bpe", vocab_size=512, byte_fallback=True,
        user_defined_symbols=["</div>", "\u2581\u2581"], add_dummy_prefix=False, remove_extra_whitespaces=False,
        normalization_rule_name="identity", minloglevel=2,
    )  # fmt: skip
    checkpoint = Checkpoint.open(tiny)

    vocabulary = sentencepiece(checkpoint, 512)

    assert vocabulary is not None
    found = {vocabulary.tokens[token] for token, kind in enumerate(vocabulary.types) if kind == TokenType.USER_DEFINED}
    assert found == {b"</div>", b"  "}
    run_conversion(plan_conversion(checkpoint), tiny / "tiny.gguf")
    wanted = parity.expected(checkpoint)
    parity.check(wanted, tokenize(tiny / "tiny.gguf", [text for text, _ in wanted]))


def test_a_byte_level_tokenizer_has_merges_and_no_scores(tmp_path: Path) -> None:
    vocabulary = byte_level_bpe(Checkpoint.open(write_checkpoint("qwen2-0.5b", tmp_path)), 520)

    assert vocabulary is not None
    assert (vocabulary.model, vocabulary.pre, vocabulary.scores) == ("gpt2", "gpt-2", None)
    assert vocabulary.merges is not None
    assert "\u0120t h" in vocabulary.merges


def test_a_known_way_to_split_text_is_recognised_by_its_rule(tmp_path: Path) -> None:
    directory = write_checkpoint("qwen2-0.5b", tmp_path)
    contractions = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
    rest = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}

    def pre(digits: str) -> str:
        split = {
            "type": "Split",
            "pattern": {"Regex": contractions + digits + rest},
            "behavior": "Isolated",
            "invert": False,
        }
        sequence = {"type": "Sequence", "pretokenizers": [split, byte_level]}
        change(directory / "tokenizer.json", pre_tokenizer=sequence)
        vocabulary = byte_level_bpe(Checkpoint.open(directory), 520)
        assert vocabulary is not None
        return vocabulary.pre

    assert pre(r"\p{N}") == "qwen2"
    assert pre(r"\p{N}{1,3}") == "dbrx"
    document = json.loads((directory / "tokenizer.json").read_text())
    change(directory / "tokenizer.json", model={**document["model"], "ignore_merges": True})
    assert pre(r"\p{N}{1,3}") == "llama-bpe"
    with pytest.raises(UnsupportedError, match="splits text"):
        pre(r"\p{N}{1,7}")


def test_broken_tokenizer_files_are_refused(tiny: Path) -> None:
    (tiny / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(InvalidCheckpointError, match=r"tokenizer\.model"):
        sentencepiece(Checkpoint.open(tiny), 512)

    (tiny / "tokenizer.model").unlink()
    (tiny / "tokenizer.json").write_text("{")
    with pytest.raises(InvalidCheckpointError, match=r"tokenizer\.json is not JSON"):
        sentencepiece_json(Checkpoint.open(tiny), 512)

    (tiny / "tokenizer.json").unlink()
    with pytest.raises(InvalidCheckpointError, match="no tokenizer that modelpack reads"):
        plan_conversion(Checkpoint.open(tiny))


def test_special_tokens_outside_the_vocabulary_are_dropped(tiny: Path) -> None:
    change(tiny / "config.json", pad_token_id=10_000, eos_token_id=-1)
    change(tiny / "tokenizer_config.json", pad_token=None, eos_token=None)

    special = read_special_tokens(Checkpoint.open(tiny), vocabulary_size=512)

    assert special.ids == {"bos": 1, "unk": 0}


def test_every_kind_of_special_token_finds_its_key(tiny: Path) -> None:
    kinds = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
    change(tiny / "tokenizer_config.json", **{f"{kind}_token": "<|system|>" for kind in kinds})

    metadata = plan_conversion(Checkpoint.open(tiny)).metadata

    assert {key for key, value in metadata.items() if key.endswith("_token_id") and value == 3} == {
        f"tokenizer.ggml.{kind}_token_id" for kind in ("bos", "eos", "unknown", "seperator", "padding", "mask")
    }


def template(*parts: str) -> list[dict[str, dict[str, object]]]:
    return [
        {"Sequence": {"id": part, "type_id": 0}} if part in "AB" else {"SpecialToken": {"id": part, "type_id": 0}}
        for part in parts
    ]


@pytest.mark.parametrize(
    ("single", "pair", "expected"),
    [
        (template("<s>", "A"), template("<s>", "A", "B"), {"bos": True, "eos": False}),
        (
            template("<s>", "A", "<|end|>"),
            template("<s>", "A", "<|end|>", "B"),
            {"bos": True, "eos": True, "sep": False},
        ),
        (template("A"), template("A", "<|end|>", "B"), {"sep": True, "bos": True, "eos": False}),
        (template("<unk>", "A"), [], {"bos": False, "eos": False}),
    ],
)
def test_the_post_processor_says_which_tokens_are_added(
    tiny: Path, single: object, pair: object, expected: dict[str, bool]
) -> None:
    change(tiny / "tokenizer.json", post_processor={"type": "TemplateProcessing", "single": single, "pair": pair})
    change(tiny / "tokenizer_config.json", cls_token="<s>")

    assert read_special_tokens(Checkpoint.open(tiny), vocabulary_size=512).added == expected


def test_what_really_ends_a_sequence_is_eos_and_the_settings_eos_ends_a_turn(tiny: Path) -> None:
    processor = {"type": "TemplateProcessing", "single": template("A", "</s>"), "pair": []}
    change(tiny / "tokenizer.json", post_processor=processor)

    special = read_special_tokens(Checkpoint.open(tiny), vocabulary_size=512)

    assert (special.ids["eos"], special.ids["eot"]) == (2, 6)


def test_the_chat_template_comes_from_the_settings_a_file_or_several(tiny: Path) -> None:
    def read() -> object:
        return read_special_tokens(Checkpoint.open(tiny), vocabulary_size=512).chat_template

    assert str(read()).startswith("{{- bos_token }}")
    change(tiny / "tokenizer_config.json", chat_template=None)
    assert read() is None
    (tiny / "chat_template.json").write_text('{"chat_template": "from json"}')
    assert read() == "from json"
    (tiny / "chat_template.jinja").write_text("from jinja")
    assert read() == "from jinja"
    (tiny / "additional_chat_templates").mkdir()
    (tiny / "additional_chat_templates" / "tool_use.jinja").write_text("with tools")
    assert read() == [
        {"name": "default", "template": "from jinja"},
        {"name": "tool_use", "template": "with tools"},
    ]
    named = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}, {"name": 3}]
    change(tiny / "tokenizer_config.json", chat_template=named)
    assert read() == named[:2]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel", "use_regex": True}], "smollm"),
        ([{"type": "Split", "pattern": {"Regex": r"\p{N}"}, "behavior": "Isolated"}, {"type": "ByteLevel"}], "smollm"),
        ([{"type": "ByteLevel", "add_prefix_space": True}], None),
        ([{"type": "Split", "pattern": {"String": " "}, "behavior": "Isolated"}, {"type": "ByteLevel"}], None),
        (
            [{"type": "Split", "pattern": {"Regex": r"\p{N}"}, "behavior": "MergedWithNext"}, {"type": "ByteLevel"}],
            None,
        ),
    ],
)
def test_a_way_to_split_text_is_known_by_all_its_steps(
    tmp_path: Path, steps: list[dict[str, object]], expected: str | None
) -> None:
    directory = write_checkpoint("qwen2-0.5b", tmp_path)
    full = [{"invert": False, "add_prefix_space": False, "trim_offsets": False, **step} for step in steps]
    change(directory / "tokenizer.json", pre_tokenizer={"type": "Sequence", "pretokenizers": full})

    if expected is None:
        with pytest.raises(UnsupportedError, match="splits text"):
            byte_level_bpe(Checkpoint.open(directory), 520)
    else:
        vocabulary = byte_level_bpe(Checkpoint.open(directory), 520)
        assert vocabulary is not None
        assert vocabulary.pre == expected


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({"vocab": []}, "no proper vocabulary"),
        ({"vocab": [["a"]]}, "no text and score for token 0"),
        ({"vocab": [["a", 1e40]]}, "no proper score"),
        ({"vocab": [["\ud800", 0.0]]}, "half of a character"),
    ],
)
def test_a_broken_unigram_vocabulary_is_refused(tmp_path: Path, model: dict[str, object], reason: str) -> None:
    directory = write_checkpoint("xlm-roberta", tmp_path)
    document = json.loads((directory / "tokenizer.json").read_text())
    (directory / "tokenizer.json").write_text(
        json.dumps(document | {"added_tokens": [], "model": {"type": "Unigram", **model}})
    )

    with pytest.raises(InvalidCheckpointError, match=reason):
        unigram(Checkpoint.open(directory), None)


@given(st.binary(max_size=64))
def test_protocol_buffers_from_strangers_are_read_or_refused(message: bytes) -> None:
    try:
        fields = protobuf.parse(message)
    except ValueError:
        return
    assert len(fields) <= len(message)
