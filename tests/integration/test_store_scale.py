"""A store of 10,000 artifacts, and one that has no room or may not be written to."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.servers import running_registry

from modelpack.oci.manifest import EMPTY_CONFIG, EMPTY_JSON, Descriptor, image_manifest
from modelpack.oci.reference import Reference
from modelpack.store import Store
from modelpack.store.index import REF_NAME, Entry, Index

KIND = "application/vnd.test+json"
MANY = 10_000


def fill(store: Store, count: int) -> None:
    """``count`` artifacts of one small layer each, ten to a repository, written past the store: it would fsync each."""
    store.write_small(EMPTY_JSON, EMPTY_CONFIG.media_type)
    entries = []
    for number in range(count):
        weights = b"weights %d" % number
        layer = Descriptor.of(weights, "test/weights")
        manifest = image_manifest(config=EMPTY_CONFIG, layers=[layer], artifact_type=KIND)
        store.blobs.path(layer.digest).write_bytes(weights)
        store.blobs.path(manifest.digest).write_bytes(manifest.raw)
        name = f"registry.example.com/team/model-{number // 10}:v{number % 10}"
        own = manifest.descriptor
        descriptor = Descriptor(own.media_type, own.digest, own.size, {REF_NAME: name}, own.artifact_type)
        entries.append(Entry(name, descriptor))
    Index(tuple(entries)).save(store.root / "index.json")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store.open(tmp_path_factory.mktemp("large") / "store")
    fill(store, MANY)
    return store


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def test_ten_thousand_artifacts_are_listed_found_and_added_to_in_no_time(large: Store) -> None:
    # Measured on a laptop's core: 0.2, 0.003, 0.001 and 0.15 s. The bounds are for a machine that is busy.
    store = Store.open(large.root)
    assert seconds(store.list) < 2
    assert len(store.list()) >= MANY
    assert seconds(lambda: store.find(Reference.parse("registry.example.com/team/model-5:v3"))) < 0.2
    assert seconds(lambda: store.find(Reference.parse("model-5:v3"))) < 0.2
    layer = store.write_small(b"new", "test/weights")
    manifest = image_manifest(config=EMPTY_CONFIG, layers=[layer], artifact_type=KIND)
    assert seconds(lambda: store.repository("team/new").put_manifest(manifest, tag="v1")) < 2


def test_what_is_asked_often_does_not_grow_with_the_store(large: Store, tmp_path: Path) -> None:
    small = Store.open(tmp_path / "small")
    fill(small, 100)

    def ask(store: Store) -> float:
        repository = store.repository("registry.example.com/team/model-7")
        repository.resolve("v3")

        def often() -> None:
            for _ in range(200):
                assert repository.resolve("v3")
                assert repository.exists()
                assert repository.list_tags()[0] == "v0"

        return min(seconds(often) for _ in range(3))

    assert ask(large) < 10 * ask(small)


def test_a_change_by_another_process_or_in_place_is_seen(tmp_path: Path) -> None:
    one, other = Store.open(tmp_path / "store"), Store.open(tmp_path / "store")
    fill(one, 20)
    assert len(other.list()) == 20
    before = (one.root / "index.json").read_bytes()
    one.tag(Reference.parse("model-0:v0"), Reference.parse("mine:v1"))
    assert next(str(tag.reference) for tag in other.list()) == "mine:v1"

    # skopeo writes in place; a name of the same length keeps the size.
    content = (one.root / "index.json").read_bytes().replace(b'"mine:v1"', b'"nine:v1"')
    (one.root / "index.json").write_bytes(content)
    assert next(str(tag.reference) for tag in other.list()) == "nine:v1"
    (one.root / "index.json").write_bytes(before)
    assert len(other.list()) == len(one.list()) == 20


def run_in_mount(script: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A shell in a mount namespace of its own; ``modelpack`` is a command there. Skips where that is not allowed."""
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "bash", "-c"]
    probe = "mount -t tmpfs -o size=1m tmpfs /mnt"
    if subprocess.run([*unshare, probe], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let us mount anything")
    return subprocess.run(
        [*unshare, f'set -e; modelpack() {{ "{sys.executable}" -m modelpack "$@" --progress none; }}; {script}'],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def author(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the tiny model as ``tiny:v1``."""
    path = tmp_path_factory.mktemp("author") / "store"
    build = [sys.executable, "-m", "modelpack", "build", tiny_checkpoint, "-t", "tiny:v1", "--quant", "Q8_0"]
    subprocess.run([*build, "--store", path], capture_output=True, check=True)
    return path


def test_a_disk_that_fills_up_in_the_middle_of_a_pull_loses_nothing(
    author: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    with running_registry(Store.open(author)) as address:
        pull = f"modelpack pull {address}/tiny:v1 --insecure-skip-verify --store {disk}/store"
        # The weights alone would fit; with the other files they do not.
        process = run_in_mount(
            f"""
            mount -t tmpfs -o size=984k tmpfs {disk}
            {pull} || echo "full: $?"
            modelpack list --store {disk}/store
            modelpack fsck --store {disk}/store
            mount -o remount,size=8m {disk}
            {pull}
            modelpack fsck --store {disk}/store
            ls -A {disk}/store/partial
            """,
            environment,
        )

    assert process.returncode == 0, process.stderr
    assert "error[disk.insufficient]" in process.stderr
    lines = process.stdout.splitlines()
    assert lines[0] == "full: 8"
    assert lines[1].startswith("MODEL")
    assert lines[2].endswith("nothing is wrong")
    assert lines[3].startswith(f"{address}/tiny:v1@sha256:")
    assert lines[4].endswith("nothing is wrong")
    assert lines[5:] == []


def test_a_store_that_cannot_be_written_to_can_be_used(
    author: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    url = tmp_path / "url"
    process = run_in_mount(
        f"""
        mount --bind {author} {author}
        mount -o remount,bind,ro {author}
        export MODELPACK_STORE={author}
        modelpack list
        modelpack inspect tiny:v1
        modelpack df
        modelpack fsck
        modelpack prune --dry-run
        modelpack run tiny:v1 Hello --max-tokens 2
        modelpack tag tiny:v1 other:v1 || echo "tag: $?"
        modelpack rm tiny:v1 || echo "rm: $?"
        modelpack prune
        "{sys.executable}" -m modelpack registry serve --port 0 > {url} & server=$!
        while [ ! -s {url} ]; do kill -0 $server; sleep 0.1; done
        modelpack pull $(sed s,http://,, {url})/tiny:v1 --insecure-skip-verify --store {url}-store
        kill $server
        wait $server
        """,
        environment,
    )

    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[1].startswith("tiny:v1")
    assert "tag: 1\nrm: 1\n" in process.stdout
    assert process.stderr.count("error[disk.read-only]") == 2
    assert "Traceback" not in process.stderr
    assert [str(tag.reference) for tag in Store.open(author).list()] == ["tiny:v1", "tiny:v1-q8_0"]
