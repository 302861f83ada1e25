"""build with gates and importance matrices, compare, and converter, as a person types them."""

import json
import re
import shutil

import pytest

pytestmark = pytest.mark.llama


def test_a_variant_of_few_bits_is_built_with_a_matrix_and_measured(modelpack, tiny_checkpoint):
    result = modelpack(
        "build", tiny_checkpoint, "-t", "tiny:v1", "--quant", "IQ2_M", "--imatrix-from", "builtin",
        "--gate", "IQ2_M:max_kld=2", "--tensor-type", "ffn_down=Q6_K", "--json",
    )  # fmt: skip

    assert result.code == 0, result.stderr
    variant = result.json("build")["variants"][0]
    assert 0 < variant["quality"]["mean_kld"] < 2
    shown = modelpack("inspect", "tiny:v1", "--json").json("inspect")["annotations"]
    assert shown["dev.modelpack.imatrix"] == variant["imatrix"]
    assert float(shown["dev.modelpack.quality.mean-kld"]) == pytest.approx(variant["quality"]["mean_kld"], rel=0.01)
    assert shown["dev.modelpack.file-type"] == "IQ2_M"
    assert shown["dev.modelpack.architecture"] == "llama"
    assert shown["dev.modelpack.intermediate"] == "BF16"
    assert "Q6_K:2" in shown["dev.modelpack.tensor-types"].split(",")


def test_a_variant_that_lost_too_much_is_not_tagged(modelpack, tiny_checkpoint):
    result = modelpack(
        "build", tiny_checkpoint, "-t", "tiny:v1", "--quant", "Q8_0", "--quant", "Q2_K",
        "--gate", "Q8_0:max_kld=0.1", "--gate", "Q2_K:min_top1=0.999",
    )  # fmt: skip

    assert result.code == 7, result.stderr
    assert "Q2_K lost too much: it agrees on" in result.stderr
    assert modelpack("list", "--json").json("list")["models"] == []


def test_few_bits_without_a_matrix_and_gates_that_mean_nothing_are_refused_at_once(modelpack, tiny_checkpoint):
    few = modelpack("build", tiny_checkpoint, "-t", "tiny:v1", "--quant", "IQ1_S")
    assert few.code == 1
    assert "IQ1_S needs an importance matrix" in few.stderr
    odd = modelpack("build", tiny_checkpoint, "-t", "tiny:v1", "--quant", "Q8_0", "--gate", "quality=high")
    assert odd.code == 2
    unknown = modelpack("build", tiny_checkpoint, "-t", "tiny:v1", "--quant", "Q8_0", "--output-tensor-type", "Q9")
    assert unknown.code == 2
    missing = modelpack("build", tiny_checkpoint, "-t", "tiny:v1", "--quant", "Q8_0", "--imatrix", "none.gguf")
    assert missing.code == 3


def test_stored_models_are_compared_and_gated(modelpack, tiny_checkpoint):
    assert modelpack("build", tiny_checkpoint, "-t", "tiny:v1", "--quant", "BF16", "--quant", "Q4_K_M").code == 0

    result = modelpack("compare", "tiny:v1", "tiny:v1-q4_k_m", "--context", "128", "--threads", "1", "--json")
    document = result.json("compare")
    assert document["template_sha256"]["base"] == document["template_sha256"]["variant"] is not None
    assert document["context"] == 128
    assert 0 < document["mean_kld"] < 0.2
    assert document["same_top"] > 0.9

    failed = modelpack("compare", "tiny:v1", "tiny:v1-q4_k_m", "--threads", "1", "--gate", "max_kld=0.0001")
    assert failed.code == 7, failed.stderr
    assert modelpack("compare", "tiny:v1", "none:v1").code == 3


def test_a_converter_that_is_not_installed_is_told_and_asked_for(modelpack, tiny_checkpoint, tmp_path):
    status = modelpack("converter", "status", "--json").json("converter")
    assert status["installed"] is False
    assert status["release"] is None

    checkpoint = tmp_path / "rare"
    checkpoint.mkdir()
    for path in tiny_checkpoint.iterdir():
        (checkpoint / path.name).write_bytes(path.read_bytes())
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"architectures": ["MptForCausalLM"]}))
    result = modelpack("build", checkpoint, "-t", "rare:v1")
    assert result.code == 1
    assert "MptForCausalLM" in result.stderr
    assert "LlamaForCausalLM" in result.stderr
    assert "modelpack converter install" in result.stderr


def test_half_precision_alone_is_converted_to_at_once(modelpack, tiny_checkpoint):
    alone = modelpack("build", tiny_checkpoint, "-t", "tiny:v1", "--quant", "F16")
    beside = modelpack("build", tiny_checkpoint, "-t", "tiny:v2", "--quant", "F16", "--quant", "BF16")

    assert (alone.code, beside.code) == (0, 0), alone.stderr + beside.stderr
    shown = [modelpack("inspect", name, "--json").json("inspect")["annotations"] for name in ("tiny:v1", "tiny:v2")]
    assert [one["dev.modelpack.file-type"] for one in shown] == ["F16", "F16"]
    assert [one.get("dev.modelpack.intermediate") for one in shown] == [None, "BF16"]
    listed = {one["reference"] for one in modelpack("list", "--json").json("list")["models"]}
    assert listed == {"tiny:v1", "tiny:v1-f16", "tiny:v2", "tiny:v2-f16", "tiny:v2-bf16"}


def test_a_deep_build_refuses_a_checkpoint_with_a_weight_that_is_no_number(modelpack, tiny_checkpoint, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_checkpoint, broken)
    weights = broken / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-2:] = b"\xc0\x7f"  # the last BF16 of the file becomes a NaN
    weights.write_bytes(content)

    refused = modelpack("build", broken, "-t", "tiny:v1", "--deep")
    assert refused.code == 1, refused.stderr
    assert "holds a NaN" in refused.stderr
    assert modelpack("list", "--json").json("list")["models"] == []

    assert modelpack("build", tiny_checkpoint, "-t", "tiny:v1", "--deep").code == 0
    for arguments in ((tiny_checkpoint, "--converter", "upstream"), (tmp_path / "model.gguf",)):
        (tmp_path / "model.gguf").touch()
        elsewhere = modelpack("build", *arguments, "-t", "tiny:v2", "--deep")
        assert "a deep look" in elsewhere.stderr


def test_a_tokenizer_that_llama_cpp_does_not_have_stops_the_build_unless_that_is_allowed_and_recorded(
    modelpack, tiny_checkpoint, tmp_path
):
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, checkpoint)
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFKC"}, tokenizer["normalizer"]]}
    (checkpoint / "tokenizer.json").write_text(json.dumps(tokenizer))

    refused = modelpack("build", checkpoint, "-t", "demo/odd:v1", "--json")
    allowed = modelpack("build", checkpoint, "-t", "demo/odd:v1", "--allow-tokenizer-mismatch", "--json")

    assert refused.code == 1
    error = json.loads(refused.stdout)["error"]
    assert error["code"] == "conversion.tokenizer-mismatch"
    assert "--allow-tokenizer-mismatch" in error["hint"]
    assert allowed.code == 0, allowed.stderr
    assert "warning: llama.cpp tokenizes" in allowed.stderr
    (share,) = re.findall(r"tokenizes (\d+) of (\d+) texts", allowed.stderr)
    shown = modelpack("inspect", "demo/odd:v1", "--json").json("inspect")
    assert shown["annotations"]["dev.modelpack.tokenizer-mismatch"] == "/".join(share)
