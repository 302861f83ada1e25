import json
from pathlib import Path
from typing import Any

import pytest

from modelpack.convert import Checkpoint, plan_conversion, run_conversion


@pytest.fixture(scope="session")
def tiny_gguf(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint, converted as it is (BF16)."""
    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    run_conversion(plan_conversion(Checkpoint.open(tiny_checkpoint)), path)
    return path


@pytest.fixture(scope="session")
def expected(tiny_checkpoint: Path) -> list[dict[str, Any]]:
    """What the tiny checkpoint answers at temperature 0: ``kind`` (chat or completion), ``prompt``, ``answer``."""
    pairs: list[dict[str, Any]] = json.loads((tiny_checkpoint / "expected.json").read_text(encoding="utf-8"))["pairs"]
    return pairs
