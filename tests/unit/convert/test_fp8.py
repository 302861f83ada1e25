"""FP8 weights with a scale for each block."""

import json
from pathlib import Path

import numpy as np
import pytest
from fakes.checkpoints import write_checkpoint, write_weights

from modelpack.convert import Checkpoint, plan_conversion
from modelpack.convert.fp8 import scaled
from modelpack.convert.tensor import Tensor
from modelpack.errors import InvalidCheckpointError

CODES = {0x00: 0.0, 0x01: 2**-9, 0x08: 2**-6, 0x38: 1.0, 0x3C: 1.5, 0x7E: 448.0, 0xB8: -1.0, 0xFE: -448.0}


def tensor(values: np.ndarray, dtype: str) -> Tensor:
    return Tensor(values.shape, dtype, lambda start, stop: values[start:stop])


def test_every_code_means_what_the_paper_says() -> None:
    codes = np.array([list(CODES)], "u1")
    result = scaled("x", tensor(codes, "F8_E4M3"), tensor(np.ones((1, 1), "<f4"), "F32"), (128, 128)).read(0, 1)

    assert result.tolist() == [list(CODES.values())]
    nan = scaled("x", tensor(np.array([[0x7F]], "u1"), "F8_E4M3"), tensor(np.ones((1, 1), "<f4"), "F32"), (1, 1))
    assert np.isnan(nan.read(0, 1)).all()


def test_each_block_has_its_own_scale_wherever_reading_begins() -> None:
    weights = np.full((5, 7), 0x38, "u1")
    scales = np.arange(1, 13, dtype="<f4").reshape(3, 4)
    result = scaled("x", tensor(weights, "F8_E4M3"), tensor(scales, "F32"), (2, 2))

    whole = np.repeat(np.repeat(scales, 2, axis=0), 2, axis=1)[:5, :7]
    for start in range(5):
        for stop in range(start + 1, 6):
            assert np.array_equal(result.read(start, stop), whole[start:stop])


def fp8_checkpoint(directory: Path, scale: tuple[int, ...] = (1, 1)) -> Path:
    write_checkpoint("llama-bpe", directory)
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (directory / "config.json").write_text(json.dumps(config))
    weights = {}
    for name, stored in Checkpoint.open(directory).tensors.items():
        is_matrix = len(stored.shape) == 2 and "_proj" in name
        weights[name] = (
            ("F8_E4M3", np.full(stored.shape, 0x3C, "u1")) if is_matrix else ("BF16", np.zeros(stored.shape, "<u2"))
        )
        if is_matrix:
            weights[f"{name}_scale_inv"] = ("F32", np.full(scale, 2.0, "<f4"))
    write_weights(directory, weights)
    return directory


def test_a_checkpoint_in_fp8_becomes_bf16(tmp_path: Path) -> None:
    plan = plan_conversion(Checkpoint.open(fp8_checkpoint(tmp_path)))
    up = next(planned for planned in plan.tensors if planned.name == "blk.0.ffn_up.weight")

    assert (plan.file_type, up.type) == ("BF16", "BF16")
    assert (up.tensor.read(0, up.tensor.rows) == 3.0).all()


def test_scales_of_another_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidCheckpointError, match=r"no F32 scales of the shape \[1, 1\]"):
        plan_conversion(Checkpoint.open(fp8_checkpoint(tmp_path, scale=(2, 1))))
