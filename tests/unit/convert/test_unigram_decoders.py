"""Unigram tokenizers beside decoders, as Japanese Llamas have them: T5's kind in llama.cpp, or refused."""

import io
import json
import shutil
from pathlib import Path

import pytest
from fakes.checkpoints import write_checkpoint
from sentencepiece import SentencePieceTrainer

from modelpack.convert import Checkpoint, parity, plan_conversion, run_conversion
from modelpack.engine.tokenize import tokenize
from modelpack.errors import UnsupportedError

TINY = Path(__file__).parent.parent.parent / "data" / "tiny-llama"
FILES = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def tiny_with(directory: Path, model: bytes | None) -> Path:
    """The tiny checkpoint with another tokenizer, of 512 tokens like its own."""
    shutil.copytree(TINY, directory)
    for name in FILES:
        (directory / name).unlink(missing_ok=True)
    if model is not None:
        (directory / "tokenizer.model").write_bytes(model)
    return directory


def unigram_model(**settings: object) -> bytes:
    model = io.BytesIO()
    usual = {"vocab_size": 510, "character_coverage": 1.0, "hard_vocab_limit": False, "minloglevel": 2}
    texts = [text for text in parity.texts() if text.isascii()]
    SentencePieceTrainer.Train(
        sentence_iterator=iter(texts), model_writer=model, model_type="unigram", **usual | settings
    )
    return model.getvalue()


def check_parity(directory: Path) -> dict[str, object]:
    checkpoint = Checkpoint.open(directory)
    plan = plan_conversion(checkpoint)
    run_conversion(plan, directory / "out.gguf")
    tried = parity.trials(checkpoint, rows=512)
    assert parity.compare(tried, tokenize(directory / "out.gguf", [one.text for one in tried])) == []
    return dict(plan.metadata)


@pytest.mark.llama
@pytest.mark.parametrize("rules", ["identity", "nmt_nfkc"])
def test_a_unigram_tokenizer_model_beside_a_llama_is_the_same_in_llama_cpp(tmp_path: Path, rules: str) -> None:
    model = unigram_model(normalization_rule_name=rules, pad_id=3, unk_id=4, user_defined_symbols=["<tool>"])
    directory = tiny_with(tmp_path / "tiny", model)
    (directory / "added_tokens.json").write_text('{"<user>": 511}')

    metadata = check_parity(directory)

    assert metadata["tokenizer.ggml.model"] == "t5"
    assert metadata["tokenizer.ggml.unknown_token_id"] == 4
    assert metadata["tokenizer.ggml.add_bos_token"] is True
    assert metadata["tokenizer.ggml.add_eos_token"] is False
    assert b"<user>" in metadata["tokenizer.ggml.tokens"]


@pytest.mark.llama
def test_what_is_added_to_a_text_is_what_the_settings_of_a_unigram_llama_say(tmp_path: Path) -> None:
    directory = tiny_with(tmp_path / "tiny", unigram_model())
    (directory / "tokenizer_config.json").write_text('{"add_bos_token": false, "add_eos_token": true}')

    metadata = check_parity(directory)

    assert metadata["tokenizer.ggml.add_bos_token"] is False
    assert metadata["tokenizer.ggml.add_eos_token"] is True


def test_a_unigram_tokenizer_model_that_falls_back_to_bytes_is_refused_beside_a_llama(tmp_path: Path) -> None:
    directory = tiny_with(tmp_path / "tiny", unigram_model(byte_fallback=True))

    with pytest.raises(UnsupportedError, match=r"tokenizer\.model is a Unigram model that falls back to bytes"):
        plan_conversion(Checkpoint.open(directory))


@pytest.mark.llama
def test_a_unigram_tokenizer_json_beside_a_llama_adds_nothing_unasked(tmp_path: Path) -> None:
    source = write_checkpoint("xlm-roberta", tmp_path / "xlm")
    directory = tiny_with(tmp_path / "tiny", None)
    document = json.loads((source / "tokenizer.json").read_text())
    (directory / "tokenizer.json").write_text(json.dumps(document | {"post_processor": None}))

    metadata = check_parity(directory)

    assert metadata["tokenizer.ggml.model"] == "t5"
    assert metadata["tokenizer.ggml.add_bos_token"] is False
    assert metadata["tokenizer.ggml.add_eos_token"] is False


def test_a_unigram_tokenizer_json_that_falls_back_to_bytes_is_refused_beside_a_llama(tmp_path: Path) -> None:
    source = write_checkpoint("xlm-roberta", tmp_path / "xlm")
    directory = tiny_with(tmp_path / "tiny", None)
    document = json.loads((source / "tokenizer.json").read_text())
    document["model"]["byte_fallback"] = True
    (directory / "tokenizer.json").write_text(json.dumps(document))

    with pytest.raises(UnsupportedError, match=r"tokenizer\.json is a Unigram model that falls back to bytes"):
        plan_conversion(Checkpoint.open(directory))
