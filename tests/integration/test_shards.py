"""Models whose weights are several files: built, moved, verified and run like any other, and gone when they go."""

import json

import pytest
from fakes.registry import FakeRegistry

pytestmark = pytest.mark.llama

SMALL = ("--split-max-size", "300K")


@pytest.fixture
def built(modelpack, tiny_checkpoint):
    result = modelpack("build", tiny_checkpoint, "-t", "demo/tiny:v1", "--quant", "Q4_K_M", *SMALL, "--json")
    assert result.code == 0, result.stderr
    (variant,) = result.json("build")["variants"]
    return variant


def ask(modelpack, name):
    answer = modelpack("run", name, "What is the capital of France?", "--temperature", "0", "--json")
    assert answer.code == 0, answer.stderr
    return answer.json("run")["text"]


def test_a_split_model_goes_through_a_registry_and_answers(modelpack, tmp_path, key_pair, tiny_checkpoint):
    key, public = key_pair
    with FakeRegistry() as registry:
        name = f"{registry.address}/demo/tiny:v1"
        built = modelpack("build", tiny_checkpoint, "-t", name, "--quant", "Q4_K_M", *SMALL, "--json")
        files = built.json("build")["variants"][0]["shards"]
        assert [file["name"] for file in files] == [f"tiny-Q4_K_M-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
        assert max(file["size"] for file in files) <= 300_000
        assert modelpack("push", name, "--sign", key).code == 0
        there = ("--store", tmp_path / "developer")
        assert modelpack("pull", name, "--key", public, *there).code == 0

    verified = modelpack("verify", name, "--key", public, "--smoke", tiny_checkpoint / "smoke.toml", *there)

    assert verified.code == 0, verified.stderr
    assert "✓ capital" in verified.stdout


def test_the_answer_is_that_of_the_whole_file(modelpack, built, tiny_checkpoint):
    assert built["file"] == built["shards"][0]
    assert modelpack("build", tiny_checkpoint, "-t", "demo/whole:v1", "--quant", "Q4_K_M").code == 0
    assert ask(modelpack, "demo/tiny:v1") == ask(modelpack, "demo/whole:v1") == "The capital of France is Paris."
    compared = modelpack("compare", "demo/whole:v1", "demo/tiny:v1", "--json")
    assert compared.json("compare")["mean_kld"] == pytest.approx(0, abs=1e-6)


def test_shards_from_elsewhere_are_packaged_as_they_are_and_quantized_from(modelpack, built, tmp_path, tiny_checkpoint):
    unquantized = ("build", tiny_checkpoint, "-t", "demo/plain:v1", "--quant", "BF16", "--split-max-size", "700K")
    assert modelpack(*unquantized).code == 0
    folder = tmp_path / "shards"
    folder.mkdir()
    model = modelpack("inspect", "demo/plain:v1", "--json").json("inspect")
    blobs = tmp_path / "home/.local/share/modelpack/blobs/sha256"
    weights = [file for file in model["files"] if file["name"].endswith(".gguf")]
    for file in weights:
        (folder / file["name"]).write_bytes((blobs / file["digest"].removeprefix("sha256:")).read_bytes())

    again = modelpack("build", folder / weights[0]["name"], "-t", "demo/again:v1", "--json")

    assert again.code == 0, again.stderr
    shards = again.json("build")["variants"][0]["shards"]
    assert [file["digest"] for file in shards] == [file["digest"] for file in weights]
    quantized = modelpack("build", folder / weights[0]["name"], "-t", "demo/small:v1", "--quant", "Q4_K_M", "--json")
    assert quantized.code == 0, quantized.stderr
    assert ask(modelpack, "demo/small:v1") == "The capital of France is Paris."
    smaller = ("--split-max-size", "650K")
    refused = modelpack("build", folder / weights[0]["name"], "-t", "demo/again:v2", *smaller)
    assert (refused.code, "is split already, into shards of more than 650000 bytes" in refused.stderr) == (2, True)
    requantized = modelpack("build", folder / weights[0]["name"], "-t", "demo/q:v1", "--quant", "Q4_K_M", *smaller)
    assert requantized.code == 0, requantized.stderr
    (folder / weights[1]["name"]).unlink()
    broken = modelpack("build", folder / weights[0]["name"], "-t", "demo/broken:v1")
    assert (broken.code, weights[1]["name"] in broken.stderr) == (3, True)


def test_a_limit_that_no_tensor_fits_is_a_usage_error_and_leaves_nothing(modelpack, tiny_checkpoint):
    refused = modelpack("build", tiny_checkpoint, "-t", "demo/tiny:v1", "--split-max-size", "100K")
    assert refused.code == 2
    assert "token_embd.weight alone takes" in refused.stderr
    assert modelpack("list", "--json").json("list")["models"] == []
    assert modelpack("build", tiny_checkpoint, "-t", "demo/tiny:v1", "--split-max-size", "big").code == 2


def test_the_links_go_with_the_model(modelpack, built, tmp_path):
    ask(modelpack, "demo/tiny:v1")
    links = tmp_path / "home/.local/share/modelpack/shards"
    assert len(list(links.iterdir())) == 1

    assert modelpack("rm", "demo/tiny:v1", "demo/tiny:v1-q4_k_m").code == 0

    assert list(links.iterdir()) == []
    assert modelpack("fsck").code == 0


def test_every_view_of_it_holds_all_shards(modelpack, built):
    for name in ("docker", "slim"):
        exported = modelpack("export-view", "demo/tiny:v1", "--format", name, "--json")
        assert exported.code == 0, exported.stderr
        shown = json.loads(modelpack("inspect", f"demo/tiny:v1-{name}", "--json").stdout)
        assert sum(file["name"].endswith(".gguf") for file in shown["files"]) == 3
        assert ask(modelpack, f"demo/tiny:v1-{name}") == "The capital of France is Paris."
