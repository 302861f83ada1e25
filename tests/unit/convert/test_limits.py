"""What llama.cpp does otherwise than a tokenizer.json says: known exactly, named, and not an error; all else is one."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fakes.checkpoints import write_checkpoint
from fakes.tokenizers import byte_level, trained, write_vocabulary

from modelpack.convert import Checkpoint, parity, plan_conversion, run_conversion
from modelpack.convert.model_card import parse_model_card
from modelpack.convert.tokenizer import byte_level_bpe, sentencepiece_json
from modelpack.convert.vocabulary import VocabularyReader
from modelpack.engine.tokenize import tokenize
from modelpack.errors import TokenizerMismatchError

TINY = Path(__file__).parent.parent.parent / "data" / "tiny-llama"
PREPEND = {"type": "Prepend", "prepend": "\u2581"}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}

Json = dict[str, Any]


@pytest.fixture(scope="module")
def gpt2_like() -> Json:
    return trained(byte_level(use_regex=True))


def with_added(document: Json, *contents: str, **flags: bool) -> Json:
    usual = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True, **flags}
    first = len(document["model"]["vocab"]) + 1000
    entries = [{**usual, "id": first + number, "content": content} for number, content in enumerate(contents)]
    return {**document, "added_tokens": [*document["added_tokens"], *entries]}


def llama_like(**changes: object) -> Json:
    document: Json = json.loads((TINY / "tokenizer.json").read_text())
    return {**document, "normalizer": {"type": "Sequence", "normalizers": [PREPEND, REPLACE]}, **changes}


def named_limits(directory: Path, document: Json, read: VocabularyReader, *, name: str | None = None) -> list[str]:
    (directory / "tokenizer.json").write_text(json.dumps(document))
    checkpoint = Checkpoint(directory, {}, {}, parse_model_card(""))
    vocabulary = read(checkpoint, None)
    assert vocabulary is not None
    tried = parity.trials(checkpoint, pre=vocabulary.pre)
    path = write_vocabulary(vocabulary, directory / "out.gguf", name=name)
    return parity.compare(tried, tokenize(path, [one.text for one in tried]))


@pytest.mark.llama
@pytest.mark.parametrize("read", [byte_level_bpe, sentencepiece_json])
def test_added_tokens_that_begin_alike_are_the_same_in_llama_cpp(
    tmp_path: Path, gpt2_like: Json, read: VocabularyReader
) -> None:
    document = gpt2_like if read is byte_level_bpe else llama_like()
    document = with_added(document, "<|a", "<|a|>", "<|a|>b", "####", "##", special=False)

    assert named_limits(tmp_path, document, read) == []


@pytest.mark.llama
def test_added_tokens_that_begin_alike_and_are_found_at_another_time_are_an_error(
    tmp_path: Path, gpt2_like: Json
) -> None:
    document = with_added(with_added(gpt2_like, "<|a"), "<|a|>", normalized=True)

    with pytest.raises(TokenizerMismatchError, match=r"'<\|a\|>' becomes"):
        named_limits(tmp_path, document, byte_level_bpe)


@pytest.mark.llama
def test_olmos_delimiters_that_share_bars_are_named(tmp_path: Path, gpt2_like: Json) -> None:
    document = with_added(gpt2_like, "|||IP_ADDRESS|||", "|||EMAIL_ADDRESS|||", special=False)

    (limit,) = named_limits(tmp_path, document, byte_level_bpe)

    assert "longest added token first" in limit
    assert "'|||IP_ADDRESS|||EMAIL_ADDRESS|||' becomes [" in limit


@pytest.mark.llama
@pytest.mark.parametrize("side", ["lstrip", "rstrip"])
@pytest.mark.parametrize("read", [byte_level_bpe, sentencepiece_json])
def test_spaces_that_belong_to_an_added_token_are_named(
    tmp_path: Path, gpt2_like: Json, read: VocabularyReader, side: str
) -> None:
    document = with_added(gpt2_like if read is byte_level_bpe else llama_like(), "<mask>", **{side: True})

    (limit,) = named_limits(tmp_path, document, read)

    assert "keeps the spaces beside added tokens such as '<mask>'" in limit
    assert "'a <mask> b' becomes" in limit


@pytest.mark.llama
def test_phi_3_keeps_no_spaces_behind_its_tokens_where_its_name_says_what_it_is(tmp_path: Path) -> None:
    document = with_added(llama_like(), "<|endoftext|>")
    document = with_added(document, "<|assistant|>", "<|user|>", rstrip=True)
    for entry in document["added_tokens"]:
        entry["rstrip"] = entry["content"] not in ("<unk>", "<s>", "<|endoftext|>")

    assert named_limits(tmp_path, document, sentencepiece_json, name="Phi-3-mini") == []
    (limit,) = named_limits(tmp_path, document, sentencepiece_json, name="a finetune")
    assert "keeps the spaces" in limit


@pytest.mark.llama
@pytest.mark.parametrize("scheme", ["first", "always"])
@pytest.mark.parametrize("is_split", [True, False])
def test_a_space_that_mistral_puts_before_a_whole_text_alone_is_named(
    tmp_path: Path, scheme: str, is_split: bool
) -> None:
    metaspace = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": is_split}
    document = with_added(llama_like(normalizer=None, pre_tokenizer=metaspace), "[INST]", "[/INST]")

    (limit,) = named_limits(tmp_path, document, sentencepiece_json)

    assert "puts a space before every text and behind every added token" in limit


@pytest.mark.llama
def test_an_added_token_that_is_a_word_of_its_own_only_is_an_error(tmp_path: Path, gpt2_like: Json) -> None:
    with pytest.raises(TokenizerMismatchError, match="'acat' becomes"):
        named_limits(tmp_path, with_added(gpt2_like, "cat", single_word=True), byte_level_bpe)


@pytest.mark.llama
@pytest.mark.parametrize("name", ["bert", "roberta", "modern-bert", "xlm-roberta"])
@pytest.mark.parametrize("side", [{"lstrip": True}, {"rstrip": True}, {"lstrip": True, "rstrip": True}])
def test_every_encoders_mask_may_take_the_spaces_beside_it(tmp_path: Path, name: str, side: dict[str, bool]) -> None:
    directory = write_checkpoint(name, tmp_path / "checkpoint")
    path = directory / "tokenizer.json"
    document = json.loads(path.read_text())
    document["added_tokens"][-1].update(side)
    path.write_text(json.dumps(document))
    checkpoint = Checkpoint.open(directory)
    run_conversion(plan_conversion(checkpoint), tmp_path / "out.gguf")
    tried = parity.trials(checkpoint)

    limits = parity.compare(tried, tokenize(tmp_path / "out.gguf", [one.text for one in tried]))

    assert all("keeps the spaces" in limit for limit in limits)
    assert bool(limits) == (name in ("roberta", "modern-bert"))


@pytest.mark.llama
@pytest.mark.parametrize("side", [{}, {"lstrip": True}, {"rstrip": True}, {"lstrip": True, "rstrip": True}])
@pytest.mark.parametrize("is_split", [True, False])
def test_t5s_extra_ids_may_take_the_spaces_beside_them(tmp_path: Path, side: dict[str, bool], is_split: bool) -> None:
    directory = write_checkpoint("xlm-roberta", tmp_path / "checkpoint")
    path = directory / "tokenizer.json"
    document = json.loads(path.read_text())
    metaspace = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": is_split}
    squeeze = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "\u2581"}
    document |= {"pre_tokenizer": metaspace, "normalizer": {"type": "Sequence", "normalizers": [squeeze]}}
    document["added_tokens"][-1].update(side)
    path.write_text(json.dumps(document))
    checkpoint = Checkpoint.open(directory)
    run_conversion(plan_conversion(checkpoint), tmp_path / "out.gguf")
    tried = parity.trials(checkpoint)

    limits = parity.compare(tried, tokenize(tmp_path / "out.gguf", [one.text for one in tried]))

    assert any("drops the spaces at the end of a text" in limit and "'trailing '" in limit for limit in limits)


@pytest.mark.llama
def test_what_llama_cpp_is_not_known_to_do_is_an_error_beside_what_it_is(tmp_path: Path) -> None:
    directory = Path(shutil.copytree(TINY, tmp_path / "tiny"))
    document = with_added(llama_like(), "<mask>", lstrip=True)
    (directory / "tokenizer.json").write_text(json.dumps(document))
    checkpoint = Checkpoint(directory, {}, {}, parse_model_card(""))
    tried = parity.trials(checkpoint)
    actual = [list(one.ids) for one in tried]

    assert parity.compare(tried, actual) == []
    place = next(place for place, one in enumerate(tried) if one.known)
    actual[place] = list(tried[place].known[0][0])
    assert len(parity.compare(tried, actual)) == 1
    actual[place] = [*actual[place], 7]
    with pytest.raises(TokenizerMismatchError, match=r"1 of \d+ texts"):
        parity.compare(tried, actual)


@pytest.mark.llama
@pytest.mark.parametrize(
    ("name", "spelled"),
    [("phi3-tuned", "Phi-3 Tuned"), ("Phi-3-mini", "Phi-3 Mini"), ("Phi 3 mini", "Phi-3 Mini")],
)
def test_phi_3_is_called_so_that_llama_cpp_knows_it(tmp_path: Path, name: str, spelled: str) -> None:
    directory = Path(shutil.copytree(TINY, tmp_path / "tiny"))
    for silent in ("tokenizer.model", "tokenizer_config.json", "README.md"):
        (directory / silent).unlink()
    document = llama_like()
    vocabulary = document["model"]["vocab"]
    # The embeddings have 512 rows: two new tokens take the places of two others.
    for text, token in (("<|endoftext|>", 510), ("<|assistant|>", 511)):
        del vocabulary[next(known for known, number in vocabulary.items() if number == token)]
        vocabulary[text] = token
    document["model"]["merges"] = [pair for pair in document["model"]["merges"] if "".join(pair) in vocabulary]
    document = with_added(document, "<|endoftext|>", "<|assistant|>")
    for entry in document["added_tokens"]:
        entry["rstrip"] = entry["content"] not in ("<unk>", "<s>", "<|endoftext|>")
    (directory / "tokenizer.json").write_text(json.dumps(document))
    checkpoint = Checkpoint.open(directory)
    plan = plan_conversion(checkpoint, name=name)
    run_conversion(plan, tmp_path / "out.gguf")
    tried = parity.trials(checkpoint, rows=512)

    assert plan.metadata["general.name"] == spelled
    assert parity.compare(tried, tokenize(tmp_path / "out.gguf", [one.text for one in tried])) == []


@pytest.mark.llama
def test_another_model_that_is_called_phi_3_is_called_so_that_llama_cpp_loads_it(tmp_path: Path) -> None:
    directory = write_checkpoint("llama-bpe", tmp_path / "checkpoint")
    checkpoint = Checkpoint.open(directory)
    plan = plan_conversion(checkpoint, name="llama-phi3-tuned")
    run_conversion(plan, tmp_path / "out.gguf")

    assert plan.metadata["general.name"] == "Llama Phi 3 Tuned"
    assert tokenize(tmp_path / "out.gguf", ["a"])
