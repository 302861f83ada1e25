"""The gate of a build, which asks llama.cpp while the weights are being written."""

import io
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from fakes.checkpoints import SYNTHETIC, write_checkpoint
from sentencepiece import SentencePieceTrainer

from modelpack.build.tokenizer_gate import TokenizerGate
from modelpack.convert import Checkpoint, parity, plan_conversion, run_conversion
from modelpack.convert.conversion import write_skeleton
from modelpack.engine.tokenize import tokenize
from modelpack.errors import ConversionError, TokenizerMismatchError
from modelpack.progress import SILENT

TINY = Path(__file__).parent.parent / "data" / "tiny-llama"

pytestmark = pytest.mark.llama


class Warnings:
    """Remembers what it was warned of; all else is silence."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def warn(self, message: str) -> None:
        self.heard.append(message)

    def __getattr__(self, name: str) -> Any:
        return getattr(SILENT, name)


@pytest.fixture
def odd(tmp_path: Path) -> Checkpoint:
    """A checkpoint whose tokenizer llama.cpp does not have."""
    directory = Path(shutil.copytree(TINY, tmp_path / "odd"))
    (directory / "tokenizer.model").unlink()
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFKC"}, tokenizer["normalizer"]]}
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    return Checkpoint.open(directory)


def test_a_mismatch_ends_the_conversion_before_the_weights_are_all_written(tmp_path: Path, odd: Checkpoint) -> None:
    plan, written = plan_conversion(odd), tmp_path / "out.gguf"
    pieces: list[None] = []

    with TokenizerGate(plan, odd, tmp_path) as gate:

        def look() -> None:
            pieces.append(None)
            time.sleep(0.5)
            gate.look()

        with pytest.raises(TokenizerMismatchError, match=r"because tokenizer\.json normalizes text with NFKC: '"):
            run_conversion(plan, written, between=look)

    assert len(pieces) < len(plan.tensors)
    assert not written.exists()


def test_where_a_mismatch_is_allowed_it_is_told_as_a_share(tmp_path: Path, odd: Checkpoint) -> None:
    progress = Warnings()
    with TokenizerGate(plan_conversion(odd), odd, tmp_path) as gate:
        share = gate.mismatch(tmp_path / "none.gguf", is_allowed=True, progress=progress)
        gate.look(is_allowed=True)

    assert share is not None
    assert f"tokenizes {share.partition('/')[0]} of " in progress.heard[0]


def test_a_sentencepiece_model_that_normalizes_is_named_as_the_cause(tmp_path: Path) -> None:
    directory = Path(shutil.copytree(TINY, tmp_path / "tiny"))
    (directory / "tokenizer.json").unlink()
    content = io.BytesIO()
    texts = [text for text in parity.texts() if text.isascii()]
    SentencePieceTrainer.Train(
        sentence_iterator=iter(texts), model_writer=content, model_type="bpe", vocab_size=400, byte_fallback=True
    )
    (directory / "tokenizer.model").write_bytes(content.getvalue())
    checkpoint = Checkpoint.open(directory)

    with (
        TokenizerGate(plan_conversion(checkpoint), checkpoint, tmp_path) as gate,
        pytest.raises(TokenizerMismatchError, match=r"because tokenizer\.model replaces characters"),
    ):
        gate.mismatch(tmp_path / "none.gguf", is_allowed=False, progress=SILENT)


def test_a_limit_of_llama_cpp_is_a_warning(tmp_path: Path) -> None:
    directory = Path(shutil.copytree(TINY, tmp_path / "tiny"))
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    tokenizer["added_tokens"][-1]["rstrip"] = True
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    checkpoint, progress = Checkpoint.open(directory), Warnings()

    with TokenizerGate(plan_conversion(checkpoint), checkpoint, tmp_path) as gate:
        assert gate.mismatch(tmp_path / "none.gguf", is_allowed=False, progress=progress) is None

    (warning,) = progress.heard
    assert "llama.cpp keeps the spaces beside added tokens" in warning


def test_what_llama_cpp_would_not_load_ends_the_conversion_with_the_reason(tmp_path: Path) -> None:
    directory = Path(shutil.copytree(TINY, tmp_path / "tiny"))
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "num_key_value_heads": 1}))
    checkpoint = Checkpoint.open(directory)
    plan, written = plan_conversion(checkpoint), tmp_path / "out.gguf"

    with TokenizerGate(plan, checkpoint, tmp_path) as gate:

        def look() -> None:
            time.sleep(0.3)
            gate.look(is_allowed=True)

        with pytest.raises(
            ConversionError, match=r"what becomes of the checkpoint: .*blk\.0\.attn_k\.weight' has wrong"
        ):
            run_conversion(plan, written, between=look)

    assert not written.exists()


@pytest.mark.parametrize("name", ["tiny-llama", *SYNTHETIC])
def test_every_architecture_is_loaded_before_there_are_weights(tmp_path: Path, name: str) -> None:
    directory = TINY if name == "tiny-llama" else write_checkpoint(name, tmp_path / "checkpoint")
    plan = plan_conversion(Checkpoint.open(directory))
    write_skeleton(plan, tmp_path / "skeleton.gguf")

    assert tokenize(tmp_path / "skeleton.gguf", ["a"], has_tensors=True)
    assert (tmp_path / "skeleton.gguf").stat().st_size == plan.output_size
