"""Quantization: a GGUF file into a smaller one, by llama.cpp's own ``llama_model_quantize``.

The C++ code runs in a child process (this module, run as a program), because it cannot be cancelled, aborts on some
inputs and reads files from strangers. The same source, quantization and release of llama.cpp give the same bytes.
"""

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
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from modelpack.atomic_file import sync_directory
from modelpack.errors import (
    ConversionError,
    InsufficientDiskError,
    UnknownQuantizationError,
    UnsupportedError,
    WorkerCrashedError,
    WorkerTimeoutError,
)
from modelpack.gguf_header import FILE_TYPES, GGUFHeader, read_header
from modelpack.progress import SILENT, Progress

# Rows of one tensor in memory at a time; llama.cpp's own default is 8 GiB. The output does not depend on it.
BUFFER_SIZE = 64 << 20
# The most memory the child may own (the mapped source is not counted): several times what it was seen to need.
MEMORY_LIMIT = 8 << 30

# What the child may see of our environment: no tokens, no credentials.
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "OMP_NUM_THREADS")
_PLAIN_TYPES = {"F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64"}
_MAX_LOG_LINE = 4096

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Quantization:
    """One of llama.cpp's mixtures. ``bits_per_weight`` is that of an 8B model: good for an estimate of sizes."""

    name: str
    file_type: int
    bits_per_weight: float
    needs_importance_matrix: bool = False


# Bits per weight: tools/quantize/README.md of llama.cpp (Llama 3.1 8B), its program's own list for the rest.
_BITS_PER_WEIGHT = {
    "F32": 32.0,
    "BF16": 16.0,
    "F16": 16.0,
    "Q8_0": 8.5,
    "Q6_K": 6.56,
    "Q5_K_M": 5.70,
    "Q5_K_S": 5.57,
    "Q5_1": 6.06,
    "Q5_0": 5.57,
    "Q4_K_M": 4.89,
    "Q4_K_S": 4.67,
    "Q4_1": 5.12,
    "Q4_0": 4.64,
    "Q3_K_L": 4.30,
    "Q3_K_M": 4.00,
    "Q3_K_S": 3.64,
    "Q2_K": 3.16,
    "Q2_K_S": 2.97,
    "Q2_0": 2.7,
    "Q1_0": 1.6,
    "IQ4_NL": 4.68,
    "IQ4_XS": 4.46,
    "IQ3_M": 3.76,
    "IQ3_S": 3.66,
    "IQ3_XS": 3.50,
    "IQ3_XXS": 3.25,
    "IQ2_M": 2.93,
    "IQ2_S": 2.74,
    "IQ2_XS": 2.59,
    "IQ2_XXS": 2.38,
    "IQ1_M": 2.15,
    "IQ1_S": 2.00,
    "TQ2_0": 2.4,
    "TQ1_0": 2.1,
    "MXFP4_MOE": 4.4,
}
# Below some three bits llama.cpp only quantizes with an importance matrix, without which the result is garbage.
_NEEDS_IMPORTANCE_MATRIX = {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "Q2_K_S"}
_ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
_FILE_TYPE_IDS = {name: number for number, name in FILE_TYPES.items()}

QUANTIZATIONS: Mapping[str, Quantization] = MappingProxyType(
    {
        name: Quantization(name, _FILE_TYPE_IDS[name], bits, name in _NEEDS_IMPORTANCE_MATRIX)
        for name, bits in _BITS_PER_WEIGHT.items()
    }
)
"""By name, what the llama.cpp of llama-cpp-python 0.3.36 quantizes to; F16, BF16 and F32 included."""


def parse_quantization(name: str) -> Quantization:
    """A quantization by its name in any case. Raises UnknownQuantizationError, which names them all."""
    key = name.strip().upper()
    quantization = QUANTIZATIONS.get(_ALIASES.get(key, key))
    if quantization is None:
        raise UnknownQuantizationError(f"there is no quantization {name[:60]!r}; there are {', '.join(QUANTIZATIONS)}")
    return quantization


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
    progress: Progress = SILENT,
    timeout: float | None = None,
    threads: int | None = None,
) -> QuantizeResult:
    """Quantize ``source`` (F32, F16 or BF16) to ``target``, which appears whole or not at all.

    ``timeout`` is in seconds. ``threads`` is the number of processors unless given; the bytes do not depend on it.

    Raises InvalidGGUFError, UnsupportedError for a quantization that needs an importance matrix, ConversionError when
    the source is quantized already or llama.cpp refuses it, InsufficientDiskError, WorkerCrashedError and
    WorkerTimeoutError. An interrupt stops the child at once.
    """
    header = read_header(source)
    _check(source, header, quantization)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".gguf")
    os.close(handle)
    temporary = Path(name)
    try:
        # -P: the directory that we happen to be in is no place to import from.
        command = [sys.executable, "-P", "-m", "modelpack.quantize", str(source.resolve()), name]
        command += [str(quantization.file_type), str(threads or _processors())]
        child = _Child(command, timeout, progress, len(header.tensors))
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

    _TENSOR = re.compile(r"^\[\s*(\d+)/\s*\d+\]")
    _FALLBACK = re.compile(r"(\S+)\s+- ncols .*\(required for type\s+(\S+)\).*falling back to\s+(\S+)")
    _FAILURE = re.compile(r"failed to quantize: (.*)")

    def __init__(self, command: list[str], timeout: float | None, progress: Progress, tensors: int) -> None:
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
        environment["PYTHONPATH"] = str(Path(__file__).resolve().parent.parent)
        with (
            self.progress.step(label, total=self.tensors, unit="tensors") as step,
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
        """Learn from one line of the log; returns how many tensors it announces."""
        if line:
            self.last_lines.append(line)
        if match := self._FALLBACK.search(line):
            self.fallbacks.append(Fallback(*match.groups()))
        if match := self._FAILURE.search(line):
            self.reason = match.group(1)
        return 1 if self._TENSOR.match(line) else 0

    def _stop(self, process: "subprocess.Popen[bytes]") -> None:
        self.timed_out = True
        process.kill()


def _check(source: Path, header: GGUFHeader, quantization: Quantization) -> None:
    if quantization.needs_importance_matrix:
        raise UnsupportedError(
            f"{quantization.name} needs an importance matrix: without one a model of so few bits is useless"
        )
    quantized = next((tensor for tensor in header.tensors if tensor.type not in _PLAIN_TYPES), None)
    if quantized is not None:
        raise ConversionError(
            f"{source.name} is quantized already ({header.file_type or quantized.type}): "
            f"{quantization.name} is only made from F32, F16 or BF16"
        )


def _failure(child: _Child, source: Path, target: Path, quantization: Quantization) -> Exception:
    what = f"quantizing {source.name} to {quantization.name}"
    if child.timed_out:
        return WorkerTimeoutError(f"{what} took longer than {child.timeout:g} seconds")
    last = " / ".join(child.last_lines)
    if child.status < 0:
        name = signal.Signals(-child.status).name
        return WorkerCrashedError(f"llama.cpp ended by {name} while {what}: {last!r}")
    if "iostream error" in (child.reason or ""):  # all that a C++ stream says when it cannot write
        return InsufficientDiskError(f"no space left to write {target}")
    if child.reason is None:
        return WorkerCrashedError(f"llama.cpp ended with status {child.status} while {what}: {last!r}")
    return ConversionError(f"llama.cpp refused {what}: {child.reason}")


def _publish(temporary: Path, target: Path) -> None:
    with temporary.open("rb") as file:
        os.fchmod(file.fileno(), 0o644)
        os.fsync(file.fileno())
    temporary.rename(target)
    sync_directory(target.parent)


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _main(arguments: list[str]) -> int:
    """The child: quantize, and write llama.cpp's log to standard output as it comes."""
    source, target, file_type, threads = arguments
    _limit_child()
    import ctypes

    import llama_cpp

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]  # a ctypes function type
    def write_log(_level: int, text: bytes, _data: object) -> None:
        os.write(1, text)

    llama_cpp.llama_log_set(write_log, ctypes.c_void_p(0))
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = int(file_type)
    parameters.nthread = int(threads)
    parameters.max_buf_size = BUFFER_SIZE
    status = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(parameters))
    return 1 if status else 0


def _limit_child() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    limit = MEMORY_LIMIT if hard == resource.RLIM_INFINITY else min(MEMORY_LIMIT, hard)
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
