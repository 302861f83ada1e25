"""Several processes share a store; some are killed."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

from store_artifacts import WEIGHT, age_all, opener, put_model, tags

from modelpack.oci.manifest import Descriptor
from modelpack.store import Store

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{HERE}"}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return output


def wait_for_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def test_no_tag_is_lost_when_several_processes_write_at_once(tmp_path: Path) -> None:
    # The store does not exist yet: making it is part of the race.
    script = """
        import sys
        from pathlib import Path
        from store_artifacts import put_model
        from modelpack.store import Store
        store = Store.open(Path(sys.argv[1]))
        for number in range(8):
            put_model(store.repository("tiny"), b"weights %d" % (number % 3), tag=f"p{sys.argv[2]}-{number}")
    """
    processes = [start(script, str(tmp_path / "store"), str(number)) for number in range(4)]
    for process in processes:
        finish(process)
    store = Store.open(tmp_path / "store")
    assert tags(store) == sorted(f"tiny:p{process}-{number}" for process in range(4) for number in range(8))


SLOW_WRITER = """
    import contextlib, sys, time
    from pathlib import Path
    from modelpack.oci.manifest import Descriptor
    from modelpack.store import Store
    content = bytes(range(256)) * 4000
    blob = Descriptor.of(content, "application/octet-stream")
    @contextlib.contextmanager
    def open_blob(offset):
        def chunks():
            print("asked at", offset, flush=True)
            for at in range(offset, len(content), 1 << 16):
                if at >= int(sys.argv[2]):
                    print("half", flush=True)
                    time.sleep(float(sys.argv[3]))
                yield content[at : at + (1 << 16)]
        yield chunks()
    Store.open(Path(sys.argv[1])).repository("tiny").write_blob(blob, open_blob)
    print("done", flush=True)
"""
CONTENT = bytes(range(256)) * 4000
BLOB = Descriptor.of(CONTENT, WEIGHT)


def test_a_killed_writer_leaves_a_right_store_and_its_bytes(store: Store) -> None:
    writer = start(SLOW_WRITER, str(store.root), str(5 << 16), "60")
    assert wait_for_line(writer) == "asked at 0"
    assert wait_for_line(writer) == "half"
    os.kill(writer.pid, signal.SIGKILL)
    writer.communicate()

    assert not store.repository("tiny").has_blob(BLOB)
    assert store.list() == []
    offsets: list[int] = []

    def open_blob(offset):
        offsets.append(offset)
        return opener(CONTENT)(offset)

    store.repository("tiny").write_blob(BLOB, open_blob)
    assert offsets == [5 << 16]
    store.rehash(BLOB)


def test_a_second_process_waits_and_then_finds_the_blob(store: Store) -> None:
    writer = start(SLOW_WRITER, str(store.root), str(15 << 16), "0.5")
    assert wait_for_line(writer) == "asked at 0"
    assert wait_for_line(writer) == "half"

    def open_blob(offset):
        raise AssertionError("fetched twice")

    heard: list[int] = []
    store.repository("tiny").write_blob(BLOB, open_blob, on_bytes=heard.append)

    assert sum(heard) == len(CONTENT)
    finish(writer)
    store.rehash(BLOB)
    assert list(store.partials.iterdir()) == []


def test_a_waiting_process_takes_over_when_the_first_is_killed(store: Store) -> None:
    first = start(SLOW_WRITER, str(store.root), str(5 << 16), "60")
    wait_for_line(first)
    assert wait_for_line(first) == "half"
    second = start(SLOW_WRITER, str(store.root), str(1 << 40), "0")
    time.sleep(0.3)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    assert finish(second).splitlines() == [f"asked at {5 << 16}", "done"]


def test_a_build_that_runs_keeps_its_blobs_and_a_dead_one_does_not(store: Store) -> None:
    script = """
        import sys, time
        from pathlib import Path
        from modelpack.store import Store
        store = Store.open(Path(sys.argv[1]))
        store.write_small(b"of a build", "text/plain")
        print("ready", flush=True)
        time.sleep(60)
    """
    builder = start(script, str(store.root))
    assert wait_for_line(builder) == "ready"
    age_all(store)
    assert store.prune().blobs == ()

    os.kill(builder.pid, signal.SIGKILL)
    builder.communicate()

    assert [size for _, size in store.prune().blobs] == [len(b"of a build")]
    assert [path.name for path in (store.root / "locks").iterdir()] == ["store"]


def test_a_writer_killed_at_any_moment_loses_no_earlier_tag(store: Store) -> None:
    script = """
        import sys
        from pathlib import Path
        from store_artifacts import put_model
        from modelpack.store import Store
        store = Store.open(Path(sys.argv[1]))
        number = int(sys.argv[2])
        while True:
            put_model(store.repository("tiny"), b"weights %d" % number, tag=f"t{number:06}")
            print(number, flush=True)
            number += 1
    """
    last = -1
    for moment in (0.00, 0.013, 0.031, 0.047):
        writer = start(script, str(store.root), str(last + 1))
        last = int(wait_for_line(writer))
        time.sleep(moment)
        os.kill(writer.pid, signal.SIGKILL)
        last = max([last, *(int(line) for line in writer.communicate()[0].split("\n")[:-1])])

        present = tags(Store.open(store.root))
        assert present[: last + 1] == [f"tiny:t{number:06}" for number in range(last + 1)]
        last = len(present) - 1
    for stored in store.list():
        for blob in store.repository("tiny").fetch_manifest(stored.descriptor).blobs:
            store.rehash(blob)
    put_model(store.repository("tiny"), b"still writable", tag="z")
