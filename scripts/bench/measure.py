"""What a command costs, beside what others cost that do the same work."""

import contextlib
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from places import ROOT, registry

_QUIET = 0.3


@dataclass(frozen=True)
class Cost:
    """What one run of one command took: seconds, CPU seconds, MiB."""

    wall: float
    cpu: float
    memory: float


@dataclass(frozen=True)
class Command:
    """A tool's way to do one piece of work, given a fresh folder and the registry's address."""

    tool: str
    make: Callable[[Path, str], list[str]]


@dataclass(frozen=True)
class Figures:
    """What a row shows besides costs, such as bytes on the wire."""

    work: str
    figures: dict[str, float]


@dataclass(frozen=True)
class Work:
    """One row of the report. ``before`` prepares what is not measured; ``skipped`` says who is missing and why."""

    name: str
    commands: list[Command]
    skipped: dict[str, str]
    needs_registry: bool = False
    before: Callable[[Path, str], None] = lambda _folder, _address: None


def measure(work: Work, runs: int, folder: Path, registry_program: str) -> dict[str, object]:
    costs: dict[str, list[Cost]] = {command.tool: [] for command in work.commands}
    for number in range(runs):
        # The tools take turns at being first.
        turn = number % len(work.commands)
        for command in [*work.commands[turn:], *work.commands[:turn]]:
            with tempfile.TemporaryDirectory(dir=folder) as at, contextlib.ExitStack() as stack:
                address = stack.enter_context(registry(Path(at), registry_program)) if work.needs_registry else ""
                work.before(Path(at), address)
                settle()
                costs[command.tool].append(run(command.make(Path(at), address)))
    medians = {tool: median(each) for tool, each in costs.items()}
    ours = medians["modelpack"]
    return {
        "work": work.name,
        "tools": {tool: {**asdict(cost), "spread": spread(costs[tool])} for tool, cost in medians.items()},
        "ratios": {
            tool: {
                key: round(value / theirs, 3) for key, value in asdict(ours).items() if (theirs := asdict(cost)[key])
            }
            for tool, cost in medians.items()
            if tool != "modelpack"
        },
        "skipped": work.skipped,
    }


def median(costs: list[Cost]) -> Cost:
    return Cost(
        wall=round(statistics.median(cost.wall for cost in costs), 3),
        cpu=round(statistics.median(cost.cpu for cost in costs), 3),
        memory=round(statistics.median(cost.memory for cost in costs), 1),
    )


def spread(costs: list[Cost]) -> float:
    """How far the wall times lie apart, as a part of their median."""
    walls = [cost.wall for cost in costs]
    return round((max(walls) - min(walls)) / statistics.median(walls), 3)


def machine() -> dict[str, object]:
    """What the figures were taken on."""
    models: list[str] = []
    with contextlib.suppress(OSError):
        models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": models[0].partition(":")[2].strip() if models else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30), 1),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def run(command: list[str]) -> Cost:
    """Run a command to its end; the memory is that of its largest process."""
    with tempfile.TemporaryFile() as output:
        begin = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            text = output.read().decode(errors="replace")[-2000:]
            sys.exit(f"{' '.join(command)} ended with {process.returncode}:\n{text}")
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / unit)


def settle() -> None:
    """Let what preparation has written reach the disk: else whoever is measured first waits for it."""
    os.sync()
    time.sleep(_QUIET)


def busy_cores() -> float:
    """How many cores others keep busy, while nothing of ours runs; 0 where the system does not say."""
    before = _ticks()
    time.sleep(2)
    after = _ticks()
    if not before or not after:
        return 0.0
    idle, total = after[0] - before[0], after[1] - before[1]
    return round((1 - idle / max(total, 1)) * (os.cpu_count() or 1), 2)


def _ticks() -> tuple[int, int] | None:
    try:
        fields = [int(field) for field in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    except OSError:
        return None
    return fields[3] + fields[4], sum(fields)
