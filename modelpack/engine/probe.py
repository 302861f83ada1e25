"""What the installed llama.cpp can use, asked in a child process: loading a GPU driver can end the one that does it."""

import json
import subprocess
import sys
from dataclasses import dataclass

from modelpack.engine.process import clean_environment
from modelpack.errors import WorkerCrashedError, WorkerTimeoutError

_TIMEOUT = 60.0


@dataclass(frozen=True, slots=True)
class Backend:
    """``gpu`` is whether layers can be offloaded here; ``system`` is llama.cpp's own line about its backends."""

    version: str
    gpu: bool
    system: str


def probe() -> Backend:
    """Raises WorkerCrashedError, WorkerTimeoutError."""
    try:
        result = subprocess.run(
            [sys.executable, "-P", "-m", __name__],
            env=clean_environment(),
            capture_output=True,
            timeout=_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise WorkerTimeoutError(f"llama.cpp did not say what it can use within {_TIMEOUT:.0f} s") from error
    if result.returncode:
        last = result.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise WorkerCrashedError(f"llama.cpp cannot be loaded: {last[:500] or f'exit {result.returncode}'}")
    # llama.cpp may have its say on stdout, too; ours is the last line.
    answer = json.loads(result.stdout.decode("utf-8", "replace").strip().rpartition("\n")[2])
    return Backend(answer["version"], answer["gpu"], answer["system"])


def main() -> None:
    from importlib import import_module
    from typing import Any

    llama_cpp: Any = import_module("llama_cpp")
    llama_cpp.llama_backend_init()
    answer = {
        "version": llama_cpp.__version__,
        "gpu": bool(llama_cpp.llama_supports_gpu_offload()),
        "system": llama_cpp.llama_print_system_info().decode("utf-8", "replace").strip(),
    }
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
