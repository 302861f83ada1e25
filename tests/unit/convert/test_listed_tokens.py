"""Added tokens beside a SentencePiece model, which other files list: written, and tried by the gate."""

import base64
import io
import json
import shutil
import struct
from pathlib import Path

import pytest
from fakes import checkpoints
from fakes.checkpoints import write_checkpoint
from sentencepiece import SentencePieceTrainer

from modelpack.convert import Checkpoint, parity, plan_conversion
from modelpack.convert.conversion import write_skeleton
from modelpack.engine.tokenize import tokenize
from modelpack.errors import TokenizerMismatchError

TINY = Path(__file__).parent.parent.parent / "data" / "tiny-llama"

pytestmark = pytest.mark.llama


def tokens_and_trials(directory: Path) -> tuple[list[bytes], list[parity.Trial], list[list[int]]]:
    """What is written, what is tried, and what llama.cpp makes of that."""
    checkpoint = Checkpoint.open(directory)
    plan = plan_conversion(checkpoint)
    write_skeleton(plan, directory / "out.gguf")
    tokens = plan.metadata["tokenizer.ggml.tokens"]
    tried = parity.trials(checkpoint, pre=plan.metadata["tokenizer.ggml.pre"], rows=len(tokens))
    return tokens, tried, tokenize(directory / "out.gguf", [one.text for one in tried])


def model_alone(directory: Path) -> Path:
    """The tiny checkpoint with a model of 450 pieces in its vocabulary of 512, and no tokenizer.json."""
    shutil.copytree(TINY, directory)
    (directory / "tokenizer.json").unlink()
    model = io.BytesIO()
    texts = [text for text in parity.texts() if text.isascii()]
    kind = {"model_type": "bpe", "vocab_size": 450, "byte_fallback": True, "normalization_rule_name": "identity"}
    kind |= {"remove_extra_whitespaces": False, "minloglevel": 2}
    SentencePieceTrainer.Train(sentence_iterator=iter(texts), model_writer=model, **kind)
    (directory / "tokenizer.model").write_bytes(model.getvalue())
    settings = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "add_prefix_space": True}
    entry = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    listed = {"0": ("<unk>", True), "1": ("<s>", True), "2": ("</s>", True), "510": ("<|late|>", False)}
    settings["added_tokens_decoder"] = {
        number: {**entry, "content": text, "special": special} for number, (text, special) in listed.items()
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


def test_tokens_that_settings_list_beside_a_model_alone_are_tried(tmp_path: Path) -> None:
    directory = model_alone(tmp_path / "tiny")
    (directory / "added_tokens.json").write_text('{"[early]": 511}')

    _, tried, actual = tokens_and_trials(directory)

    assert parity.compare(tried, actual) == []
    ids = {one.text: one.ids for one in tried}
    assert ids["<|late|>"] == [510]
    assert ids["a[early]"][-1] == ids["[early]"][-1] == 511
    assert ids["[early]<unk>"] == [511, 0]


def test_a_token_that_was_lost_on_the_way_is_an_error(tmp_path: Path) -> None:
    directory = model_alone(tmp_path / "tiny")
    (directory / "added_tokens.json").write_text('{"[early]": 511}')
    _, tried, _ = tokens_and_trials(directory)
    (directory / "added_tokens.json").unlink()
    tokens_and_trials(directory)

    with pytest.raises(TokenizerMismatchError, match=r"'\[early\]' becomes"):
        parity.compare(tried, tokenize(directory / "out.gguf", [one.text for one in tried]))


def test_tokens_that_begin_alike_are_found_as_a_whole_or_not_tried(tmp_path: Path) -> None:
    directory = model_alone(tmp_path / "tiny")
    (directory / "added_tokens.json").write_text('{"##": 500, "####": 501, "a##": 502, "\\u2581##": 503}')

    _, tried, actual = tokens_and_trials(directory)

    assert parity.compare(tried, actual) == []
    ids = {one.text: one.ids for one in tried}
    assert (ids["##"], ids["####"], ids["a##"]) == ([500], [501], [502])
    assert "######" not in ids


def xlm_roberta_model() -> bytes:
    """The pieces of the synthetic XLM-R as its own model file has them: one down from the checkpoint's."""
    field = checkpoints._field
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    pieces += [(text, score, 1) for text, score in checkpoints._unigram_pieces()]
    model = b"".join(
        field(1, field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18" + bytes([kind]))
        for text, score, kind in pieces
    )
    no_pad = b"\xd8\x02" + b"\xff" * 9 + b"\x01"
    model += field(2, b"\x18\x01" + b"\xc0\x02\x00" + b"\xc8\x02\x01" + b"\xd0\x02\x02" + no_pad)
    charsmap = base64.b64decode(checkpoints.CHARSMAP)
    return model + field(3, field(1, b"test") + field(2, charsmap) + b"\x18\x01\x20\x01\x28\x01")


@pytest.mark.parametrize("has_json", [True, False], ids=["beside-tokenizer.json", "alone"])
def test_the_mask_of_an_xlm_roberta_with_its_model_file_is_written_and_tried(tmp_path: Path, has_json: bool) -> None:
    directory = write_checkpoint("xlm-roberta", tmp_path / "checkpoint")
    (directory / "sentencepiece.bpe.model").write_bytes(xlm_roberta_model())
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    if not has_json:
        (directory / "tokenizer.json").unlink()
        settings = json.loads((directory / "tokenizer_config.json").read_text())
        settings["added_tokens_decoder"] = {str(entry["id"]): entry for entry in tokenizer["added_tokens"]}
        (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    (mask,) = [entry["id"] for entry in tokenizer["added_tokens"] if entry["content"] == "<mask>"]

    tokens, tried, actual = tokens_and_trials(directory)

    assert parity.compare(tried, actual) == []
    assert tokens[mask] == b"<mask>"
    assert dict(zip([one.text for one in tried], actual, strict=True))["a<mask>"][-1] == mask


def test_t5s_extra_ids_beside_its_model_file_are_written_and_tried(tmp_path: Path) -> None:
    directory = write_checkpoint("t5-encoder", tmp_path / "checkpoint")
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    extra = {"special": True, "normalized": False, "single_word": False, "lstrip": True, "rstrip": True}
    settings["added_tokens_decoder"] = {
        str(519 - number): {**extra, "content": f"<extra_id_{number}>"} for number in range(100)
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))

    tokens, tried, actual = tokens_and_trials(directory)

    assert parity.compare(tried, actual) == []
    assert tokens[519] == b"<extra_id_0>"
    assert dict(zip([one.text for one in tried], actual, strict=True))["<extra_id_0>"] == [519]
