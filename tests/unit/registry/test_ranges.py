"""Reading one blob in several places at once, and what that costs on the wire."""

import random
import time
from collections.abc import Callable, Iterator

import pytest
from fakes.registry import FakeRegistry
from fakes.registry_flavours import Quirks

from modelpack.errors import DigestMismatchError, RegistryUnavailableError
from modelpack.oci.manifest import Descriptor
from modelpack.oci.target import RangesIgnoredError, read_whole
from modelpack.registry.client import Registry, Repository
from modelpack.registry.network import NetworkSettings
from modelpack.registry.traffic import Traffic

Opener = Callable[..., Registry]
WEIGHTS = random.Random(17).randbytes(3_000_000)


@pytest.fixture
def weights(fake: FakeRegistry) -> Descriptor:
    return fake.add_blob(WEIGHTS)


def part(repository: Repository, weights: Descriptor, start: int, stop: int) -> bytes:
    with repository.open_range(weights, start, stop) as chunks:
        return b"".join(chunks)


def test_a_part_is_a_closed_range(repository: Repository, fake: FakeRegistry, weights: Descriptor) -> None:
    assert part(repository, weights, 1_000_000, 2_000_000) == WEIGHTS[1_000_000:2_000_000]
    assert fake.requests[-1].headers["range"] == "bytes=1000000-1999999"


def test_a_broken_part_goes_on_where_it_broke(repository: Repository, fake: FakeRegistry, weights: Descriptor) -> None:
    fake.fail("GET", "blobs", cut_after=300_000)

    assert part(repository, weights, 1_000_000, 2_000_000) == WEIGHTS[1_000_000:2_000_000]
    assert [one.headers["range"] for one in fake.requests] == ["bytes=1000000-1999999", "bytes=1300000-1999999"]


def test_a_registry_that_sends_everything_is_not_read_in_parts(
    repository: Repository, fake: FakeRegistry, weights: Descriptor
) -> None:
    fake.quirks = Quirks(ignores_ranges=True)

    with pytest.raises(RangesIgnoredError):
        part(repository, weights, 0, 1_000_000)
    assert read_whole(repository, weights, limit=1 << 22) == WEIGHTS


def test_a_part_that_a_proxy_lengthens_is_refused(
    repository: Repository, fake: FakeRegistry, weights: Descriptor
) -> None:
    fake.fail("GET", "blobs", change_body=lambda body: body + b"more")

    with pytest.raises(DigestMismatchError, match="longer than"):
        part(repository, weights, 0, 1_000_000)


@pytest.fixture
def content_host() -> Iterator[FakeRegistry]:
    with FakeRegistry() as host:
        yield host


def test_the_content_host_is_asked_directly_until_its_url_expires(
    fake: FakeRegistry, open_registry: Opener, weights: Descriptor, content_host: FakeRegistry
) -> None:
    fake.content_host = content_host
    repository = open_registry(fake).repository("me/tiny")

    parts = [part(repository, weights, start, start + 1_000_000) for start in (0, 1_000_000)]
    assert (fake.count("GET", "blobs"), content_host.count("GET")) == (1, 2)
    content_host.signatures.clear()
    parts.append(part(repository, weights, 2_000_000, 3_000_000))

    assert b"".join(parts) == WEIGHTS
    assert (fake.count("GET", "blobs"), content_host.count("GET")) == (2, 4)
    assert not any(one.authorization for one in content_host.requests)


def test_a_content_host_that_refuses_a_fresh_url_is_not_asked_for_ever(
    fake: FakeRegistry, open_registry: Opener, weights: Descriptor, content_host: FakeRegistry, sleeps: list[float]
) -> None:
    fake.content_host = content_host
    content_host.fail("GET", "content", times=99, status=503)

    with pytest.raises(RegistryUnavailableError):
        part(open_registry(fake).repository("me/tiny"), weights, 0, 1_000_000)
    assert len(sleeps) == 5


def test_a_connection_that_falls_silent_is_given_up_after_the_stall_timeout(
    fake: FakeRegistry, open_registry: Opener, weights: Descriptor
) -> None:
    fake.fail("GET", "blobs", stall_after=100_000)
    # The registry may take a minute to begin its answer; once it has, silence means a dead connection.
    repository = open_registry(fake, network=NetworkSettings(read_timeout=60, stall_timeout=0.5)).repository("me/tiny")

    begun = time.monotonic()
    assert part(repository, weights, 0, 1_000_000) == WEIGHTS[:1_000_000]
    assert time.monotonic() - begun < 5


def test_traffic_counts_every_try(fake: FakeRegistry, open_registry: Opener, weights: Descriptor) -> None:
    registry = open_registry(fake)
    fake.fail("GET", "blobs", reset_after=0)
    fake.fail("GET", "blobs", cut_after=400_000)

    part(registry.repository("me/tiny"), weights, 0, 1_000_000)

    assert registry.traffic.bytes_received == 1_000_000
    assert registry.traffic.retries == 2


class Clock:
    """A clock that only moves when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_rate_limit_holds_over_everything_that_passes() -> None:
    clock = Clock()
    traffic = Traffic(1_000_000, clock=lambda: clock.now, sleep=clock.sleep)

    for _ in range(50):
        traffic.received(100_000)
    assert len(list(traffic.sending([bytes(1_000_000)] * 5))) > 5

    assert clock.now - 100.0 == pytest.approx(10, abs=0.5)


def test_an_idle_time_does_not_save_up_for_a_burst() -> None:
    clock = Clock()
    traffic = Traffic(1_000_000, clock=lambda: clock.now, sleep=clock.sleep)
    clock.now += 3600

    traffic.received(2_000_000)

    assert clock.now - 3700.0 > 1.5
