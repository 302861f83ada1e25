"""Rows for what moves a model: to a registry and back, beside public tools, and over lines that are slow or cut."""

import argparse
import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from measure import Command, Figures, Work, run, settle
from models import build, in_store
from places import MODELPACK, ROOT, payload, registry

sys.path.insert(0, str(ROOT / "tests"))

from fakes.nginx import running_nginx

ORAS_PUSH = """
import sys
from oras.client import OrasClient
OrasClient(insecure=True).push(target=sys.argv[1], files=[sys.argv[2]], disable_path_validation=True)
"""
ORAS_PULL = """
import sys
from oras.client import OrasClient
OrasClient(insecure=True).pull(target=sys.argv[1], outdir=sys.argv[2])
"""
# An upload whose digest is known, as curl does it: what a client cannot beat.
CURL_PUSH = """
set -eu
where=$(curl -sSf -X POST -H 'Content-Length: 0' -o /dev/null -D - "http://$1/v2/bench/curl/blobs/uploads/" |
  tr -d '\\r' | sed -n 's/^[Ll]ocation: //p')
curl -sSf -T "$2" -H 'Content-Type: application/octet-stream' -H 'Expect:' -o /dev/null "$where&digest=sha256:$3"
"""
CURL_PULL = """
set -eu
curl -sSf -o "$3" "http://$1/v2/bench/model/blobs/sha256:$2"
openssl dgst -sha256 "$3"
"""
# What a content network gives one connection. nginx lets the first second of every request pass unhindered, so short
# requests, of which there are more over several connections, are a little faster.
_SLOW = "limit_rate 60m; proxy_max_temp_file_size 0;"
_KILL_EVERY = 1.0
_PULLERS = 8


def push(options: argparse.Namespace, folder: Path) -> Iterator[Work]:
    """A stored model to an empty registry."""
    for size in options.size:
        path = payload(folder, size)

        def store(at: Path, address: str, path: Path = path) -> None:
            run(build(at, path, name(address)))
            if shutil.which("crane"):  # which takes a layout of one artifact
                run([*MODELPACK, "copy", *in_store(at), f"store:{name(address)}", f"oci-layout:{at / 'layout'}:v1"])

        def oras(_: Path, address: str, path: Path = path) -> list[str]:
            target = f"{address}/bench/oras:v1"
            return ["oras", "push", "--plain-http", "--no-tty", "--disable-path-validation", target, str(path)]

        def curl(at: Path, address: str) -> list[str]:
            blob = weights(at)
            return ["sh", "-c", CURL_PUSH, "sh", address, str(blob), blob.name]

        commands = [
            Command("modelpack", push_from),
            Command(
                "oras-py",
                lambda _, address, path=path: [sys.executable, "-c", ORAS_PUSH, f"{address}/bench/oras:v1", str(path)],
            ),
        ]
        skipped = add_if_installed(commands, "skopeo", skopeo_push)
        skipped |= add_if_installed(commands, "crane", crane_push)
        skipped |= add_if_installed(commands, "oras", oras)
        skipped |= add_if_installed(commands, "curl", curl)
        yield Work(f"push {size} MiB", commands, skipped, needs_registry=True, before=store)


def pull(options: argparse.Namespace, folder: Path) -> Iterator[Work]:
    """From a registry to an empty store or folder."""
    for size in options.size:
        path = payload(folder, size)

        def publish(at: Path, address: str, path: Path = path) -> None:
            author = at / "author"
            run(build(author, path, name(address)))
            run(push_from(author, address))

        def curl(at: Path, address: str) -> list[str]:
            return ["sh", "-c", CURL_PULL, "sh", address, weights(at / "author").name, str(at / "blob")]

        commands = [
            Command("modelpack", pull_to),
            Command(
                "oras-py",
                lambda at, address: [sys.executable, "-c", ORAS_PULL, name(address), str(at / "oras")],
            ),
        ]
        skipped = add_if_installed(commands, "skopeo", skopeo_pull)
        skipped |= add_if_installed(commands, "crane", crane_pull)
        skipped |= add_if_installed(commands, "oras", oras_pull)
        skipped |= add_if_installed(commands, "curl, openssl", curl, needs=("curl", "openssl"))
        yield Work(f"pull {size} MiB", commands, skipped, needs_registry=True, before=publish)


def stubborn(options: argparse.Namespace, folder: Path) -> Iterator[Figures]:
    """Lines that are slow, commands that are killed, models that are there already, and many who want the same."""
    path = payload(folder, options.size[0])
    with tempfile.TemporaryDirectory(dir=folder) as directory, ExitStack() as stack:
        at = Path(directory)
        address = stack.enter_context(registry(at, options.registry))
        run(build(at, path, name(address)))
        first, again = answer(push_from(at, address)), answer(push_from(at, address))
        yield Figures("push again", {"seconds": again["seconds"], "bytes sent": again["bytes_sent"]})

        run(pull_to(at / "reader", address))
        again = answer(pull_to(at / "reader", address))
        yield Figures("pull again", {"seconds": again["seconds"], "bytes received": again["bytes_received"]})

        if not (shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")):
            print("the rows behind nginx are skipped: it is not installed", file=sys.stderr)
            return
        expected = first["bytes_sent"]
        yield Figures("slow connections", slow_connections(at / "slow", address))
        yield Figures("killed each second", killed(at / "killed", address, expected))
        yield Figures(f"{_PULLERS} pull at once", at_once(at / "many", address, expected))


def slow_connections(at: Path, address: str) -> dict[str, float]:
    """One connection and four, each of 60 MB/s."""
    figures: dict[str, float] = {}
    with behind_nginx(at, address) as front:
        for jobs in (1, 4):
            settle()
            figures[f"{jobs} seconds"] = round(run([*pull_to(at / f"jobs-{jobs}", front), "--jobs", str(jobs)]).wall, 2)
    return {**figures, "times faster": round(figures["1 seconds"] / figures["4 seconds"], 2)}


def killed(at: Path, address: str, expected: float) -> dict[str, float]:
    """A pull that is killed (SIGKILL) every second until it ends by itself."""
    kills = 0
    with behind_nginx(at, address) as front:
        while True:
            process = subprocess.Popen(pull_to(at, front), cwd=ROOT, stdout=subprocess.DEVNULL)
            try:
                if process.wait(timeout=_KILL_EVERY):
                    sys.exit(f"the pull ended with {process.returncode}")
                break
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
        time.sleep(0.5)  # nginx writes its log when a request ends
        sent = bytes_sent(at)
    run([*MODELPACK, "fsck", "--store", str(at / "store")])
    allowed = expected + kills * 4 * (16 << 20)
    return {"kills": kills, "wire per payload": round(sent / expected, 3), "allowed": round(allowed / expected, 3)}


def at_once(at: Path, address: str, expected: float) -> dict[str, float]:
    """Processes that pull one model into one store."""
    with behind_nginx(at, address) as front:
        begun = time.perf_counter()
        processes = [subprocess.Popen(pull_to(at, front), cwd=ROOT, stdout=subprocess.DEVNULL) for _ in range(_PULLERS)]
        ends = [process.wait() for process in processes]
        if any(ends):
            sys.exit(f"a pull failed: {ends}")
        seconds = time.perf_counter() - begun
        time.sleep(0.5)
        return {"seconds": round(seconds, 2), "wire per payload": round(bytes_sent(at) / expected, 3)}


@contextmanager
def behind_nginx(at: Path, address: str) -> Iterator[str]:
    at.mkdir()
    with running_nginx(at / "nginx", address, settings=_SLOW) as front:
        yield front


def bytes_sent(at: Path) -> int:
    """Bytes of blobs that nginx sent to clients, whether they lived to read them or not."""
    log = (at / "nginx" / "access.log").read_text()
    return sum(int(size) for size in re.findall(r'"GET /v2/\S+/blobs/sha256\S+ HTTP/1.1" \d+ (\d+)', log))


def answer(command: list[str]) -> dict[str, float]:
    """What a push or a pull says that went over the wire."""
    done = subprocess.run([*command, "--json"], cwd=ROOT, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)["transfer"]


def name(address: str) -> str:
    # Behind nginx too it is one repository: the path is what counts.
    return f"{address}/bench/model:v1"


def weights(at: Path) -> Path:
    """The largest blob of a store."""
    return max((at / "store" / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)


def push_from(at: Path, address: str) -> list[str]:
    return [*MODELPACK, "push", *in_store(at), name(address)]


def pull_to(at: Path, address: str) -> list[str]:
    return [*MODELPACK, "pull", *in_store(at), "--insecure-skip-verify", name(address)]


def skopeo_push(at: Path, address: str) -> list[str]:
    source, target = f"oci:{at / 'store'}:{name(address)}", f"docker://{address}/bench/skopeo:v1"
    return ["skopeo", "copy", "--quiet", "--dest-tls-verify=false", source, target]


def skopeo_pull(at: Path, address: str) -> list[str]:
    target = f"oci:{at / 'skopeo'}:v1"
    return ["skopeo", "copy", "--quiet", "--src-tls-verify=false", f"docker://{name(address)}", target]


def crane_push(at: Path, address: str) -> list[str]:
    """Without hashing: it believes the layout."""
    return ["crane", "push", str(at / "layout"), f"{address}/bench/crane:v1"]


def crane_pull(at: Path, address: str) -> list[str]:
    return ["crane", "pull", "--format=oci", name(address), str(at / "crane")]


def oras_pull(at: Path, address: str) -> list[str]:
    return ["oras", "pull", "--plain-http", "--no-tty", "--output", str(at / "oras-go"), name(address)]


def add_if_installed(
    commands: list[Command], tool: str, make: Callable[[Path, str], list[str]], *, needs: tuple[str, ...] = ()
) -> dict[str, str]:
    """Why a tool is skipped, if it is."""
    missing = [program for program in needs or (tool,) if not shutil.which(program)]
    if missing:
        return {tool: f"{missing[0]} is not installed"}
    commands.append(Command(tool, make))
    return {}
