"""What a variant lost, against the statistics that llama-perplexity prints."""

import json
from pathlib import Path
from typing import Any

import pytest
from altered_gguf import write_altered

from modelpack.engine.comparison import compare_models
from modelpack.errors import InvalidGGUFError, InvalidInputError, NotFoundError
from modelpack.quality import EVALUATION_TEXT
from modelpack.quantize import QUANTIZATIONS, quantize

RECORDS: dict[str, Any] = json.loads(
    (Path(__file__).parent.parent / "data" / "quantize" / "records.json").read_text(encoding="utf-8")
)
TEXT = EVALUATION_TEXT.read_text(encoding="utf-8")

pytestmark = pytest.mark.llama


@pytest.mark.parametrize("record", RECORDS["compared"], ids=lambda record: record["type"])
def test_the_numbers_are_those_of_llama_perplexity(tiny_gguf: Path, tmp_path: Path, record: dict[str, Any]) -> None:
    quantize(tiny_gguf, tmp_path / "variant.gguf", QUANTIZATIONS[record["type"]], threads=1)

    comparison = compare_models(tiny_gguf, tmp_path / "variant.gguf", TEXT, context=RECORDS["context"], threads=1)

    # To five digits on every processor; on the one that recorded them, to the last.
    close = pytest.approx
    assert comparison.mean_kld == close(float(record["mean_kld"]), rel=1e-3, abs=1e-6)
    assert comparison.p99_kld == close(float(record["p99_kld"]), rel=1e-2, abs=1e-6)
    assert comparison.perplexity == close(float(record["perplexity"]), rel=1e-4)
    assert comparison.base_perplexity == close(float(record["base_perplexity"]), rel=1e-4)
    assert 100 * comparison.same_top == close(float(record["same_top"]), abs=0.1)
    assert comparison.tokens == 2413


def test_a_model_agrees_with_itself(tiny_gguf: Path, expected: list[dict[str, Any]]) -> None:
    text = "\n".join(pair["answer"] for pair in expected) * 3

    comparison = compare_models(tiny_gguf, tiny_gguf, text, context=128, threads=1)

    assert comparison.mean_kld == pytest.approx(0, abs=1e-4)
    assert comparison.same_top > 0.99
    # The base passes through 16 bits, which hold 16 nats below the best token: what is less likely counts as that.
    assert 1 < comparison.base_perplexity <= comparison.perplexity


def test_models_that_read_the_text_differently_are_not_compared(tiny_gguf: Path, tmp_path: Path) -> None:
    other = write_altered(tiny_gguf, tmp_path / "other.gguf", metadata={"tokenizer.ggml.add_bos_token": False})

    with pytest.raises(InvalidInputError, match="not variants of one model"):
        compare_models(tiny_gguf, other, "Hello! " * 400, context=64, threads=1)


def test_what_cannot_be_compared_is_said_before_any_work(tiny_gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        compare_models(tiny_gguf, tmp_path / "none.gguf", TEXT)
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(InvalidGGUFError):
        compare_models(tiny_gguf, tmp_path / "bad.gguf", TEXT)
    with pytest.raises(InvalidInputError, match="needs"):
        compare_models(tiny_gguf, tiny_gguf, "short", context=64, threads=1)
