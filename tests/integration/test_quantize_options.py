"""Quantization with options and importance matrices, against what llama-quantize made with the same ones."""

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from modelpack.convert import Checkpoint, plan_conversion, run_conversion
from modelpack.errors import ConversionError, InvalidContentError, InvalidInputError, UnknownQuantizationError
from modelpack.gguf_header import read_header
from modelpack.quantize import QUANTIZATIONS, Recipe, parse_tensor_rule, parse_tensor_type, quantize

DATA = Path(__file__).parent.parent / "data"
RECORDS: dict[str, Any] = json.loads((DATA / "quantize" / "records.json").read_text(encoding="utf-8"))

pytestmark = pytest.mark.llama


@pytest.fixture(scope="module")
def bf16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    run_conversion(plan_conversion(Checkpoint.open(DATA / "tiny-llama"), name="tiny-llama"), path)
    return path


def read_options(options: list[str]) -> tuple[Recipe, Path | None]:
    """llama-quantize's options as ours."""
    pairs = list(itertools.pairwise(options))
    rules = tuple(parse_tensor_rule(value) for option, value in pairs if option == "--tensor-type")
    values = dict(pairs)
    recipe = Recipe(
        rules,
        parse_tensor_type(values["--output-tensor-type"]) if "--output-tensor-type" in values else None,
        parse_tensor_type(values["--token-embedding-type"]) if "--token-embedding-type" in values else None,
        "--pure" in options,
    )
    return recipe, DATA / "quantize" / values["--imatrix"] if "--imatrix" in values else None


@pytest.mark.parametrize("record", RECORDS["quantized"], ids=lambda one: " ".join([one["type"], *one["options"]]))
def test_the_bytes_are_those_of_llama_quantize(bf16: Path, tmp_path: Path, record: dict[str, Any]) -> None:
    recipe, imatrix = read_options(record["options"])

    quantize(bf16, tmp_path / "out.gguf", QUANTIZATIONS[record["type"]], recipe=recipe, imatrix=imatrix, threads=1)

    assert hashlib.sha256((tmp_path / "out.gguf").read_bytes()).hexdigest() == record["sha256"]


def test_the_first_rule_that_matches_counts_and_case_does_not(bf16: Path, tmp_path: Path) -> None:
    recipe = Recipe((parse_tensor_rule("BLK.0.FFN_DOWN=q8_0"), parse_tensor_rule("ffn_down=Q6_K")))

    quantize(bf16, tmp_path / "out.gguf", QUANTIZATIONS["Q4_K_S"], recipe=recipe, threads=1)

    types = {tensor.name: tensor.type for tensor in read_header(tmp_path / "out.gguf").tensors}
    assert (types["blk.0.ffn_down.weight"], types["blk.1.ffn_down.weight"]) == ("Q8_0", "Q6_K")
    assert types["blk.0.ffn_up.weight"] == "Q4_K"


def test_the_matrix_is_named_in_the_metadata_without_its_path(bf16: Path, tmp_path: Path) -> None:
    imatrix = DATA / "quantize" / "imatrix.gguf"

    quantize(bf16, tmp_path / "out.gguf", QUANTIZATIONS["IQ2_M"], imatrix=imatrix, threads=1)

    metadata = read_header(tmp_path / "out.gguf").metadata
    assert metadata["quantize.imatrix.file"] == "imatrix.gguf"
    assert metadata["quantize.imatrix.dataset"] == "calibration.txt"
    assert metadata["quantize.imatrix.entries_count"] == 14


def test_the_matrix_of_another_model_is_refused(bf16: Path, tmp_path: Path) -> None:
    content = (DATA / "quantize" / "imatrix.gguf").read_bytes().replace(b"blk.", b"bkl.")
    (tmp_path / "other.gguf").write_bytes(content)

    with pytest.raises(ConversionError, match=r"other\.gguf is the importance matrix of another model"):
        quantize(bf16, tmp_path / "out.gguf", QUANTIZATIONS["Q4_K_M"], imatrix=tmp_path / "other.gguf")
    experts = DATA / "quantize" / "imatrix-experts.gguf"
    with pytest.raises(ConversionError, match=r"imatrix size|another model"):
        quantize(bf16, tmp_path / "out.gguf", QUANTIZATIONS["Q4_K_M"], imatrix=experts, threads=1)
    (tmp_path / "no.dat").write_bytes(b"nothing")
    with pytest.raises(InvalidContentError):
        quantize(bf16, tmp_path / "out.gguf", QUANTIZATIONS["Q4_K_M"], imatrix=tmp_path / "no.dat")

    assert not (tmp_path / "out.gguf").exists()


def test_a_pattern_that_is_none_is_said_in_llama_cpps_words(bf16: Path, tmp_path: Path) -> None:
    recipe = Recipe((parse_tensor_rule("ffn_(=Q8_0"),))

    with pytest.raises(ConversionError, match=r"refused quantizing tiny\.gguf to Q4_K_M"):
        quantize(bf16, tmp_path / "out.gguf", QUANTIZATIONS["Q4_K_M"], recipe=recipe, threads=1)


@pytest.mark.parametrize("text", ["", "ffn", "=Q8_0", "x" * 600 + "=Q8_0"])
def test_a_rule_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError):
        parse_tensor_rule(text)


@pytest.mark.parametrize("name", ["Q4_K_M", "I32", "q9", ""])
def test_tensors_have_types_and_files_have_mixtures(name: str) -> None:
    with pytest.raises(UnknownQuantizationError, match="there is no tensor type"):
        parse_tensor_type(name)
