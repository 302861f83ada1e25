"""Quantization with options and importance matrices, against what llama-quantize made with the same ones."""

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from fakes.checkpoints import write_checkpoint

from modelpack.convert import Checkpoint, plan_conversion, run_conversion
from modelpack.errors import ConversionError, InvalidContentError, InvalidInputError, UnknownQuantizationError
from modelpack.gguf_header import read_header
from modelpack.gguf_shards import plan_shards, write_shards
from modelpack.quantize import QUANTIZATIONS, Recipe, parse_tensor_rule, parse_tensor_type, quantize

DATA = Path(__file__).parent.parent / "data"
RECORDS: dict[str, Any] = json.loads((DATA / "quantize" / "records.json").read_text(encoding="utf-8"))

pytestmark = pytest.mark.llama


@pytest.fixture(scope="module")
def bf16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    run_conversion(plan_conversion(Checkpoint.open(DATA / "tiny-llama"), name="tiny-llama"), path)
    return path


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experts")
    checkpoint = Checkpoint.open(write_checkpoint("mixtral", folder / "mixtral"))
    run_conversion(plan_conversion(checkpoint, name="mixtral"), folder / "mixtral.gguf")
    return folder / "mixtral.gguf"


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
        "--allow-requantize" in options,
    )
    return recipe, DATA / "quantize" / values["--imatrix"] if "--imatrix" in values else None


@pytest.mark.parametrize("record", RECORDS["quantized"], ids=lambda one: " ".join([one["type"], *one["options"]]))
def test_the_bytes_are_those_of_llama_quantize(bf16: Path, tmp_path: Path, record: dict[str, Any]) -> None:
    recipe, imatrix = read_options(record["options"])

    quantize(bf16, tmp_path / "out.gguf", QUANTIZATIONS[record["type"]], recipe=recipe, imatrix=imatrix, threads=1)

    assert hashlib.sha256((tmp_path / "out.gguf").read_bytes()).hexdigest() == record["sha256"]


@pytest.mark.parametrize("record", RECORDS["experts"], ids=lambda one: " ".join([one["type"], *one["options"]]))
def test_each_expert_is_quantized_by_its_own_part_of_the_matrix(
    experts: Path, tmp_path: Path, record: dict[str, Any]
) -> None:
    _, imatrix = read_options(record["options"])

    quantize(experts, tmp_path / "out.gguf", QUANTIZATIONS[record["type"]], imatrix=imatrix, threads=2)

    assert hashlib.sha256((tmp_path / "out.gguf").read_bytes()).hexdigest() == record["sha256"]


@pytest.mark.parametrize(
    "record", RECORDS["requantized"], ids=lambda one: " ".join([*one["source"][:1], one["type"], *one["options"]])
)
@pytest.mark.parametrize("buffer_size", [1, 64 << 20], ids=["row by row", "at once"])
def test_what_is_quantized_already_becomes_what_llama_quantize_makes_of_it(
    bf16: Path, experts: Path, tmp_path: Path, record: dict[str, Any], buffer_size: int
) -> None:
    first, options = record["source"]
    models, source, out = {"tiny.gguf": bf16, "mixtral.gguf": experts}, tmp_path / "source.gguf", tmp_path / "out.gguf"
    quantize(models[record["model"]], source, QUANTIZATIONS[first], recipe=read_options(options)[0])
    recipe, imatrix = read_options(record["options"])

    quantize(source, out, QUANTIZATIONS[record["type"]], recipe=recipe, imatrix=imatrix, buffer_size=buffer_size)

    assert hashlib.sha256(out.read_bytes()).hexdigest() == record["sha256"]


def test_weights_that_would_lose_twice_are_refused_by_name_and_those_that_keep_their_type_are_not(
    experts: Path, tmp_path: Path
) -> None:
    source, out = tmp_path / "source.gguf", tmp_path / "out.gguf"
    quantize(experts, source, QUANTIZATIONS["MXFP4_MOE"])
    keeping = Recipe((parse_tensor_rule("_exps=mxfp4"), parse_tensor_rule("weight=q8_0")), "Q8_0", "Q8_0")

    quantize(source, out, QUANTIZATIONS["Q5_0"], recipe=keeping)
    assert {tensor.type for tensor in read_header(out).tensors} == {"F32", "MXFP4", "Q8_0"}

    out.unlink()
    changing = Recipe((parse_tensor_rule("weight=q8_0"),), "Q8_0", "Q8_0")
    with pytest.raises(
        ConversionError, match=r"source\.gguf is quantized already \(MXFP4\), and blk\.0\.ffn_down_exps\.weight"
    ):
        quantize(source, out, QUANTIZATIONS["Q5_0"], recipe=changing)
    assert list(tmp_path.iterdir()) == [source]


CUT = [one for one in RECORDS["quantized"] if one["options"] in ([], ["--imatrix", "imatrix.gguf"])]


@pytest.mark.parametrize("record", CUT, ids=lambda one: " ".join([one["type"], *one["options"]]))
@pytest.mark.parametrize("buffer_size", [1, 20_000], ids=["row by row", "a few rows at a time"])
def test_where_the_rows_are_cut_does_not_matter(
    bf16: Path, tmp_path: Path, record: dict[str, Any], buffer_size: int
) -> None:
    recipe, imatrix = read_options(record["options"])
    wanted = QUANTIZATIONS[record["type"]]

    out = tmp_path / "out.gguf"
    quantize(bf16, out, wanted, recipe=recipe, imatrix=imatrix, threads=3, buffer_size=buffer_size)

    assert hashlib.sha256(out.read_bytes()).hexdigest() == record["sha256"]


def test_shards_become_one_file_that_does_not_speak_of_them(bf16: Path, tmp_path: Path) -> None:
    first, *_ = write_shards(bf16, plan_shards(bf16, 300_000), tmp_path / "tiny")
    wanted = next(one["sha256"] for one in RECORDS["quantized"] if (one["type"], one["options"]) == ("Q4_K_M", []))

    quantize(first, tmp_path / "out.gguf", QUANTIZATIONS["Q4_K_M"], threads=1)

    assert hashlib.sha256((tmp_path / "out.gguf").read_bytes()).hexdigest() == wanted


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
