"""Quantize one file, in a child process that is watched, limited and explained.

llama.cpp runs in a child (``modelpack.quantize.child``), because it cannot be cancelled, aborts on some inputs and
reads files from strangers. The same source, options and release of llama.cpp give the same bytes.
"""

import errno
import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from modelpack.atomic_file import disk_errors, sync_directory
from modelpack.errors import (
    ConversionError,
    InsufficientDiskError,
    UnsupportedError,
    WorkerCrashedError,
    WorkerTimeoutError,
)
from modelpack.gguf_header import GGUFHeader, read_header
from modelpack.gguf_shards import read_whole_header, shard_paths
from modelpack.imatrix import ImportanceMatrix
from modelpack.progress import SILENT, Progress
from modelpack.quantize.types import PLAIN_RECIPE, Quantization, Recipe

BUFFER_SIZE = 64 << 20
"""What the threads may hold of weights, in bytes, if there are so many of them; llama.cpp's own default is 8 TiB."""
# The most memory the child may own: many times what it was seen to need.
MEMORY_LIMIT = 8 << 30

# What the child may see of our environment: no tokens, no credentials.
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "OMP_NUM_THREADS")
_MAX_LOG_LINE = 4096

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Fallback:
    """A tensor whose rows did not fit the wanted type, and the one it got instead."""

    tensor: str
    wanted: str
    type: str

    def __str__(self) -> str:
        return f"{self.tensor} ({self.wanted} -> {self.type})"


@dataclass(frozen=True, slots=True)
class QuantizeResult:
    """``size`` is that of the new file, in bytes."""

    size: int
    fallbacks: tuple[Fallback, ...] = ()


def quantize(
    source: Path,
    target: Path,
    quantization: Quantization,
    *,
    recipe: Recipe = PLAIN_RECIPE,
    imatrix: Path | None = None,
    progress: Progress = SILENT,
    timeout: float | None = None,
    threads: int | None = None,
    buffer_size: int = BUFFER_SIZE,
) -> QuantizeResult:
    """Quantize ``source`` to ``target``, which appears whole or not at all.

    ``imatrix`` is an importance matrix; its file's name, and no more of its path, goes into the metadata.
    ``timeout`` is in seconds. ``threads`` is the number of processors unless given; together they hold at most
    ``buffer_size`` bytes of rows, or one row each. The bytes depend on neither.

    Raises InvalidGGUFError, InvalidContentError for a matrix that is none, UnsupportedError for a quantization that
    needs one, ConversionError when a tensor that is quantized already would get another type and the recipe does not
    allow it, the matrix is another model's or llama.cpp refuses, InsufficientDiskError, WorkerCrashedError and
    WorkerTimeoutError. An interrupt stops the child at once.
    """
    header = read_whole_header(source)
    _check(source, header, quantization, imatrix)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".gguf")
    os.close(handle)
    temporary = Path(name)
    try:
        # -P: the directory that we happen to be in is no place to import from.
        order = {
            "sources": [str(path.absolute()) for path in shard_paths(source)],
            "target": name,
            "file_type": quantization.file_type,
            "threads": threads or _processors(),
            "imatrix": str(imatrix.resolve()) if imatrix else None,
            "imatrix_name": imatrix.name if imatrix else None,
            "recipe": asdict(recipe),
            "buffer_size": buffer_size,
            "memory_limit": MEMORY_LIMIT,
        }
        command = [sys.executable, "-P", "-m", "modelpack.quantize.child", json.dumps(order)]
        child = _Child(command, timeout, progress, {tensor.name: tensor.size for tensor in header.tensors})
        child.run(f"quantize {quantization.name}")
        if child.status != 0:
            raise _failure(child, source, target, quantization)
        written = read_header(temporary)
        if written.file_type != quantization.name:
            raise ConversionError(f"llama.cpp made a {written.file_type} of {source.name}, not a {quantization.name}")
        _publish(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    for fallback in child.fallbacks:
        logger.info("%s: rows do not fit, so %s", source.name, fallback)
    return QuantizeResult(target.stat().st_size, tuple(child.fallbacks))


class _Child:
    """The child process, and what its log says: how far it is, which tensors fell back, why it failed."""

    _TENSOR = re.compile(r"^\[\d+/\d+\] (.*)")
    _FALLBACK = re.compile(r"(\S+)\s+- ncols .*\(required for type\s+(\S+)\).*falling back to\s+(\S+)")
    _FAILURE = re.compile(r"failed to quantize: (.*)")

    def __init__(
        self, command: list[str], timeout: float | None, progress: Progress, tensors: Mapping[str, int]
    ) -> None:
        self.command = command
        self.timeout = timeout
        self.progress = progress
        self.tensors = tensors
        self.status = 0
        self.timed_out = False
        self.reason: str | None = None
        self.fallbacks: list[Fallback] = []
        self.last_lines: deque[str] = deque(maxlen=5)

    def run(self, label: str) -> None:
        environment = {key: os.environ[key] for key in _ENVIRONMENT if key in os.environ}
        environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
        with (
            self.progress.step(label, total=sum(self.tensors.values())) as step,
            subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment,
            ) as process,
        ):
            timer = threading.Timer(self.timeout, self._stop, (process,)) if self.timeout is not None else None
            if timer:
                timer.start()
            try:
                assert process.stdout is not None  # noqa: S101  # a pipe was asked for
                while line := process.stdout.readline(_MAX_LOG_LINE):
                    step.advance(self._read(line.decode("utf-8", "replace").rstrip()))
                self.status = process.wait()
            finally:
                process.kill()
                if timer:
                    timer.cancel()

    def _read(self, line: str) -> int:
        """Learn from one line of the log; returns the bytes of the tensor that it announces."""
        if line:
            self.last_lines.append(line)
        if match := self._FALLBACK.search(line):
            self.fallbacks.append(Fallback(*match.groups()))
        if match := self._FAILURE.search(line):
            self.reason = match.group(1)
        return self.tensors.get(match[1], 0) if (match := self._TENSOR.match(line)) else 0

    def _stop(self, process: "subprocess.Popen[bytes]") -> None:
        self.timed_out = True
        process.kill()


def _check(source: Path, header: GGUFHeader, quantization: Quantization, imatrix: Path | None) -> None:
    if quantization.needs_importance_matrix and imatrix is None:
        raise UnsupportedError(
            f"{quantization.name} needs an importance matrix: without one a model of so few bits is useless"
        )
    if imatrix is not None:
        entries = ImportanceMatrix.load(imatrix).entries
        # llama.cpp would only log it, and quantize as if there were no matrix.
        if not any(tensor.name in entries for tensor in header.tensors):
            raise ConversionError(f"{imatrix.name} is the importance matrix of another model than {source.name}")


def _failure(child: _Child, source: Path, target: Path, quantization: Quantization) -> Exception:
    what = f"quantizing {source.name} to {quantization.name}"
    if child.timed_out:
        return WorkerTimeoutError(f"{what} took longer than {child.timeout:g} seconds")
    last = " / ".join(child.last_lines)
    if child.status < 0:
        name = signal.Signals(-child.status).name
        return WorkerCrashedError(f"llama.cpp ended by {name} while {what}: {last!r}")
    if child.status == errno.ENOSPC:
        return InsufficientDiskError(f"no space left to write {target}")
    if child.reason is None:
        return WorkerCrashedError(f"llama.cpp ended with status {child.status} while {what}: {last!r}")
    return ConversionError(f"llama.cpp refused {what}: {child.reason}")


def _publish(temporary: Path, target: Path) -> None:
    with disk_errors(target):
        with temporary.open("rb") as file:
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        temporary.rename(target)
    sync_directory(target.parent)


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
