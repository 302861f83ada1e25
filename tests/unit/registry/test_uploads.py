"""Writing blobs: one shot, fresh sessions, and nothing visible that is not right."""

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import pytest
from fakes.registry import FakeRegistry

from modelpack.errors import AccessDeniedError, DigestMismatchError, RegistryRefusedError, RegistryUnavailableError
from modelpack.oci.manifest import Descriptor
from modelpack.registry.client import Repository

WEIGHTS = random.Random(8).randbytes(3_000_000)
DESCRIPTOR = Descriptor.of(WEIGHTS, "application/octet-stream")
STEP = 100_000


def open_weights(offset: int) -> AbstractContextManager[Iterator[bytes]]:
    return nullcontext(WEIGHTS[start : start + STEP] for start in range(offset, len(WEIGHTS), STEP))


def test_a_blob_is_sent_in_one_shot(repository: Repository, fake: FakeRegistry) -> None:
    heard: list[int] = []

    repository.write_blob(DESCRIPTOR, open_weights, on_bytes=heard.append)

    assert fake.blobs[str(DESCRIPTOR.digest)] == WEIGHTS
    assert [one.method for one in fake.requests] == ["POST", "PUT"]
    assert fake.requests[1].headers["content-length"] == str(len(WEIGHTS))
    assert "state=a%2Fb&digest=sha256:" in fake.requests[1].path
    assert sum(heard) == len(WEIGHTS)
    assert len(heard) == len(WEIGHTS) // STEP


def test_an_empty_blob_can_be_sent(repository: Repository, fake: FakeRegistry) -> None:
    empty = Descriptor.of(b"", "application/octet-stream")

    repository.write_blob(empty, lambda offset: nullcontext(iter([])))

    assert fake.blobs[str(empty.digest)] == b""


def test_a_broken_upload_starts_again_in_a_fresh_session(repository: Repository, fake: FakeRegistry) -> None:
    heard: list[int] = []
    fake.fail("PUT", "uploads/1", reset_after=1_500_000)
    fake.fail("PUT", "uploads/2", status=503)

    repository.write_blob(DESCRIPTOR, open_weights, on_bytes=heard.append)

    assert fake.blobs[str(DESCRIPTOR.digest)] == WEIGHTS
    assert fake.count("POST") == 3
    assert sum(heard) == len(WEIGHTS)


def test_a_session_that_vanished_is_replaced(repository: Repository, fake: FakeRegistry) -> None:
    fake.fail("PUT", "uploads/1", status=404, body=b'{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN"}]}')

    repository.write_blob(DESCRIPTOR, open_weights)

    assert fake.blobs[str(DESCRIPTOR.digest)] == WEIGHTS


def test_an_upload_whose_answer_was_lost_is_not_repeated(repository: Repository, fake: FakeRegistry) -> None:
    fake.blobs[str(DESCRIPTOR.digest)] = WEIGHTS
    fake.fail("PUT", "uploads", reset_after=len(WEIGHTS))

    repository.write_blob(DESCRIPTOR, open_weights)

    assert fake.count("PUT") == 1


def test_a_registry_that_is_down_ends_the_upload(
    repository: Repository, fake: FakeRegistry, sleeps: list[float]
) -> None:
    fake.fail("POST", "uploads", times=99, status=503, body=b'{"errors":[{"code":"UNAVAILABLE","message":"later"}]}')

    with pytest.raises(RegistryUnavailableError, match="UNAVAILABLE later"):
        repository.write_blob(DESCRIPTOR, open_weights)
    assert len(sleeps) == 5


@pytest.mark.parametrize("status", [400, 413, 405])
def test_a_refusal_is_not_repeated(repository: Repository, fake: FakeRegistry, status: int) -> None:
    fake.fail(
        "PUT", "uploads", status=status, body=b'{"errors":[{"code":"SIZE_INVALID","message":"too\\u001b[31m big"}]}'
    )

    with pytest.raises(RegistryRefusedError, match=rf"HTTP {status}\): SIZE_INVALID too \[31m big"):
        repository.write_blob(DESCRIPTOR, open_weights)
    assert fake.count("POST") == 1


def test_a_forbidden_upload_is_access_denied(repository: Repository, fake: FakeRegistry) -> None:
    fake.fail("POST", "uploads", status=403, body=b"<html>Forbidden</html>")

    with pytest.raises(AccessDeniedError, match="access denied to an upload of blob") as caught:
        repository.write_blob(DESCRIPTOR, open_weights)
    assert "html" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [WEIGHTS[:-1], WEIGHTS + b"!", b"!" + WEIGHTS[1:]], ids=["shorter", "longer", "different"]
)
def test_content_that_is_not_what_its_digest_says_does_not_arrive(
    repository: Repository, fake: FakeRegistry, content: bytes
) -> None:
    with pytest.raises(DigestMismatchError):
        repository.write_blob(DESCRIPTOR, lambda offset: nullcontext(iter([content[:STEP], content[STEP:]])))
    assert fake.blobs == {}


def test_a_file_that_cannot_be_read_is_not_a_network_error(repository: Repository, fake: FakeRegistry) -> None:
    closed: list[bool] = []

    @contextmanager
    def open_broken(offset: int) -> Iterator[Iterator[bytes]]:
        def chunks() -> Iterator[bytes]:
            yield WEIGHTS[:STEP]
            raise OSError(5, "Input/output error")

        yield chunks()

    @contextmanager
    def open_and_note(offset: int) -> Iterator[Iterator[bytes]]:
        try:
            with open_broken(offset) as chunks:
                yield chunks
        finally:
            closed.append(True)

    with pytest.raises(OSError, match="Input/output error"):
        repository.write_blob(DESCRIPTOR, open_and_note)
    assert fake.count("POST") == 1
    assert closed == [True]


def test_a_blob_that_is_there_is_seen(repository: Repository, fake: FakeRegistry) -> None:
    assert repository.has_blob(DESCRIPTOR) is False
    fake.add_blob(WEIGHTS)
    assert repository.has_blob(DESCRIPTOR) is True


def test_a_blob_of_another_size_is_not_the_blob(repository: Repository, fake: FakeRegistry) -> None:
    fake.blobs[str(DESCRIPTOR.digest)] = WEIGHTS[:-1]

    with pytest.raises(DigestMismatchError):
        repository.has_blob(DESCRIPTOR)
