"""Importance matrices computed here, against those of llama-imatrix on the same text."""

from pathlib import Path

import numpy as np
import pytest
from fakes.checkpoints import write_checkpoint

from modelpack.convert import Checkpoint, plan_conversion, run_conversion
from modelpack.engine.imatrix import compute_imatrix
from modelpack.errors import InvalidInputError, NotFoundError
from modelpack.imatrix import ImportanceMatrix
from modelpack.quality import CALIBRATION_TEXT, EVALUATION_TEXT
from modelpack.quantize import QUANTIZATIONS, quantize

RECORDS = Path(__file__).parent.parent / "data" / "quantize"

pytestmark = pytest.mark.llama


def assert_equal(ours: Path, recorded: Path) -> None:
    matrix, expected = ImportanceMatrix.load(ours), ImportanceMatrix.load(recorded)
    assert matrix.entries.keys() == expected.entries.keys()
    assert (matrix.chunk_count, matrix.chunk_size) == (expected.chunk_count, expected.chunk_size)
    for name, entry in expected.entries.items():
        np.testing.assert_array_equal(matrix.entries[name].counts, entry.counts, name)
        np.testing.assert_allclose(matrix.entries[name].sums, entry.sums, rtol=1e-4, err_msg=name)


def test_a_dense_model_has_the_matrix_of_llama_imatrix(tiny_gguf: Path, tmp_path: Path) -> None:
    text = CALIBRATION_TEXT.read_text(encoding="utf-8")

    compute_imatrix(tiny_gguf, text, tmp_path / "m.gguf", dataset="calibration.txt", threads=1)

    assert_equal(tmp_path / "m.gguf", RECORDS / "imatrix.gguf")
    quantize(tiny_gguf, tmp_path / "iq1.gguf", QUANTIZATIONS["IQ1_S"], imatrix=tmp_path / "m.gguf", threads=1)


def test_a_model_with_experts_has_the_matrix_of_llama_imatrix(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_checkpoint("mixtral", tmp_path / "mixtral"))
    run_conversion(plan_conversion(checkpoint, name="mixtral"), tmp_path / "mixtral.gguf")
    text = EVALUATION_TEXT.read_text(encoding="utf-8")

    compute_imatrix(
        tmp_path / "mixtral.gguf", text, tmp_path / "m.gguf", dataset="evaluation.txt", context=256, threads=1
    )

    assert_equal(tmp_path / "m.gguf", RECORDS / "imatrix-experts.gguf")


def test_a_text_of_less_than_two_chunks_is_too_short(tiny_gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="a context of 256 needs 512"):
        compute_imatrix(tiny_gguf, "Hello!", tmp_path / "m.gguf", dataset="hello", threads=1)

    assert not (tmp_path / "m.gguf").exists()


def test_a_model_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        compute_imatrix(tmp_path / "none.gguf", "text", tmp_path / "m.gguf", dataset="text")
