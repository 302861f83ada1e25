"""checkpoint -> GGUF by upstream's converter: planned from headers, run as a caged child, its result checked."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from modelpack.errors import (
    ConversionError,
    UnknownArchitectureError,
    UnsupportedError,
    WorkerCrashedError,
    WorkerTimeoutError,
)
from modelpack.gguf_header import GGUFHeader, read_header
from modelpack.progress import SILENT, Progress
from modelpack.upstream.environment import UpstreamEnvironment

MEMORY_LIMIT = 64 << 30
"""Bytes of data that the converter may own: it was seen to need 2.5 times the largest tensor in F32."""

# What a converter reads; pickles and code are no part of it.
_SAFE_SUFFIXES = (".safetensors", ".json", ".model", ".txt", ".jinja", ".tiktoken", ".md")
_KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")
_FILE_TYPES = ("F32", "F16", "BF16")
_MAX_LOG_LINE = 4096

# What upstream only warns of, and what makes models that load and talk nonsense.
_FATAL_WARNINGS = re.compile(
    r"pre-tokenizer was not recognized|no merges found|Unknown RoPE type|Bad type for chat_template"
    r"|ignore tokens? (from )?\d+: id is out of range|out of range, must be under"
)
_NOT_SUPPORTED = re.compile(r"Model (\S+) is not supported")


@dataclass(frozen=True, slots=True)
class UpstreamPlan:
    """What upstream is asked for. Its own plan is not known before it runs: the sizes are those of the checkpoint."""

    environment: UpstreamEnvironment
    directory: Path
    name: str
    architecture: str
    """The checkpoint's name for it, such as ``MptForCausalLM``."""
    file_type: str
    parameters: int
    tensor_count: int
    output_size: int
    code: tuple[str, ...] = ()
    """Files of the checkpoint's own code that will be run."""


def plan_upstream(
    environment: UpstreamEnvironment,
    directory: Path,
    *,
    name: str,
    architecture: str,
    tensors: Iterable[tuple[str, int]],
    asks_for_code: bool = False,
    trust_code: bool = False,
) -> UpstreamPlan:
    """Plan for the checkpoint in ``directory``. ``tensors`` are the types (as safetensors spells them) and numbers of
    weights of its tensors, ``asks_for_code`` whether its configuration names classes of its own.

    Raises UnknownArchitectureError where the converter is not installed, and UnsupportedError for a checkpoint that
    wants its code to be run unless ``trust_code``.
    """
    if not environment.is_installed:
        raise UnknownArchitectureError(f"{architecture} is left to llama.cpp's own converter, which is not installed")
    code = tuple(sorted(path.name for path in directory.glob("*.py"))) if asks_for_code else ()
    if asks_for_code and not trust_code:
        raise UnsupportedError(
            f"{directory} wants code of its own to be run ({', '.join(code) or 'from another repository'}); "
            "only --trust-remote-code allows that"
        )
    stored = [(kind.upper(), count) for kind, count in tensors]
    parameters = sum(count for _, count in stored)
    # The type that most weights have; anything smaller than 16 bits is unpacked to BF16.
    most = max(_FILE_TYPES, key=lambda wanted: sum(count for kind, count in stored if kind == wanted))
    file_type = most if any(kind == most for kind, _ in stored) else "BF16"
    size = parameters * (4 if file_type == "F32" else 2)
    return UpstreamPlan(environment, directory, name, architecture, file_type, parameters, len(stored), size, code)


def run_upstream(
    plan: UpstreamPlan, target: Path, *, timeout: float = 24 * 3600, progress: Progress = SILENT
) -> GGUFHeader:
    """Convert to ``target``, which appears whole or not at all.

    The child sees links to the files that converters read, no code unless it is in the plan, an empty home, and, where
    the system allows it, no network. Raises UnknownArchitectureError, ConversionError, also for what upstream only
    warns of, WorkerCrashedError, WorkerTimeoutError.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".upstream-") as name:
        work = Path(name)
        # Upstream names a model after its folder where nothing else names it.
        staged = _stage(plan, work / "checkpoint" / plan.name)
        output = work / "output.gguf"
        run = _Run(plan, timeout)
        with progress.step(f"convert {plan.architecture} with llama.cpp's converter"):
            run.wait(
                [
                    *(sys.executable, "-P", "-m", "modelpack.upstream.child", str(MEMORY_LIMIT)),
                    *(str(plan.environment.python), str(plan.environment.source), str(staged)),
                    *("--outtype", plan.file_type.lower(), "--outfile", str(output)),
                ],
                home=work / "home",
            )
        header = read_header(output)
        if header.file_type != plan.file_type:
            raise ConversionError(f"upstream's converter made a {header.file_type} file, not a {plan.file_type} one")
        if header.chat_template is None and _has_template(staged):
            raise ConversionError(f"upstream's converter lost the chat template of {plan.name}")
        output.rename(target)
    return header


def _stage(plan: UpstreamPlan, staged: Path) -> Path:
    staged.mkdir(parents=True)
    for path in sorted(plan.directory.rglob("*")):
        relative = path.relative_to(plan.directory)
        is_code = str(relative) in plan.code
        if path.is_file() and len(relative.parts) <= 2 and (path.suffix in _SAFE_SUFFIXES or is_code):
            link = staged / relative
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(path.resolve())
    return staged


def _has_template(staged: Path) -> bool:
    if (staged / "chat_template.jinja").exists() or (staged / "chat_template.json").exists():
        return True
    config = staged / "tokenizer_config.json"
    return config.exists() and '"chat_template"' in config.read_text(encoding="utf-8", errors="replace")


class _Run:
    """One run of the child: its log is read to the end, what it warns of is remembered."""

    def __init__(self, plan: UpstreamPlan, timeout: float) -> None:
        self.plan = plan
        self.timeout = timeout
        self.timed_out = False
        self.warning: str | None = None
        self.unsupported = False
        self.last_lines: deque[str] = deque(maxlen=4)

    def wait(self, command: list[str], *, home: Path) -> None:
        home.mkdir()
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=_environment(home),
            cwd=home,
            start_new_session=True,
        ) as process:
            timer = threading.Timer(self.timeout, self._stop, (process,))
            timer.start()
            try:
                assert process.stdout is not None  # noqa: S101  # a pipe was asked for
                while line := process.stdout.readline(_MAX_LOG_LINE):
                    self._read(line.decode("utf-8", "replace").strip())
                status = process.wait()
            finally:
                timer.cancel()
                _kill(process)
        self._judge(status)

    def _read(self, line: str) -> None:
        if line:
            self.last_lines.append(line)
        if _FATAL_WARNINGS.search(line):
            self.warning = self.warning or line
        if _NOT_SUPPORTED.search(line):
            self.unsupported = True

    def _stop(self, process: "subprocess.Popen[bytes]") -> None:
        self.timed_out = True
        _kill(process)

    def _judge(self, status: int) -> None:
        plan = self.plan
        if self.timed_out:
            raise WorkerTimeoutError(f"upstream's converter took longer than {self.timeout:g} seconds with {plan.name}")
        if self.unsupported:
            raise UnknownArchitectureError(f"neither modelpack nor llama.cpp's converter knows {plan.architecture}")
        if self.warning:
            raise ConversionError(
                f"upstream's converter would make a broken model of {plan.name}: {self.warning[:300]}"
            )
        last = " / ".join(self.last_lines)[:800]
        if status < 0:
            raise WorkerCrashedError(f"upstream's converter ended by {signal.Signals(-status).name}: {last}")
        if status:
            raise ConversionError(f"upstream's converter refused {plan.name}: {last}")


def _kill(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def _environment(home: Path) -> dict[str, str]:
    kept = {key: os.environ[key] for key in _KEPT_VARIABLES if key in os.environ}
    return {
        **kept,
        "HOME": str(home),
        "TMPDIR": str(home),
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
