"""News on stderr: rich bars on a terminal, few plain lines without one, JSON lines for programs."""

import json
import sys
import threading
import time
from dataclasses import asdict
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from modelpack.progress import Going, Progress, Step

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

_PLAIN_INTERVAL = 30.0
_PLAIN_FRACTION = 0.1
_SMALL = 256 << 10


def human_size(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _sentence(going: Going) -> str:
    """What there is to say of how a transfer goes: nothing of one connection that has not been in trouble."""
    said = [f"{going.connections} connections"] if going.connections > 1 else []
    said += [f"{human_size(going.resumed)} resumed"] if going.resumed else []
    said += [f"{human_size(going.mounted)} mounted"] if going.mounted else []
    said += [f"{going.retries} retries"] if going.retries else []
    return ", ".join(said)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class PlainProgress:
    """A line when a step begins and ends, and at most one per ten percent or thirty seconds between."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def step(self, label: str, *, total: int | None = None, unit: str = "B") -> Step:
        return _PlainStep(self, label, total, unit)

    def note(self, message: str) -> None:
        self._write(message)

    def warn(self, message: str) -> None:
        self._write(f"warning: {message}")

    def _write(self, line: str) -> None:
        with self._lock:
            print(line, file=self._stream, flush=True)


class _PlainStep:
    def __init__(self, progress: PlainProgress, label: str, total: int | None, unit: str) -> None:
        self._progress, self._label, self._total, self._unit = progress, label, total, unit
        self._done = 0
        self._began = self._told_at = time.monotonic()
        self._told = 0
        self._going: Going | None = None
        self._lock = threading.Lock()

    def tell(self, going: Going) -> None:
        self._going = going

    def advance(self, amount: int) -> None:
        with self._lock:
            self._done += amount
            now = time.monotonic()
            # A step that is over in a second needs no lines in between.
            if now - self._began < 2:
                return
            passed = self._done - self._told
            due = self._total and passed >= self._total * _PLAIN_FRACTION and now - self._told_at > 1
            if due or now - self._told_at > _PLAIN_INTERVAL:
                share = f" {100 * self._done // self._total}%" if self._total else ""
                self._progress._write(
                    ", ".join([f"{self._label}{share} {self._amount()}", *self._details(passed, now)])
                )
                self._told, self._told_at = self._done, now

    def _details(self, passed: int, now: float) -> list[str]:
        """Of a transfer: the rate since the last line, what it means for the rest, and how it goes."""
        if self._going is None:
            return []
        rate = passed / max(now - self._told_at, 0.001)
        said = [f"{human_size(rate)}/s"]
        if self._total and rate:
            said.append(f"{_duration((self._total - self._done) / rate)} left")
        return [*said, *filter(None, [_sentence(self._going)])]

    def _amount(self) -> str:
        return human_size(self._done) if self._unit == "B" else f"{self._done} {self._unit}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        elapsed = time.monotonic() - self._began
        # Manifests, configs and licences come and go by the dozen.
        is_small = self._unit == "B" and self._total is not None and self._total < _SMALL and elapsed < 1
        if kind is None and not is_small:
            amount = f" {self._amount()}" if self._done else ""
            resumed, mounted = (self._going.resumed, self._going.mounted) if self._going else (0, 0)
            said = f", {human_size(resumed)} of it resumed" if resumed else ""
            said += ", mounted from another repository" if mounted else ""
            self._progress._write(f"{self._label}{amount} {elapsed:.1f}s{said}")


class JsonProgress:
    """One JSON object per line: {"event": "step"|"note"|"warning", ...}."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def step(self, label: str, *, total: int | None = None, unit: str = "B") -> Step:
        return _JsonStep(self, label, total, unit)

    def note(self, message: str) -> None:
        self.write({"event": "note", "message": message})

    def warn(self, message: str) -> None:
        self.write({"event": "warning", "message": message})

    def write(self, event: dict[str, object]) -> None:
        with self._lock:
            print(json.dumps(event), file=self._stream, flush=True)


class _JsonStep:
    def __init__(self, progress: JsonProgress, label: str, total: int | None, unit: str) -> None:
        self._progress, self._label, self._total, self._unit = progress, label, total, unit
        self._done = self._told = 0
        self._told_at = time.monotonic() - 1
        self._going: Going | None = None
        self._lock = threading.Lock()

    def tell(self, going: Going) -> None:
        self._going = going

    def advance(self, amount: int) -> None:
        with self._lock:
            self._done += amount
            if time.monotonic() - self._told_at < 1:
                return
        self._tell("running")

    def _tell(self, state: str) -> None:
        """``rate`` (a second) is that since the last line, ``remaining`` (seconds) what it would take at that rate.

        A transfer also has ``connections``, ``resumed`` and ``mounted`` (bytes) and ``retries`` (of the whole command).
        """
        with self._lock:
            now, done = time.monotonic(), self._done
            rate = (done - self._told) / max(now - self._told_at, 0.001)
            self._told, self._told_at = done, now
        remaining = (self._total - done) / rate if self._total is not None and rate else None
        going = asdict(self._going) if self._going else {}
        self._progress.write(
            {
                "event": "step",
                "label": self._label,
                "state": state,
                "done": done,
                "total": self._total,
                "unit": self._unit,
                "rate": round(rate),
                "remaining": None if remaining is None else round(remaining, 1),
                **going,
            }
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tell("done" if kind is None else "failed")


class BarProgress:
    """A bar per step on a terminal; the live display exists only while a step runs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._live: RichProgress | None = None
        self._running = 0

    def step(self, label: str, *, total: int | None = None, unit: str = "B") -> Step:
        return _BarStep(self, label, total, unit)

    def note(self, message: str) -> None:
        self._print(message)

    def warn(self, message: str) -> None:
        self._print(f"[bold yellow]warning:[/] {_escape(message)}", markup=True)

    def _print(self, message: str, *, markup: bool = False) -> None:
        with self._lock:
            if self._live:
                self._live.console.print(message, markup=markup, highlight=False)
                return
        from rich.console import Console

        Console(stderr=True).print(message, markup=markup, highlight=False)

    def begin(self, label: str, total: int | None, unit: str) -> "tuple[RichProgress, TaskID]":
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.progress import Progress as RichProgress

        with self._lock:
            if self._live is None:
                amount = [DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn()]
                counted = [] if unit == "B" else [MofNCompleteColumn()]
                self._live = RichProgress(
                    TextColumn("{task.description}"),
                    BarColumn(),
                    *(amount if unit == "B" else []),
                    *counted,
                    TimeElapsedColumn(),
                    TextColumn("[dim]{task.fields[going]}"),
                    console=Console(stderr=True),
                )
                self._live.start()
            self._running += 1
            return self._live, self._live.add_task(_escape(label), total=total, going="")

    def end(self) -> None:
        with self._lock:
            self._running -= 1
            if not self._running and self._live:
                self._live.stop()
                self._live = None


class _BarStep:
    def __init__(self, progress: BarProgress, label: str, total: int | None, unit: str) -> None:
        self._progress, self._total = progress, total
        self._live, self._task = progress.begin(label, total, unit)

    def tell(self, going: Going) -> None:
        self._live.update(self._task, going=_sentence(going))

    def advance(self, amount: int) -> None:
        self._live.update(self._task, advance=amount)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._total is None:
            done = self._live.tasks[self._live.task_ids.index(self._task)].completed
            self._live.update(self._task, total=done or 1, completed=done or 1)
        self._progress.end()


def _escape(text: str) -> str:
    return text.replace("[", r"\[")


def make_progress(mode: str, *, quiet: bool) -> Progress:
    """The Progress for ``--progress`` (auto, plain, json, none) and ``--quiet``."""
    from modelpack.progress import SILENT

    if mode == "none" or quiet:
        return _OnlyWarnings(sys.stderr) if mode != "none" else SILENT
    if mode == "json":
        return JsonProgress(sys.stderr)
    if mode == "plain" or not sys.stderr.isatty():
        return PlainProgress(sys.stderr)
    return BarProgress()


class _OnlyWarnings(PlainProgress):
    """``--quiet``: what a person must not miss, and nothing else."""

    def step(self, label: str, *, total: int | None = None, unit: str = "B") -> Step:
        from modelpack.progress import SILENT

        return SILENT.step(label, total=total, unit=unit)

    def note(self, message: str) -> None:
        pass
