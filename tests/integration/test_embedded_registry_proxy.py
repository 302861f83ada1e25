"""The embedded registry before another one: what is asked for comes from there, once, verified, and stays."""

import itertools
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fakes.docker_registry import running_docker_registry
from fakes.registry import FakeRegistry
from fakes.servers import running_registry
from fakes.wire import Client

from modelpack.errors import AccessDeniedError, NotFoundError, RegistryUnavailableError
from modelpack.oci.manifest import IMAGE_MANIFEST, Descriptor, Manifest, image_index
from modelpack.registry.client import Registry, Repository, connect
from modelpack.registry.credentials import Credential, FixedCredentials
from modelpack.registry.retry import Retries
from modelpack.store import Store, fsck
from modelpack.transfer import copy

IMPATIENT = Retries(attempts=2, sleep=lambda _: None)
LARGE = random.Random(21).randbytes(70 << 20)


@pytest.fixture
def far() -> Iterator[FakeRegistry]:
    with FakeRegistry() as registry:
        yield registry


@pytest.fixture
def kept(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "kept")


@contextmanager
def before(far: FakeRegistry, kept: Store, **options: object) -> Iterator[Repository]:
    """The repository me/tiny as a client behind the proxy sees it."""
    upstream: Registry = connect(far.address, retries=IMPATIENT, **options)
    with running_registry(kept, upstream=upstream) as address:
        yield connect(address, retries=IMPATIENT).repository("me/tiny")


def pull(source: Repository, store: Store, tag: str = "v1") -> None:
    copy(source, store.repository("tiny"), source.resolve(tag), tag=tag)


def blob_requests(far: FakeRegistry, manifest: Manifest) -> int:
    return far.count("GET", f"blobs/{manifest.layers[0].digest}")


def test_what_is_pulled_comes_from_upstream_once_and_stays(far: FakeRegistry, kept: Store, tmp_path: Path) -> None:
    manifest = far.add_artifact("me/tiny", b"weights", b"licence", tag="v1")
    signature = far.add_artifact("me/tiny", b"signature", subject=manifest.descriptor)
    with before(far, kept) as proxy:
        pull(proxy, Store.open(tmp_path / "one"))
        pull(proxy, Store.open(tmp_path / "two"))

        assert blob_requests(far, manifest) == 1
        assert far.count("GET", f"manifests/{manifest.digest}") == 1
        assert proxy.list_tags() == ["v1"]
    assert [str(one.reference) for one in kept.list()] == [f"{far.address}/me/tiny:v1"]
    there = kept.repository(f"{far.address}/me/tiny")
    assert [one.digest for one in there.list_referrers(manifest.digest)] == [signature.digest]
    assert fsck.check(kept).findings == ()


def test_an_index_stays_with_all_it_lists(far: FakeRegistry, kept: Store, tmp_path: Path) -> None:
    variants = [far.add_artifact("me/tiny", bytes([number])) for number in range(2)]
    far.add_manifest("me/tiny", image_index([one.descriptor for one in variants]), tag="all")
    with before(far, kept) as proxy:
        pull(proxy, Store.open(tmp_path / "one"), "all")
    assert [str(one.reference) for one in kept.list()] == [f"{far.address}/me/tiny:all"]


def test_a_large_blob_flows_while_it_comes(far: FakeRegistry, kept: Store) -> None:
    manifest = far.add_artifact("me/tiny", LARGE, tag="v1")
    layer = manifest.layers[0]
    begun, rest = itertools.count(), threading.Event()
    # The first segment comes; what follows waits.
    far.before_answer = lambda _: None if next(begun) == 0 else rest.wait(20)
    with before(far, kept) as proxy:
        with proxy.read_blob(layer) as chunks:
            content = next(chunks)
            assert kept.blobs.size(layer.digest) is None, "it cannot be whole yet"
            rest.set()
            assert content + b"".join(chunks) == LARGE
        assert kept.blobs.size(layer.digest) == len(LARGE)


def test_many_who_want_one_blob_at_once_bring_it_once(far: FakeRegistry, kept: Store, tmp_path: Path) -> None:
    manifest = far.add_artifact("me/tiny", LARGE, tag="v1")
    with before(far, kept) as proxy, ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda number: pull(proxy, Store.open(tmp_path / f"reader-{number}")), range(6)))
    sent = sum(one.sent for one in far.requests if str(manifest.layers[0].digest) in one.path and one.method == "GET")
    assert sent == len(LARGE)


def test_a_tag_that_moves_upstream_moves_here(far: FakeRegistry, kept: Store, tmp_path: Path) -> None:
    far.add_artifact("me/tiny", b"old", tag="v1")
    with before(far, kept) as proxy:
        pull(proxy, Store.open(tmp_path / "one"))
        new = far.add_artifact("me/tiny", b"new", tag="v1")
        assert proxy.resolve("v1").digest == new.digest


def test_when_nobody_answers_upstream_what_it_was_is_served(
    far: FakeRegistry, kept: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = far.add_artifact("me/tiny", b"weights", tag="v1")
    with before(far, kept) as proxy:
        pull(proxy, Store.open(tmp_path / "one"))
        for method in ("GET", "HEAD"):
            far.fail(method, "/v2/", times=999, status=503)

        pull(proxy, Store.open(tmp_path / "two"))

        assert proxy.resolve("v1").digest == manifest.digest
        assert "which is served as it was" in caplog.text
        with pytest.raises(RegistryUnavailableError):
            proxy.resolve("v2")


def test_what_upstream_does_not_have_or_give_is_not_here(far: FakeRegistry, kept: Store) -> None:
    far.add_artifact("me/tiny", b"weights", tag="v1")
    with before(far, kept) as proxy:
        with pytest.raises(NotFoundError):
            proxy.resolve("v2")
        with pytest.raises(NotFoundError):
            proxy.describe_blob(Descriptor.of(b"nowhere", IMAGE_MANIFEST).digest)
    with FakeRegistry(auth="basic") as closed, before(closed, kept) as proxy, pytest.raises(AccessDeniedError):
        proxy.resolve("v1")


def test_it_asks_with_its_own_credentials(kept: Store, tmp_path: Path) -> None:
    with FakeRegistry(auth="token") as closed:
        closed.add_artifact("me/tiny", b"weights", tag="v1")
        alice = FixedCredentials(Credential("alice", "s3cret-canary"))
        with before(closed, kept, credentials=alice) as proxy:
            pull(proxy, Store.open(tmp_path / "one"))
        assert closed.count("GET", "/blobs/") > 0


def test_wrong_bytes_from_upstream_are_never_kept(far: FakeRegistry, kept: Store) -> None:
    manifest = far.add_artifact("me/tiny", LARGE, tag="v1")
    layer = manifest.layers[0]
    far.blobs[str(layer.digest)] = LARGE[:-1] + bytes([LARGE[-1] ^ 1])
    with before(far, kept) as proxy, pytest.raises(RegistryUnavailableError), proxy.read_blob(layer) as chunks:
        for _ in chunks:
            pass
    assert kept.blobs.size(layer.digest) is None


def idle_since(store: Store, *, days: int) -> None:
    """Nobody has asked for anything, and nothing was written, for so long."""
    then = time.time() - days * 24 * 3600
    for path in (*store.cached.directory.iterdir(), *store.blobs.directory.iterdir()):
        os.utime(path, (then, then))


def names(store: Store) -> list[str]:
    return [str(one.reference) for one in store.list()]


def test_what_nobody_asks_for_any_more_is_pruned_with_its_signatures(
    far: FakeRegistry, kept: Store, tmp_path: Path
) -> None:
    manifest = far.add_artifact("me/tiny", b"weights", b"licence", tag="v1")
    far.add_artifact("me/tiny", b"signature", subject=manifest.descriptor)
    far.add_artifact("me/tiny", b"cosign's", tag=f"sha256-{manifest.digest.hex}.sig")
    far.add_artifact("me/tiny", b"weights", b"news", tag="v2")
    with before(far, kept) as proxy:
        pull(proxy, Store.open(tmp_path / "one"), "v1")
        idle_since(kept, days=40)
        pull(proxy, Store.open(tmp_path / "two"), "v2")
        assert kept.plan_prune().entries == (), "no tag goes by itself"

        plan = kept.plan_prune(cached_age=timedelta(days=30))
        gone = kept.prune(cached_age=timedelta(days=30))

        assert [str(tag) for tag in gone.tags] == [f"{far.address}/me/tiny:v1"]
        assert plan.blobs == gone.blobs
        assert manifest.layers[1].digest in {digest for digest, _ in gone.blobs}
        assert manifest.layers[0].digest not in {digest for digest, _ in gone.blobs}
        assert names(kept) == [f"{far.address}/me/tiny:v2"]
        assert not [entry for entry in kept.read_index().entries if manifest.digest.hex in entry.name]
        assert fsck.check(kept).findings == ()
        # It is there for the next who asks.
        pull(proxy, Store.open(tmp_path / "three"), "v1")
        assert len(names(kept)) == 2
    kept.prune(grace=timedelta(0), cached_age=timedelta(0))
    assert (names(kept), list(kept.cached.directory.iterdir())) == ([], [])


def test_what_somebody_asked_for_is_kept_even_when_nobody_answers_upstream(
    far: FakeRegistry, kept: Store, tmp_path: Path
) -> None:
    far.add_artifact("me/tiny", b"weights", tag="v1")
    with before(far, kept) as proxy:
        pull(proxy, Store.open(tmp_path / "one"))
        for answers in (True, False):
            idle_since(kept, days=40)
            if not answers:
                far.fail("HEAD", "/v2/", times=99, status=503)
            proxy.resolve("v1")
            assert kept.prune(cached_age=timedelta(days=30)).tags == ()


def test_what_a_person_has_under_a_tag_is_no_cache(far: FakeRegistry, kept: Store, tmp_path: Path) -> None:
    manifest = far.add_artifact("me/tiny", b"weights", tag="pulled")
    far.add_manifest("me/tiny", manifest, tag="own")
    far.add_manifest("me/tiny", manifest, tag="moved")
    there = kept.repository(f"{far.address}/me/tiny")
    remote = connect(far.address).repository("me/tiny")
    copy(remote, there, remote.resolve("own"), tag="own")
    with before(far, kept) as proxy:
        for tag in ("own", "moved"):
            pull(proxy, Store.open(tmp_path / tag), tag)
        other = far.add_artifact("me/other", b"mine")
        source = connect(far.address).repository("me/other")
        copy(source, there, other.descriptor, tag="moved")
        pull(proxy, Store.open(tmp_path / "pulled"), "pulled")
    idle_since(kept, days=40)
    plan = kept.plan_prune(cached_age=timedelta(0))
    assert [str(tag) for tag in plan.tags] == [f"{far.address}/me/tiny:pulled"]

    # As pull does.
    kept.put_receipt(manifest.digest, {"reference": f"{far.address}/me/tiny:pulled"})

    assert kept.prune(cached_age=timedelta(0)).tags == ()
    assert names(kept) == [f"{far.address}/me/tiny:{tag}" for tag in ("moved", "own", "pulled")]


def test_the_command_that_prunes_a_cache(
    far: FakeRegistry, modelpack: Callable[..., Any], kept: Store, tmp_path: Path
) -> None:
    far.add_artifact("me/tiny", b"weights", tag="v1")
    with before(far, kept) as proxy:
        pull(proxy, Store.open(tmp_path / "one"))
    idle_since(kept, days=2)
    store = ("--store", kept.root, "--json")

    assert modelpack("prune", *store).json("prune")["tags"] == []
    assert modelpack("prune", "--cached", "3d", *store).json("prune")["tags"] == []
    planned = modelpack("prune", "--cached", "1d", "--dry-run", *store).json("prune")
    gone = modelpack("prune", "--cached", "1d", *store).json("prune")

    assert planned["tags"] == gone["tags"] == [f"{far.address}/me/tiny:v1"]
    assert planned["bytes"] == gone["bytes"] > 0
    assert names(kept) == []
    assert modelpack("prune", "--cached", "soon").code == 2


@pytest.mark.parametrize("selector", ["v1%3Fx=1", "..%2F..%2Fv2", "v1%23", "sha256:zz"])
def test_a_selector_that_is_none_is_not_passed_on(far: FakeRegistry, kept: Store, selector: str) -> None:
    far.add_artifact("me/tiny", b"weights", tag="v1")
    with running_registry(kept, upstream=connect(far.address, retries=IMPATIENT)) as address:
        assert Client(address)("GET", f"/v2/me/tiny/manifests/{selector}").status in (400, 404)
    assert far.requests == []


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_nothing_is_written_through_it(far: FakeRegistry, kept: Store, method: str) -> None:
    with running_registry(kept, upstream=connect(far.address, retries=IMPATIENT)) as address:
        assert Client(address)(method, "/v2/me/tiny/manifests/v1").status == 405
    assert far.requests == []


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """``modelpack registry serve --proxy``, as a process of its own."""
    processes = []

    def start(upstream: str) -> str:
        command = [sys.executable, "-m", "modelpack", "registry", "serve", "--port", "0", "--proxy", upstream]
        command += ["--store", str(tmp_path / "proxy-store")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout
        return process.stdout.readline().strip().removeprefix("http://")

    yield start
    for process in processes:
        process.terminate()
        process.wait(timeout=20)


def test_skopeo_and_modelpack_pull_through_it_from_docker_registry(serve: Callable[[str], str], tmp_path: Path) -> None:
    author = Store.open(tmp_path / "author")
    repository = author.repository("tiny")
    with FakeRegistry() as draft:
        draft.add_artifact("me/tiny", LARGE, b"licence", tag="v1")
        source = connect(draft.address).repository("me/tiny")
        copy(source, repository, source.resolve("v1"), tag="v1")
    with running_docker_registry(tmp_path / "registry") as upstream:
        copy(repository, connect(upstream).repository("me/tiny", push=True), repository.resolve("v1"), tag="v1")
        address = serve(upstream)
        if shutil.which("skopeo"):
            command = ["skopeo", "copy", "--quiet", "--src-tls-verify=false", f"docker://{address}/me/tiny:v1"]
            subprocess.run([*command, f"oci:{tmp_path / 'skopeo'}:v1"], check=True, timeout=60)
        pull(connect(address).repository("me/tiny"), Store.open(tmp_path / "reader"))
    for _ in range(50):
        if Store.open(tmp_path / "proxy-store").list():
            break
        time.sleep(0.1)
    # Nobody answers upstream any more.
    pull(connect(address).repository("me/tiny"), Store.open(tmp_path / "late"))
    assert Store.open(tmp_path / "late").repository("tiny").resolve("v1") == repository.resolve("v1")
    assert fsck.check(Store.open(tmp_path / "proxy-store")).findings == ()
