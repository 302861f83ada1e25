"""llama.cpp computes with our files what transformers computes with the checkpoint."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.checkpoints import SYNTHETIC, write_checkpoint

from modelpack.convert import Checkpoint, plan_conversion, run_conversion

RECORDED = json.loads((Path(__file__).parent.parent.parent / "data/conversion/outputs.json").read_text("utf-8"))
CHILD = Path(__file__).with_name("outputs_of.py")

# Relative to the largest output. llama.cpp looks GELU up in a table of F16 values.
EXACT, WITH_GELU = 2e-5, 1e-3
SILU = (
    "llama",
    "qwen",
    "mistral",
    "mixtral",
    "smollm",
    "olmo",
    "granite",
    "phi-mini",
    "stablelm",
    "deepseek",
    "cohere",
)


def outputs(files: dict[str, Path]) -> dict[str, np.ndarray]:
    models = [{"path": str(path), "embeds": "embeddings" in RECORDED["models"][name]} for name, path in files.items()]
    job = json.dumps({"tokens": RECORDED["tokens"], "models": models})
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, str(CHILD)],
        input=job,
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return {name: np.array(rows) for name, rows in zip(files, json.loads(result.stdout), strict=True)}


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    directory = tmp_path_factory.mktemp("outputs")
    files = {}
    for name in RECORDED["models"]:
        checkpoint = Checkpoint.open(write_checkpoint(name, directory / name))
        files[name] = directory / f"{name}.gguf"
        run_conversion(plan_conversion(checkpoint, file_type="F32", name=name), files[name])
    return outputs(files)


def test_all_but_what_transformers_lacks_is_recorded() -> None:
    assert set(SYNTHETIC) - set(RECORDED["models"]) == {"nomic-bert"}


@pytest.mark.llama
@pytest.mark.parametrize("name", RECORDED["models"])
def test_llama_cpp_computes_what_transformers_does(computed: dict[str, Any], name: str) -> None:
    recorded = RECORDED["models"][name]
    wanted = np.array(recorded.get("logits") or recorded.get("embeddings"))
    difference = np.abs(computed[name][:, recorded["places"]] - wanted).max() / recorded["scale"]

    assert difference < (EXACT if name.startswith(SILU) or name.startswith("linear") else WITH_GELU)
