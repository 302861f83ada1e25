"""What a person does with models on their own machine, through the command line."""

import hashlib
import json
import os
import shutil

import gguf
import pytest

TINY_Q4 = ("--quant", "Q4_K_M")


@pytest.fixture
def built(modelpack, tiny_checkpoint):
    result = modelpack("build", tiny_checkpoint, "-t", "demo/tiny-llama:v1", *TINY_Q4, "--quant", "Q8_0", "--json")
    assert result.code == 0, result.stderr
    return result.json("build")["variants"]


def test_build_makes_a_variant_per_quantization_and_the_first_gets_the_tag_itself(modelpack, built):
    assert [variant["references"] for variant in built] == [
        ["demo/tiny-llama:v1", "demo/tiny-llama:v1-q4_k_m"],
        ["demo/tiny-llama:v1-q8_0"],
    ]
    assert [variant["file"]["name"] for variant in built] == ["tiny-llama-Q4_K_M.gguf", "tiny-llama-Q8_0.gguf"]
    models = modelpack("list", "--json").json("list")["models"]
    assert {model["reference"] for model in models} == {
        "demo/tiny-llama:v1",
        "demo/tiny-llama:v1-q4_k_m",
        "demo/tiny-llama:v1-q8_0",
    }
    assert {model["verified"] for model in models} == {"built here"}


def test_the_same_inputs_give_the_same_digest_in_another_folder_at_another_time_and_umask(
    modelpack, built, tiny_checkpoint, tmp_path
):
    copy = tmp_path / "elsewhere" / "checkpoint-under-another-name"
    shutil.copytree(tiny_checkpoint, copy)
    for path in copy.iterdir():
        os.utime(path, (1, 1))
    before = os.umask(0o077)
    try:
        again = modelpack(
            "build", copy, "-t", "demo/tiny-llama:v1", *TINY_Q4, "--quant", "Q8_0", "--json",
            "--store", tmp_path / "other-store",
            cwd=tmp_path / "elsewhere",
            env={"TZ": "Asia/Tokyo", "LANG": "C", "HOME": str(tmp_path / "elsewhere")},
        )  # fmt: skip
    finally:
        os.umask(before)
    assert again.code == 0, again.stderr
    assert again.json("build")["variants"] == built


def test_a_variant_is_the_same_alone_and_in_company(modelpack, built, tiny_checkpoint, tmp_path):
    alone = modelpack(
        "build", tiny_checkpoint, "-t", "demo/tiny-llama:v1", "--quant", "Q8_0", "--json", "--store", tmp_path / "other"
    )
    assert alone.json("build")["variants"][0]["digest"] == built[1]["digest"]


def test_source_date_epoch_is_the_time_that_an_artifact_speaks_of(modelpack, tiny_checkpoint):
    modelpack("build", tiny_checkpoint, "-t", "a:v1", *TINY_Q4, env={"SOURCE_DATE_EPOCH": "1700000000"})

    annotations = modelpack("inspect", "a:v1", "--json").json("inspect")["annotations"]
    assert annotations["org.opencontainers.image.created"] == "2023-11-14T22:13:20Z"


def test_a_dry_run_prints_the_plan_and_writes_nothing(modelpack, tiny_checkpoint, home):
    result = modelpack("build", tiny_checkpoint, "-t", "a:v1", *TINY_Q4, "--dry-run", "--json")

    plan = result.json("build-plan")
    assert plan["architecture"] == "llama"
    assert plan["variants"][0]["references"] == ["a:v1", "a:v1-q4_k_m"]
    assert plan["peak_disk"] > plan["intermediate_size"] > 1_000_000
    assert not (home / ".local").exists()


def test_a_gguf_file_can_be_packaged_as_it_is(modelpack, built, home, tmp_path):
    digest = built[1]["file"]["digest"].removeprefix("sha256:")
    gguf = tmp_path / "some model.gguf"
    shutil.copy(home / ".local/share/modelpack/blobs/sha256" / digest, gguf)

    result = modelpack("build", gguf, "-t", "copy:v1", "--json")

    assert result.code == 0, result.stderr
    assert result.json("build")["variants"][0]["file"]["digest"] == f"sha256:{digest}"
    assert gguf.exists()
    again = modelpack("build", gguf, "-t", "copy:v2", "--quant", "Q4_K_M")
    assert again.code == 2
    assert "is quantized as Q8_0 already" in again.stderr
    assert modelpack("build", gguf, "-t", "copy:v2", "--quant", "Q4_K_M", "--allow-requantize").code == 0
    shown = modelpack("inspect", "copy:v2", "--json").json("inspect")["annotations"]
    assert (shown["dev.modelpack.intermediate"], shown["dev.modelpack.file-type"]) == ("Q8_0", "Q4_K_M")


def test_the_docker_format_carries_the_context_size_over_the_same_weights(modelpack, built, tiny_checkpoint):
    result = modelpack(
        "build", tiny_checkpoint, "-t", "demo/tiny-llama:docker", *TINY_Q4, "--format", "docker", "--json"
    )

    assert result.code == 0, result.stderr
    assert result.json("build")["variants"][0]["file"] == built[0]["file"]
    shown = modelpack("inspect", "demo/tiny-llama:docker", "--json").json("inspect")
    assert shown["context_length"] == 256


def test_inspect_prints_the_manifests_own_bytes(modelpack, built):
    raw = modelpack("inspect", "tiny-llama:v1", "--raw").stdout

    assert "sha256:" + hashlib.sha256(raw.encode()).hexdigest() == built[0]["digest"]
    assert json.loads(raw)["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"


def test_inspect_reads_a_gguf_file_by_our_own_parser(modelpack, built, home, tmp_path):
    digest = built[0]["file"]["digest"].removeprefix("sha256:")
    gguf = tmp_path / "m.gguf"
    shutil.copy(home / ".local/share/modelpack/blobs/sha256" / digest, gguf)

    shown = modelpack("inspect", f"file:{gguf}", "--json").json("inspect-gguf")

    assert (shown["architecture"], shown["file_type"], shown["parameters"]) == ("llama", "Q4_K_M", 918_784)
    assert shown["metadata"]["tokenizer.ggml.tokens"]["length"] == 512


def test_inspect_answers_in_json_whatever_numbers_a_gguf_file_holds(modelpack, tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_float32("x.nan", float("nan"))
    writer.add_array("x.several", [1.5, float("-inf")])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    result = modelpack("inspect", f"file:{tmp_path / 'm.gguf'}", "--json")

    assert result.code == 0, result.stderr
    shown = json.loads(result.stdout, parse_constant=pytest.fail)["metadata"]
    assert (shown["x.nan"], shown["x.several"]["head"]) == ("nan", [1.5, "-inf"])


def test_a_tag_is_another_name_for_the_same_bytes_and_rm_takes_it_away(modelpack, built):
    tagged = modelpack("tag", "tiny-llama:v1", "mine:latest", "--json").json("tag")
    assert tagged["digest"] == built[0]["digest"]

    before = modelpack("df", "--json").json("df")
    removed = modelpack("rm", "demo/tiny-llama:v1", "demo/tiny-llama:v1-q4_k_m", "--json").json("rm")
    assert removed == {"removed": ["demo/tiny-llama:v1", "demo/tiny-llama:v1-q4_k_m"], "bytes": 0}
    assert modelpack("df", "--json").json("df")["bytes"] == before["bytes"]

    freed = modelpack("rm", "mine:latest", "--json").json("rm")["bytes"]
    assert freed > 500_000
    assert modelpack("list", "--json").json("list")["models"][0]["reference"] == "demo/tiny-llama:v1-q8_0"


def test_prune_takes_nothing_that_a_tag_needs(modelpack, built):
    pruned = modelpack("prune", "--json").json("prune")

    assert pruned["bytes"] == 0
    assert modelpack("inspect", "tiny-llama:v1").code == 0


def test_list_and_version_and_status_answer_in_words_and_in_json(modelpack, built):
    table = modelpack("list").stdout.splitlines()
    assert table[0].split() == ["MODEL", "VARIANT", "SIZE", "DIGEST", "VERIFIED"]
    assert len(table) == 4
    assert modelpack("version", "--json").json("version")["modelpack"]
    status = modelpack("status", "--json").json("status")
    assert status["store"]["models"] == 3
    assert "CPU" in status["llama_cpp"]["system"]
    assert modelpack("completion", "bash", "--json").json("completion")["shell"] == "bash"
