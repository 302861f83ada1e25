"""Reading blobs from registries and networks that misbehave."""

import random
from collections.abc import Callable

import pytest
from fakes.registry import FakeRegistry

from modelpack.errors import (
    DigestMismatchError,
    InvalidContentError,
    NotFoundError,
    RegistryUnavailableError,
    UnavailableError,
)
from modelpack.oci.manifest import Descriptor
from modelpack.oci.target import read_whole
from modelpack.registry.client import Registry, Repository, connect
from modelpack.registry.network import NetworkSettings
from modelpack.registry.retry import Retries

WEIGHTS = random.Random(7).randbytes(3_000_000)
LIMIT = 1 << 23


@pytest.fixture
def weights(fake: FakeRegistry) -> Descriptor:
    return fake.add_blob(WEIGHTS)


def test_a_blob_streams_in_bounded_pieces(repository: Repository, weights: Descriptor) -> None:
    with repository.read_blob(weights) as chunks:
        pieces = list(chunks)

    assert b"".join(pieces) == WEIGHTS
    assert max(map(len, pieces)) <= 1 << 20


def test_a_blob_is_read_from_an_offset(repository: Repository, fake: FakeRegistry, weights: Descriptor) -> None:
    with repository.read_blob(weights, offset=2_999_990) as chunks:
        assert b"".join(chunks) == WEIGHTS[-10:]
    assert fake.requests[-1].headers["range"] == "bytes=2999990-2999999"


def test_nothing_is_asked_for_at_the_end(repository: Repository, fake: FakeRegistry, weights: Descriptor) -> None:
    with repository.read_blob(weights, offset=weights.size) as chunks:
        assert list(chunks) == []
    assert fake.requests == []


def test_a_broken_stream_goes_on_where_it_broke(
    repository: Repository, fake: FakeRegistry, weights: Descriptor, sleeps: list[float]
) -> None:
    fake.fail("GET", "blobs", cut_after=1_000_000)
    fake.fail("GET", "blobs", cut_after=500_000)

    assert read_whole(repository, weights, limit=LIMIT) == WEIGHTS
    ranges = [one.headers.get("range") for one in fake.requests]
    assert ranges == [None, "bytes=1000000-2999999", "bytes=1500000-2999999"]
    assert len(sleeps) == 2


def test_a_reset_connection_is_a_broken_stream(repository: Repository, fake: FakeRegistry, weights: Descriptor) -> None:
    fake.fail("GET", "blobs", times=3, reset_after=1_000_000)

    assert read_whole(repository, weights, limit=LIMIT) == WEIGHTS


def test_progress_gives_all_tries_back(repository: Repository, fake: FakeRegistry, weights: Descriptor) -> None:
    fake.fail("GET", "blobs", times=20, cut_after=100_000)

    assert read_whole(repository, weights, limit=LIMIT) == WEIGHTS


def test_without_progress_the_tries_end(
    repository: Repository, fake: FakeRegistry, weights: Descriptor, sleeps: list[float]
) -> None:
    fake.fail("GET", "blobs", times=99, reset_after=0)

    with pytest.raises(RegistryUnavailableError, match="broke"):
        read_whole(repository, weights, limit=LIMIT)
    assert sleeps == [0.25, 0.5, 1.0, 2.0, 4.0]


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 522])
def test_an_overloaded_registry_is_asked_again(
    repository: Repository, fake: FakeRegistry, weights: Descriptor, status: int
) -> None:
    fake.fail("GET", "blobs", times=3, status=status)

    assert read_whole(repository, weights, limit=LIMIT) == WEIGHTS


def test_retry_after_is_honoured(
    repository: Repository, fake: FakeRegistry, weights: Descriptor, sleeps: list[float]
) -> None:
    fake.fail("GET", "blobs", status=429, headers={"Retry-After": "7"})

    read_whole(repository, weights, limit=LIMIT)

    assert sleeps == [7.0]


def test_retry_after_is_not_honoured_without_bounds(
    repository: Repository, fake: FakeRegistry, weights: Descriptor, sleeps: list[float]
) -> None:
    fake.fail("GET", "blobs", status=429, headers={"Retry-After": "86400"})

    with pytest.raises(RegistryUnavailableError, match="HTTP 429"):
        read_whole(repository, weights, limit=LIMIT)
    assert sleeps == []


def test_a_registry_that_ignores_ranges_is_read_from_the_start_again(
    repository: Repository, fake: FakeRegistry, weights: Descriptor
) -> None:
    fake.fail("GET", "blobs", cut_after=1_000_000)
    fake.fail("GET", "blobs", ignore_range=True)

    assert read_whole(repository, weights, limit=LIMIT) == WEIGHTS


@pytest.mark.parametrize("content_range", ["bytes 0-2999999/3000000", "bytes 5-9/3000000", "none", ""])
def test_an_answer_with_another_range_is_refused(
    repository: Repository, fake: FakeRegistry, weights: Descriptor, content_range: str
) -> None:
    fake.fail("GET", "blobs", headers={"Content-Range": content_range})

    with (
        pytest.raises(InvalidContentError, match="asked for the bytes 100-"),
        repository.read_blob(weights, offset=100) as chunks,
    ):
        list(chunks)


def test_a_longer_blob_is_noticed_before_it_is_read(
    repository: Repository, fake: FakeRegistry, weights: Descriptor
) -> None:
    fake.fail("GET", "blobs", change_body=lambda body: body + b"!")

    with pytest.raises(DigestMismatchError, match="has 3000001 bytes where 3000000 were promised"):
        read_whole(repository, weights, limit=LIMIT)


def test_a_shorter_blob_is_noticed(repository: Repository, fake: FakeRegistry, weights: Descriptor) -> None:
    fake.fail("GET", "blobs", change_body=lambda body: body[:-1])

    with pytest.raises(DigestMismatchError):
        read_whole(repository, weights, limit=LIMIT)


def test_a_blob_that_ends_before_an_offset_is_noticed(repository: Repository, fake: FakeRegistry) -> None:
    small = fake.add_blob(b"small")
    promised = Descriptor(small.media_type, small.digest, 100)

    with (
        pytest.raises(DigestMismatchError, match="shorter than the 100 bytes promised"),
        repository.read_blob(promised, offset=50) as chunks,
    ):
        list(chunks)


def test_a_changed_byte_is_noticed(repository: Repository, fake: FakeRegistry, weights: Descriptor) -> None:
    fake.fail("GET", "blobs", change_body=lambda body: body[:-1] + bytes([body[-1] ^ 1]))

    with pytest.raises(DigestMismatchError):
        read_whole(repository, weights, limit=LIMIT)


def test_a_missing_blob_is_not_found(repository: Repository) -> None:
    with pytest.raises(NotFoundError, match=r"blob sha256:.* of 127"):
        read_whole(repository, Descriptor.of(b"x", "y"), limit=LIMIT)


def test_a_silent_registry_does_not_hold_us_for_ever(
    fake: FakeRegistry, weights: Descriptor, open_registry: Callable[..., Registry]
) -> None:
    fake.fail("GET", "blobs", stall_after=1_000_000)
    repository = open_registry(fake, network=NetworkSettings(read_timeout=0.2)).repository("me/tiny")

    assert read_whole(repository, weights, limit=LIMIT) == WEIGHTS


def test_a_trickle_counts_as_broken(
    fake: FakeRegistry, weights: Descriptor, open_registry: Callable[..., Registry]
) -> None:
    fake.fail("GET", "blobs", trickle=0.05)
    repository = open_registry(fake, network=NetworkSettings(stall_timeout=0.2)).repository("me/tiny")

    assert read_whole(repository, weights, limit=LIMIT) == WEIGHTS


def test_nobody_there_is_unavailable(sleeps: list[float]) -> None:
    with FakeRegistry() as gone:
        address = gone.address
    retries = Retries(attempts=2, sleep=sleeps.append)

    with pytest.raises(UnavailableError, match=f"http://{address} cannot be reached: Connection refused"):
        connect(address, retries=retries).repository("me/tiny").resolve("v1")
    assert len(sleeps) == 1


def test_a_name_that_does_not_resolve_is_unavailable() -> None:
    registry = connect("registry.invalid", retries=Retries(attempts=1))

    with pytest.raises(UnavailableError, match=r"registry\.invalid"):
        registry.ping()


def test_a_registry_without_tls_is_told_apart(fake: FakeRegistry) -> None:
    from modelpack.registry.address import Origin
    from modelpack.registry.http import Transport

    transport = Transport(NetworkSettings(), fake.address)

    assert Origin.of(fake.url).is_loopback
    with pytest.raises(RegistryUnavailableError, match="does not speak TLS"):
        transport.send("GET", f"https://{fake.address}/v2/", headers={})


def test_connections_are_reused(repository: Repository, fake: FakeRegistry) -> None:
    descriptors = [fake.add_blob(bytes([number])) for number in range(5)]
    for descriptor in descriptors:
        assert repository.has_blob(descriptor)
        assert read_whole(repository, descriptor, limit=10)

    assert len({one.client for one in fake.requests}) == 1
