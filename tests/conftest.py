"""What all tests share: an empty home, the tiny checkpoint, and the command line as a person starts it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from modelpack import schemas

DATA = Path(__file__).parent / "data"
TINY_LLAMA = DATA / "tiny-llama"

# How long an example takes says how busy the machine is.
settings.register_profile("modelpack", deadline=None)
settings.load_profile("modelpack")

# A shell that starts the tests in the background has them, and all that they start, ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What would make a test depend on whose machine it runs on.
_FOREIGN = ("MODELPACK_", "HF_", "XDG_", "DOCKER_", "REGISTRY_", "COSIGN_", "http_", "https_", "HTTP", "NO_", "no_")


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    def json(self, schema: str) -> dict[str, Any]:
        """The answer, checked against its published schema."""
        document: dict[str, Any] = json.loads(self.stdout)
        assert schemas.violations(f"cli/{schema}", document) == []
        return document


Command = Callable[..., Result]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "home"
    path.mkdir()
    return path


@pytest.fixture
def environment(home: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(_FOREIGN)}
    return {**kept, "HOME": str(home), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}


@pytest.fixture
def modelpack(environment: dict[str, str], tmp_path: Path) -> Command:
    """Runs ``modelpack ...`` in a process of its own, in an empty home, and waits for its end."""

    def run(
        *arguments: object, env: Mapping[str, str] | None = None, stdin: str = "", cwd: Path | None = None
    ) -> Result:
        process = subprocess.run(
            [sys.executable, "-m", "modelpack", *map(str, arguments)],
            env={**environment, **(env or {})},
            cwd=cwd or tmp_path,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return Result(process.returncode, process.stdout, process.stderr)

    return run


@pytest.fixture(scope="session")
def tiny_checkpoint() -> Path:
    return TINY_LLAMA


@pytest.fixture
def key_pair(modelpack: Command, tmp_path: Path) -> tuple[Path, Path]:
    """A signing key whose password is empty, and its public half."""
    result = modelpack("keygen", "--out", tmp_path / "author", "--no-password")
    assert result.code == 0, result.stderr
    return tmp_path / "author.key", tmp_path / "author.pub"
