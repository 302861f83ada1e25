"""One child process: started with a clean environment, watched, explained when it dies, and always killed.

The end of what the child prints is kept in memory, to tell how it died. What runs in the child is none of this module's
business.
"""

import contextlib
import json
import logging
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from pathlib import Path
from typing import IO, Any, cast

import modelpack
from modelpack.errors import WorkerCrashedError, WorkerTimeoutError

_log = logging.getLogger(__name__)

_TAIL_LINES = 200
_LINE_BYTES = 2048
_SOCKET_PATH_BYTES = 100
"""The address of a unix socket holds 104 bytes on macOS and 108 on Linux."""

_KEPT_VARIABLES = re.compile(
    r"PATH|HOME|LANG|LC_\w+|TMPDIR|TZ|LD_LIBRARY_PATH|DYLD_LIBRARY_PATH|OMP_\w+|GOMP_\w+|KMP_\w+|GGML_\w+"
    r"|CUDA_\w+|NVIDIA_\w+|HIP_\w+|HSA_\w+|ROCR_\w+|GPU_DEVICE_ORDINAL|ONEAPI_\w+|SYCL_\w+|ZE_\w+|VK_\w+|XDG_RUNTIME_DIR"
)
"""What llama.cpp and GPU drivers need; everything else, such as tokens and keys, stays here."""


class Child:
    """A running child of ``python -m module``, which got ``configuration`` as one line of JSON on its stdin."""

    def __init__(self, module: str, configuration: dict[str, Any]) -> None:
        self.directory = _private_directory()
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._events: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._closed = False
        try:
            # -P and PYTHONPATH: this very package, and nothing that lies in the working directory.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=clean_environment(),
                start_new_session=True,
                cwd=self.directory,
            )
        except BaseException:
            shutil.rmtree(self.directory, ignore_errors=True)
            raise
        pipes = (self._process.stdin, self._process.stdout, self._process.stderr)
        stdin, stdout, stderr = self._pipes = cast("tuple[IO[bytes], IO[bytes], IO[bytes]]", pipes)
        self._readers = [
            threading.Thread(target=self._read_events, args=(stdout,), daemon=True),
            threading.Thread(target=self._read_log, args=(stderr,), daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        with contextlib.suppress(BrokenPipeError):  # it died at once; wait_for_event tells
            stdin.write(json.dumps({**configuration, "directory": str(self.directory)}).encode() + b"\n")
            stdin.flush()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    @property
    def last_lines(self) -> list[str]:
        """The end of what the child printed, without control characters."""
        return list(self._tail)

    def wait_for_event(self, timeout: float, doing: str) -> dict[str, Any]:
        """The next event of the child.

        Raises WorkerTimeoutError after ``timeout`` seconds and WorkerCrashedError if the child ends instead.
        The child is closed in both cases.
        """
        try:
            event = self._events.get(timeout=timeout)
        except queue.Empty:
            self.close()
            raise WorkerTimeoutError(f"llama.cpp did not finish {doing} within {timeout:.0f} s") from None
        if event is None:
            raise self.crash(doing)
        return event

    def crash(self, doing: str, *, patience: float = 5.0) -> WorkerCrashedError:
        """Close, and say how the child ended; one that does not end within ``patience`` seconds is killed."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
        code = self._process.returncode
        self.close()
        how = "stopped answering" if code is None else _describe_exit(code)
        lines = [line for line in self.last_lines if line.strip()][-8:]
        return WorkerCrashedError(f"llama.cpp {how} while {doing}" + "".join(f"\n  {line[:300]}" for line in lines))

    def close(self) -> None:
        """Kill the child and whatever it started, and remove its directory. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for reader in self._readers:
            reader.join(timeout=2)
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _read_events(self, stream: IO[bytes]) -> None:
        for line in iter(lambda: stream.readline(1 << 20), b""):
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict):
                    self._events.put(event)
        self._events.put(None)

    def _read_log(self, stream: IO[bytes]) -> None:
        for raw in iter(lambda: stream.readline(_LINE_BYTES), b""):
            text = raw.rstrip(b"\n").decode("utf-8", "replace")
            # A model may put escape sequences for terminals here.
            line = "".join(character if character.isprintable() else "\ufffd" for character in text)
            _log.debug("%s", line)
            self._tail.append(line)


def clean_environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if _KEPT_VARIABLES.fullmatch(name)}
    # ggml would start a debugger to print a backtrace when it aborts.
    return {**kept, "PYTHONPATH": str(Path(modelpack.__file__).parents[1]), "PYTHONUTF8": "1", "GGML_NO_BACKTRACE": "1"}


def _private_directory() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="mp-"))
    if len(os.fsencode(directory)) + 2 > _SOCKET_PATH_BYTES:
        directory.rmdir()
        directory = Path(tempfile.mkdtemp(prefix="mp-", dir="/tmp"))
    return directory


def _describe_exit(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = " (out of memory?)" if -code == signal.SIGKILL else ""
    return f"was ended by {name}{hint}"
