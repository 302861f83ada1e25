"""build hf://...: through the real hub client, against a small server that answers the calls it makes."""

import json

import pytest
from fakes.hub import COMMIT, FakeHub, serve_hub

NAME = "acme/tiny-llama"


@pytest.fixture
def hub(tiny_checkpoint):
    files = {path.name: path.read_bytes() for path in tiny_checkpoint.iterdir() if path.name != "smoke.toml"}
    files |= {"pytorch_model.bin": b"pickle", "modeling_tiny.py": b"print('run me')", "original/x.pth": b"pickle"}
    with serve_hub(FakeHub({NAME: files})) as hub:
        yield hub


def settings(hub, **more):
    return {"HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", **more}


def test_a_hub_repository_is_pinned_to_its_commit_and_nothing_that_runs_is_fetched(modelpack, hub, home):
    result = modelpack("build", f"hf://{NAME}@main", "-t", "tiny:v1", "--quant", "Q8_0", env=settings(hub))

    assert result.code == 0, result.stderr
    assert not [path for path in hub.downloaded() if path.endswith((".bin", ".py", ".pth"))]
    shown = modelpack("inspect", "tiny:v1", "--json").json("inspect")
    assert shown["revision"] == COMMIT
    assert shown["source"] == f"https://huggingface.co/{NAME}"
    assert shown["licenses"] == ["Apache-2.0"]
    assert shown["annotations"]["org.opencontainers.image.created"] == "2026-01-02T03:04:05Z"
    assert {file["name"] for file in shown["files"]} == {"tiny-llama-Q8_0.gguf", "LICENSE", "README.md"}
    assert json.loads(modelpack("df", "--json").stdout)["partial_bytes"] == 0


def test_the_plan_of_a_hub_repository_fetches_no_weights(modelpack, hub):
    result = modelpack("build", f"hf://{NAME}", "-t", "tiny:v1", "--quant", "Q4_K_M", "--dry-run", "--json",
                       env=settings(hub))  # fmt: skip

    plan = result.json("build-plan")
    assert plan["revision"] == COMMIT
    assert plan["fetch_size"] > 1_800_000
    assert "model.safetensors" not in hub.downloaded()


def test_a_gated_repository_and_one_that_is_not_there_are_told_apart(modelpack, hub):
    hub.gated.add(NAME)
    gated = modelpack("build", f"hf://{NAME}", "-t", "tiny:v1", env=settings(hub))
    assert gated.code == 4
    assert "HF_TOKEN" in gated.stderr
    assert modelpack("build", f"hf://{NAME}", "-t", "tiny:v1", env=settings(hub, HF_TOKEN=hub.token)).code == 0

    missing = modelpack("build", "hf://acme/nothing", "-t", "tiny:v2", env=settings(hub))
    assert missing.code == 3, missing.stderr


def test_a_hub_that_does_not_answer_is_worth_a_retry(modelpack):
    env = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_DISABLE_XET": "1"}
    result = modelpack("build", f"hf://{NAME}", "-t", "tiny:v1", env=env)
    assert result.code == 5, result.stderr


def test_weights_that_are_not_what_the_hub_says_are_refused(modelpack, hub, home):
    hub.corrupt["model.safetensors"] = 99
    result = modelpack("build", f"hf://{NAME}", "-t", "tiny:v1", env=settings(hub))

    assert result.code == 6, result.stderr
    assert modelpack("list", "--json").json("list")["models"] == []
