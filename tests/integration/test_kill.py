"""Processes that are killed, and processes that want the same thing at once."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.registry import FakeRegistry

from modelpack.store import Store

ROOT = Path(__file__).parents[2]
WEIGHTS = random.Random(5).randbytes(40 << 20)
PULL = """
import sys
from pathlib import Path
from modelpack.registry.client import connect
from modelpack.store import Store
from modelpack.transfer import copy

remote = connect(sys.argv[2]).repository("me/tiny")
local = Store.open(Path(sys.argv[1])).repository("tiny")
sys.stdin.readline()  # all at once
copy(remote, local, remote.resolve("v1"), tag="v1")
"""


@pytest.fixture
def fake() -> Iterator[FakeRegistry]:
    with FakeRegistry() as registry:
        yield registry


def test_killed_transfers_leave_a_right_store_and_go_on() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/chaos", "--kills", "5", "--size", "40", "--seed", "3"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    answer = json.loads(done.stdout)
    assert answer["kills_of_pulls"] + answer["kills_of_pushes"] >= 5
    assert answer["finished"] >= 1


def test_eight_processes_that_pull_one_model_fetch_it_once(fake: FakeRegistry, tmp_path: Path) -> None:
    manifest = fake.add_artifact("me/tiny", WEIGHTS, tag="v1")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PULL, str(tmp_path / "store"), fake.address],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(8)
    ]
    outcomes = [process.communicate("go\n", timeout=120) for process in processes]

    assert [process.returncode for process in processes] == [0] * 8, outcomes
    store = Store.open(tmp_path / "store")
    store.rehash(manifest.layers[0])
    assert store.repository("tiny").list_tags() == ["v1"]
    ranges = [one.headers.get("range") for one in fake.requests if one.path.endswith(str(manifest.layers[0].digest))]
    assert len(ranges) == len(set(ranges)) == 3
