"""Pushes that are killed: what the registry had kept by then is not sent again, where it can tell."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from fakes.artifacts import put_cncf_model
from fakes.docker_registry import running_docker_registry
from fakes.registry import FakeRegistry
from fakes.registry_flavours import DISTRIBUTION_2, DISTRIBUTION_3
from fakes.servers import running_registry

from modelpack.errors import RegistryRefusedError
from modelpack.oci.manifest import Descriptor
from modelpack.oci.target import Written
from modelpack.registry.client import Repository, connect
from modelpack.registry.profiles import Patch, Profile
from modelpack.registry.retry import Retries
from modelpack.store import Store
from modelpack.store.pushes import PushNote

WEIGHTS = random.Random(21).randbytes(40 << 20)
DESCRIPTOR = Descriptor.of(WEIGHTS, "application/octet-stream")
BROKEN_AT = 24 << 20


def push_and_kill(store: Path, name: str, environment: dict[str, str], *, after: int) -> None:
    """Push at a slow rate, and SIGKILL it once so many bytes have been told of."""
    command = [sys.executable, "-m", "modelpack", "push", name, "--store", str(store), "--limit-rate", "12M"]
    with subprocess.Popen(
        [*command, "--progress", "json"], env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stderr
        for line in process.stderr:
            if json.loads(line).get("done", 0) >= after:
                process.send_signal(signal.SIGKILL)
                break
        else:
            pytest.fail("it ended before it could be killed")


def notes(store: Path) -> list[Path]:
    return sorted((store / "partial").glob("push-*"))


def test_a_push_that_was_killed_goes_on_where_the_registry_says(
    modelpack: Callable[..., Any], environment: dict[str, str], tmp_path: Path
) -> None:
    far = Store.open(tmp_path / "far")
    with running_registry(far) as address:
        name = f"{address}/team/tiny:v1"
        manifest, _ = put_cncf_model(Store.open(tmp_path / "here"), name, WEIGHTS)
        push_and_kill(tmp_path / "here", name, environment, after=8 << 20)
        assert [path.stat().st_mode & 0o777 for path in notes(tmp_path / "here")] == [0o600]

        answer = modelpack("push", name, "--store", tmp_path / "here", "--json").json("push")

        report = answer["transfer"]
        assert report["bytes_resumed"] > 4 << 20
        assert report["bytes_sent"] < answer["bytes_copied"] - report["bytes_resumed"] + 100_000
        far.rehash(manifest.layers[0])
        assert far.repository("team/tiny").list_tags() == ["v1"]
    assert notes(tmp_path / "here") == []


def test_a_registry_that_loses_what_breaks_gets_the_blob_again(
    modelpack: Callable[..., Any], environment: dict[str, str], tmp_path: Path
) -> None:
    """distribution 2.8: the last location it gave is good for nothing once a byte more has come."""
    with running_docker_registry(tmp_path / "registry") as address:
        name = f"{address}/team/tiny:v1"
        put_cncf_model(Store.open(tmp_path / "here"), name, WEIGHTS)
        push_and_kill(tmp_path / "here", name, environment, after=8 << 20)
        assert len(notes(tmp_path / "here")) == 1

        answer = modelpack("push", name, "--store", tmp_path / "here", "--json").json("push")
        there = modelpack("pull", name, "--insecure-skip-verify", "--store", tmp_path / "there")

        assert (answer["transfer"]["bytes_resumed"], there.code) == (0, 0)
        assert answer["transfer"]["bytes_sent"] >= len(WEIGHTS)
        assert notes(tmp_path / "here") == []


# One blob, and a registry that plays others.


@pytest.fixture
def fake() -> Iterator[FakeRegistry]:
    with FakeRegistry(quirks=DISTRIBUTION_3) as registry:
        yield registry


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "here")


def opened(fake: FakeRegistry, store: Store, **settings: Any) -> Repository:
    registry = connect(fake.address, retries=Retries(attempts=1), **settings)
    return registry.repository("me/tiny", push=True, remember=store.push_note)


def open_weights(offset: int) -> AbstractContextManager[Iterator[bytes]]:
    return nullcontext(WEIGHTS[start : start + (1 << 20)] for start in range(offset, len(WEIGHTS), 1 << 20))


def break_off(fake: FakeRegistry, store: Store) -> None:
    """One process's try, which ends after BROKEN_AT bytes."""
    fake.fail("PUT", "uploads", reset_after=BROKEN_AT)
    with pytest.raises(Exception, match="connection"):
        opened(fake, store).write_blob(DESCRIPTOR, open_weights)
    fake.requests.clear()


def note(store: Store) -> Path:
    (path,) = notes(store.root)
    return path


def sent(fake: FakeRegistry) -> list[int]:
    return [one.body_size for one in fake.requests if one.method in ("PUT", "PATCH")]


def test_the_next_process_sends_the_rest(fake: FakeRegistry, store: Store) -> None:
    break_off(fake, store)
    heard: list[int] = []

    written = opened(fake, store).write_blob(DESCRIPTOR, open_weights, on_bytes=heard.append)

    assert written == Written(kept=BROKEN_AT)
    assert sent(fake) == [len(WEIGHTS) - BROKEN_AT]
    assert fake.blobs[str(DESCRIPTOR.digest)] == WEIGHTS
    assert sum(heard) == len(WEIGHTS)
    assert (fake.count("POST"), notes(store.root)) == (0, [])


def test_what_a_registry_kept_wrongly_is_sent_again_once(fake: FakeRegistry, store: Store) -> None:
    break_off(fake, store)
    (session,) = fake.uploads
    fake.uploads[session][5] ^= 1

    written = opened(fake, store).write_blob(DESCRIPTOR, open_weights)

    assert written is None
    assert sent(fake) == [len(WEIGHTS) - BROKEN_AT, len(WEIGHTS)]
    assert fake.blobs[str(DESCRIPTOR.digest)] == WEIGHTS
    assert notes(store.root) == []


def test_a_registry_that_refuses_whatever_it_gets_is_not_tried_for_ever(fake: FakeRegistry, store: Store) -> None:
    break_off(fake, store)
    fake.fail("PUT", "uploads", times=99, status=400, body=b'{"errors":[{"code":"DIGEST_INVALID"}]}')

    with pytest.raises(RegistryRefusedError, match="DIGEST_INVALID"):
        opened(fake, store).write_blob(DESCRIPTOR, open_weights)

    assert fake.count("PUT") == 2
    assert notes(store.root) == []


def test_more_that_came_before_the_break_than_was_told_is_asked_for_again(fake: FakeRegistry, store: Store) -> None:
    break_off(fake, store)
    (session,) = fake.uploads
    said = {"Range": f"0-{BROKEN_AT - 1_000_001}", "Location": f"/v2/me/tiny/blobs/uploads/{session}"}
    fake.fail("GET", "uploads", status=204, headers=said)

    opened(fake, store).write_blob(DESCRIPTOR, open_weights)

    assert sent(fake) == [len(WEIGHTS) - BROKEN_AT + 1_000_000, len(WEIGHTS) - BROKEN_AT]
    assert fake.blobs[str(DESCRIPTOR.digest)] == WEIGHTS


@pytest.mark.parametrize("status", [400, 401, 403, 404, 500, 303])
def test_a_session_that_is_no_more_is_replaced(fake: FakeRegistry, store: Store, status: int) -> None:
    break_off(fake, store)
    fake.fail("GET", "uploads", status=status, headers={"Location": "http://127.0.0.1:1/elsewhere"})

    assert opened(fake, store).write_blob(DESCRIPTOR, open_weights) is None

    assert sent(fake) == [len(WEIGHTS)]
    assert fake.blobs[str(DESCRIPTOR.digest)] == WEIGHTS


def test_a_location_elsewhere_is_not_asked(fake: FakeRegistry, store: Store) -> None:
    break_off(fake, store)
    with FakeRegistry() as other:
        facts = json.loads(note(store).read_text())
        location = facts["location"].replace(fake.address, other.address)
        note(store).write_text(json.dumps(facts | {"location": location}))

        opened(fake, store).write_blob(DESCRIPTOR, open_weights)

        assert other.requests == []
    assert sent(fake) == [len(WEIGHTS)]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: text[:-20],
        lambda text: "[" * 10_000,
        lambda text: re.sub(r'"begun": \d+', f'"begun": {int(time.time()) - 90_000}', text),
        lambda text: re.sub(r'"begun": \d+', f'"begun": {int(time.time()) + 9_000}', text),
        lambda text: re.sub(r'"begun": \d+', '"begun": "now"', text),
        lambda text: text.replace("me/tiny@", "me/other@"),
        lambda text: re.sub(r'"location": "[^"]*"', '"location": "http://[::1"', text),
        lambda text: re.sub(r'"location": "[^"]*"', '"location": 5', text),
    ],
    ids=["empty", "torn", "deep", "old", "from the future", "no time", "of another", "no URL", "no text"],
)
def test_a_note_that_is_no_good_counts_as_none(fake: FakeRegistry, store: Store, change: Callable[[str], str]) -> None:
    break_off(fake, store)
    note(store).write_text(change(note(store).read_text()))

    opened(fake, store).write_blob(DESCRIPTOR, open_weights)

    assert fake.count("GET", "uploads") == 0
    assert sent(fake) == [len(WEIGHTS)]
    assert notes(store.root) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full disk is played by /dev/full")
def test_a_note_that_cannot_be_written_stops_no_push(fake: FakeRegistry, store: Store) -> None:
    @contextmanager
    def remember(name: str) -> Iterator[PushNote]:
        full = PushNote(store.partials / "nowhere", os.open("/dev/full", os.O_RDWR), name)
        with closing(full):
            yield full

    repository = connect(fake.address).repository("me/tiny", push=True, remember=remember)
    repository.write_blob(DESCRIPTOR, open_weights)

    assert fake.blobs[str(DESCRIPTOR.digest)] == WEIGHTS


def test_an_upload_that_another_process_is_at_is_left_alone(fake: FakeRegistry, store: Store) -> None:
    break_off(fake, store)
    with store.push_note(f"{fake.address}/me/tiny@{DESCRIPTOR.digest}") as held:
        assert held
        before = held.recall()

        opened(fake, store).write_blob(DESCRIPTOR, open_weights)

        assert held.recall() == before
    assert sent(fake) == [len(WEIGHTS)]


def test_small_blobs_and_registries_that_take_one_piece_leave_no_note(fake: FakeRegistry, store: Store) -> None:
    small = Descriptor.of(WEIGHTS[:1000], "application/octet-stream")
    fake.fail("PUT", "uploads", times=2, reset_after=500)

    with pytest.raises(Exception, match="broke"):
        opened(fake, store).write_blob(small, lambda offset: nullcontext(iter([WEIGHTS[:1000]])))
    with pytest.raises(Exception, match="broke"):
        opened(fake, store, profile=Profile("monolithic", patch=Patch.NEVER)).write_blob(DESCRIPTOR, open_weights)

    assert notes(store.root) == []


def test_a_registry_that_cannot_say_how_far_it_is_gets_all_of_it(fake: FakeRegistry, store: Store) -> None:
    fake.quirks = DISTRIBUTION_2
    break_off(fake, store)

    opened(fake, store).write_blob(DESCRIPTOR, open_weights)

    assert sent(fake) == [len(WEIGHTS)]
    assert fake.blobs[str(DESCRIPTOR.digest)] == WEIGHTS


def test_what_is_noted_goes_with_a_prune_when_it_is_old(fake: FakeRegistry, store: Store) -> None:
    break_off(fake, store)
    path = note(store)
    assert store.prune().partials == ()
    then = time.time() - 8 * 24 * 3600
    os.utime(path, (then, then))

    assert [partial for partial, _ in store.prune().partials] == [path]
    assert notes(store.root) == []
