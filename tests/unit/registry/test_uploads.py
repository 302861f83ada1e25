"""Writing blobs: one shot, fresh sessions, and nothing visible that is not right."""

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import pytest
from fakes.registry import FakeRegistry
from fakes.registry_flavours import ARTIFACTORY, DISTRIBUTION_2, ECR, Quirks

from modelpack.errors import AccessDeniedError, DigestMismatchError, RegistryRefusedError, RegistryUnavailableError
from modelpack.oci.manifest import Descriptor
from modelpack.oci.target import Written
from modelpack.registry import uploads
from modelpack.registry.client import Registry, Repository
from modelpack.registry.credentials import Credential, FixedCredentials
from modelpack.registry.profiles import GENERIC, Patch, Profile
from modelpack.store import Store

WEIGHTS = random.Random(8).randbytes(3_000_000)
DESCRIPTOR = Descriptor.of(WEIGHTS, "application/octet-stream")
STEP = 100_000
ALICE = FixedCredentials(Credential("alice", "s3cret-canary"))
OpenRegistry = Callable[..., Registry]


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
    fake.quirks = DISTRIBUTION_2
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


def test_a_broken_upload_goes_on_where_the_registry_says_it_stands(repository: Repository, fake: FakeRegistry) -> None:
    heard: list[int] = []
    fake.fail("PUT", "uploads/1", reset_after=1_500_000)

    repository.write_blob(DESCRIPTOR, open_weights, on_bytes=heard.append)

    assert fake.blobs[str(DESCRIPTOR.digest)] == WEIGHTS
    assert fake.count("POST") == 1
    first, second = (one for one in fake.requests if one.method == "PUT")
    assert second.headers["content-range"] == f"{first.body_size}-{len(WEIGHTS) - 1}"
    assert second.body_size == len(WEIGHTS) - first.body_size
    assert sum(heard) == len(WEIGHTS)


def test_an_upload_that_lacks_only_its_end_is_closed(repository: Repository, fake: FakeRegistry) -> None:
    # Everything arrived, and then the connection broke before the registry had stored it.
    fake.fail("PUT", "uploads/1", reset_after=len(WEIGHTS))

    repository.write_blob(DESCRIPTOR, open_weights)

    assert fake.blobs[str(DESCRIPTOR.digest)] == WEIGHTS
    assert [one.body_size for one in fake.requests if one.method == "PUT"] == [len(WEIGHTS), 0]


@pytest.mark.parametrize("range_", ["0-0", "0-99999999999", "5-10", "bytes", ""])
def test_a_status_that_says_nothing_sensible_is_not_believed(
    repository: Repository, fake: FakeRegistry, range_: str
) -> None:
    fake.fail("PUT", "uploads/1", reset_after=1_500_000)
    fake.fail("GET", "uploads/1", status=204, headers={"Range": range_, "Location": "/v2/me/tiny/blobs/uploads/1"})

    repository.write_blob(DESCRIPTOR, open_weights)

    assert fake.blobs[str(DESCRIPTOR.digest)] == WEIGHTS
    assert fake.count("POST") == 2


def test_an_upload_that_does_not_advance_is_started_over(
    repository: Repository, fake: FakeRegistry, sleeps: list[float]
) -> None:
    fake.quirks = Quirks(keeps_broken=False)
    fake.fail("PUT", "uploads", times=99, reset_after=1_500_000)

    with pytest.raises(RegistryUnavailableError):
        repository.write_blob(DESCRIPTOR, open_weights)
    assert len(sleeps) == 5


def test_a_blob_that_another_repository_has_is_mounted(fake: FakeRegistry, open_registry: OpenRegistry) -> None:
    fake.quirks = DISTRIBUTION_2
    fake.add_blob(WEIGHTS, repositories=("me/base",))
    repository = open_registry(fake).repository("me/tiny", push=True, mount_from=lambda _: ("me/gone", "me/base"))
    heard: list[int] = []

    written = repository.write_blob(DESCRIPTOR, open_weights, on_bytes=heard.append)

    assert written == Written(is_mounted=True)
    assert repository.has_blob(DESCRIPTOR)
    assert fake.count("PUT") == 0
    assert fake.count("POST", f"mount={DESCRIPTOR.digest}&from=me%2Fbase") == 1
    assert heard == []


def test_a_mount_that_is_not_made_leaves_a_session_to_use(fake: FakeRegistry, open_registry: OpenRegistry) -> None:
    fake.quirks = ECR
    repository = open_registry(fake).repository("me/tiny", push=True, mount_from=lambda _: ("me/base",))

    repository.write_blob(DESCRIPTOR, open_weights)

    assert fake.blobs[str(DESCRIPTOR.digest)] == WEIGHTS
    assert (fake.count("POST"), fake.count("PUT")) == (1, 1)


@pytest.mark.parametrize("status", [400, 403, 404, 500])
def test_a_mount_that_fails_is_no_failure(fake: FakeRegistry, open_registry: OpenRegistry, status: int) -> None:
    fake.quirks = Quirks(mount_status=status)
    repository = open_registry(fake).repository("me/tiny", push=True, mount_from=lambda _: ("me/base",))

    repository.write_blob(DESCRIPTOR, open_weights)

    assert fake.blobs[str(DESCRIPTOR.digest)] == WEIGHTS


def test_a_mount_asks_for_the_right_to_read_the_other_repository(
    fake: FakeRegistry, open_registry: OpenRegistry
) -> None:
    fake.auth = "token"
    fake.quirks = DISTRIBUTION_2
    fake.add_blob(WEIGHTS, repositories=("me/base",))
    registry = open_registry(fake, credentials=ALICE)

    registry.repository("me/tiny", push=True, mount_from=lambda _: ("me/base",)).write_blob(DESCRIPTOR, open_weights)

    assert fake.owners[str(DESCRIPTOR.digest)] == {"me/base", "me/tiny"}
    assert any("repository%3Ame%2Fbase%3Apull" in one.path for one in fake.requests if one.path.startswith("/token"))


def test_a_registry_that_refuses_the_put_gets_a_patch(repository: Repository, fake: FakeRegistry) -> None:
    fake.quirks = ARTIFACTORY
    heard: list[int] = []

    repository.write_blob(DESCRIPTOR, open_weights, on_bytes=heard.append)
    other = Descriptor.of(b"licence", "text/plain")
    repository.write_blob(other, lambda offset: nullcontext(iter([b"licence"])))

    assert fake.blobs[str(DESCRIPTOR.digest)] == WEIGHTS
    assert fake.blobs[str(other.digest)] == b"licence"
    assert fake.count("PATCH") == 2
    # The second blob does not try what the first has learnt.
    assert fake.count("PUT") == 3
    assert "content-range" not in next(one for one in fake.requests if one.method == "PATCH").headers
    assert sum(heard) == len(WEIGHTS)


def test_a_patch_may_have_to_come_in_transfer_chunks(fake: FakeRegistry, open_registry: OpenRegistry) -> None:
    fake.quirks = Quirks(put_refusal=405, largest_sized_patch=1 << 20)
    chunked = Profile("picky", patch=Patch.CHUNKED)

    open_registry(fake, profile=chunked).repository("me/tiny").write_blob(DESCRIPTOR, open_weights)

    assert fake.blobs[str(DESCRIPTOR.digest)] == WEIGHTS
    with pytest.raises(RegistryRefusedError, match="416"):
        open_registry(fake, profile=GENERIC).repository("me/tiny").write_blob(DESCRIPTOR, open_weights)


def test_a_registry_without_patch_gets_none(fake: FakeRegistry, open_registry: OpenRegistry) -> None:
    fake.quirks = Quirks(put_refusal=405)
    registry = open_registry(fake, profile=Profile("monolithic", patch=Patch.NEVER))

    with pytest.raises(RegistryRefusedError, match="405"):
        registry.repository("me/tiny").write_blob(DESCRIPTOR, open_weights)
    assert fake.count("PATCH") == 0


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "_PIECE_SIZE", 1_000_000)


@pytest.mark.usefixtures("small_pieces")
def test_a_body_that_is_too_large_goes_in_pieces(repository: Repository, fake: FakeRegistry) -> None:
    fake.quirks = Quirks(largest_body=1_200_000)
    other = WEIGHTS[::-1]
    heard: list[int] = []

    repository.write_blob(DESCRIPTOR, open_weights, on_bytes=heard.append)
    repository.write_blob(Descriptor.of(other, "application/octet-stream"), lambda _: nullcontext(iter([other])))

    assert set(fake.blobs.values()) == {WEIGHTS, other}
    ranges = [one.headers["content-range"] for one in fake.requests if one.method == "PATCH"]
    assert ranges == ["0-999999", "1000000-1999999", "2000000-2999999"] * 2
    # The second blob does not try what the first has learnt.
    assert fake.count("PUT") == 3
    assert sum(heard) == len(WEIGHTS)


@pytest.mark.usefixtures("small_pieces")
def test_a_large_blob_learns_from_one_that_was_refused_meanwhile(repository: Repository, fake: FakeRegistry) -> None:
    fake.quirks = Quirks(largest_body=1_200_000)
    other = WEIGHTS[::-1]

    def open_behind_another(offset: int) -> AbstractContextManager[Iterator[bytes]]:
        if not fake.blobs:
            repository.write_blob(Descriptor.of(other, "a/b"), lambda _: nullcontext(iter([other])))
        return open_weights(offset)

    repository.write_blob(DESCRIPTOR, open_behind_another)

    assert set(fake.blobs.values()) == {WEIGHTS, other}


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("fault", [{"reset_after": 400_000}, {"status": 503}])
def test_pieces_go_on_after_a_break(repository: Repository, fake: FakeRegistry, fault: dict[str, int]) -> None:
    fake.quirks = Quirks(largest_body=1_200_000)
    repository.write_blob(Descriptor.of(b"?" * 2_000_000, "a/b"), lambda _: nullcontext(iter([b"?" * 2_000_000])))
    sent = fake.count("PATCH")

    def open_and_break(offset: int) -> AbstractContextManager[Iterator[bytes]]:
        def chunks() -> Iterator[bytes]:
            with open_weights(offset) as all_of_it:
                for number, chunk in enumerate(all_of_it):
                    if number == 15 and fake.count("PATCH") == sent + 1:
                        fake.fail("PATCH", "uploads", **fault)
                    yield chunk

        return nullcontext(chunks())

    repository.write_blob(DESCRIPTOR, open_and_break)

    assert fake.blobs[str(DESCRIPTOR.digest)] == WEIGHTS
    starts = [int(one.headers["content-range"].split("-")[0]) for one in fake.requests if one.method == "PATCH"][sent:]
    assert starts[:3] == [0, 1_000_000, 1_000_000 + fault.get("reset_after", 0)]


@pytest.mark.usefixtures("small_pieces")
def test_pieces_of_an_earlier_process_count(
    fake: FakeRegistry, open_registry: OpenRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "_WORTH_REMEMBERING", 0)
    fake.quirks = Quirks(largest_body=1_200_000)
    remember = Store.open(tmp_path / "store").push_note

    def open_and_die(offset: int) -> AbstractContextManager[Iterator[bytes]]:
        def chunks() -> Iterator[bytes]:
            with open_weights(offset) as all_of_it:
                for chunk in all_of_it:
                    if fake.count("PATCH"):
                        raise OSError("the disk is gone")
                    yield chunk

        return nullcontext(chunks())

    with pytest.raises(OSError, match="the disk is gone"):
        open_registry(fake).repository("me/tiny", remember=remember).write_blob(DESCRIPTOR, open_and_die)
    written = open_registry(fake).repository("me/tiny", remember=remember).write_blob(DESCRIPTOR, open_weights)

    assert fake.blobs[str(DESCRIPTOR.digest)] == WEIGHTS
    assert written == Written(kept=1_000_000)
    ranges = [one.headers["content-range"] for one in fake.requests if one.method == "PATCH"]
    assert ranges == ["0-999999", "1000000-1999999", "2000000-2999999"]


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("keeps", ["first", "last"])
def test_a_registry_that_loses_pieces_is_found_out(repository: Repository, fake: FakeRegistry, keeps: str) -> None:
    fake.quirks = Quirks(largest_body=1_200_000, patch_keeps=keeps)

    with pytest.raises(RegistryRefusedError, match="kept 1000000 of the 2000000 bytes"):
        repository.write_blob(DESCRIPTOR, open_weights)
    assert fake.blobs == {}


@pytest.mark.usefixtures("small_pieces")
def test_a_registry_that_is_known_to_lose_pieces_gets_none(fake: FakeRegistry, open_registry: OpenRegistry) -> None:
    fake.quirks = Quirks(largest_body=1_200_000)
    registry = open_registry(fake, profile=Profile("forgetful", takes_pieces=False))

    with pytest.raises(RegistryRefusedError, match="413"):
        registry.repository("me/tiny").write_blob(DESCRIPTOR, open_weights)
    assert fake.count("PATCH") == 0


@pytest.mark.usefixtures("small_pieces")
def test_pieces_of_what_is_not_right_are_never_closed(repository: Repository, fake: FakeRegistry) -> None:
    fake.quirks = Quirks(largest_body=1_200_000)
    wrong = Descriptor(DESCRIPTOR.media_type, Descriptor.of(b"other", "a/b").digest, DESCRIPTOR.size)

    with pytest.raises(DigestMismatchError):
        repository.write_blob(wrong, open_weights)
    assert fake.blobs == {}


def test_a_patch_of_which_not_all_was_kept_does_not_pass(repository: Repository, fake: FakeRegistry) -> None:
    fake.quirks = Quirks(put_refusal=405)
    fake.fail("PATCH", "uploads", status=202, headers={"Range": "0-999", "Location": "/v2/me/tiny/blobs/uploads/1"})

    with pytest.raises(RegistryRefusedError, match="kept 1000 of the 3000000 bytes"):
        repository.write_blob(DESCRIPTOR, open_weights)
    assert fake.blobs == {}
