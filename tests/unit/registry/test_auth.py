"""Who is told what: tokens, passwords, and the hosts that must never see either."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from fakes.registry import FakeRegistry

from modelpack.errors import AccessDeniedError, ModelpackError, RegistryRefusedError
from modelpack.oci.manifest import Descriptor
from modelpack.oci.target import read_whole, write_whole
from modelpack.registry.auth import _same_site
from modelpack.registry.client import Registry
from modelpack.registry.credentials import Credential, FixedCredentials
from modelpack.registry.network import NetworkSettings

Opener = Callable[..., Registry]

ALICE = FixedCredentials(Credential("alice", "s3cret-canary"))


def secrets_seen_by(registry: FakeRegistry) -> list[str]:
    """Requests that carried anything secret."""
    return [f"{one.method} {one.path}" for one in registry.requests if one.authorization or "canary" in one.path]


def test_basic_auth_is_sent_once_it_is_asked_for(open_registry: Opener) -> None:
    with FakeRegistry(auth="basic") as fake:
        manifest = fake.add_artifact("me/tiny", b"weights", tag="v1")
        repository = open_registry(fake, credentials=ALICE).repository("me/tiny")

        repository.fetch_manifest(repository.resolve("v1"))

        assert manifest.raw
        assert [bool(one.authorization) for one in fake.requests] == [False, True, True]


def test_one_token_serves_many_requests(open_registry: Opener) -> None:
    with FakeRegistry(auth="token") as fake:
        fake.add_artifact("me/tiny", b"weights", tag="v1")
        repository = open_registry(fake, credentials=ALICE).repository("me/tiny")

        for _ in range(3):
            repository.fetch_manifest(repository.resolve("v1"))

        assert fake.count("GET", "^/token") == 1


def test_a_writer_asks_for_pull_and_push_from_the_start(open_registry: Opener) -> None:
    with FakeRegistry(auth="token") as fake:
        repository = open_registry(fake, credentials=ALICE).repository("me/tiny", push=True)

        write_whole(repository, b"weights", "application/octet-stream")

        asked = [one.path for one in fake.requests if one.path.startswith("/token")]
        assert len(asked) == 1
        assert "scope=repository%3Ame%2Ftiny%3Apull%2Cpush" in asked[0]


def test_writing_after_reading_asks_for_the_right_to_write(open_registry: Opener) -> None:
    with FakeRegistry(auth="token") as fake:
        repository = open_registry(fake, credentials=ALICE).repository("me/tiny")

        descriptor = write_whole(repository, b"weights", "application/octet-stream")

        assert read_whole(repository, descriptor, limit=100) == b"weights"


def test_a_token_that_died_early_is_replaced_once(open_registry: Opener) -> None:
    with FakeRegistry(auth="token") as fake:
        fake.add_artifact("me/tiny", b"weights", tag="v1")
        repository = open_registry(fake, credentials=ALICE).repository("me/tiny")
        repository.resolve("v1")
        fake.tokens.clear()

        repository.resolve("v1")

        assert fake.count("GET", "^/token") == 2


def test_a_token_is_renewed_before_it_expires(open_registry: Opener) -> None:
    # 0.8 of a second of zero length: every use is a renewal, and no request ever meets a 401 again.
    with FakeRegistry(auth="token", token_lifetime=1) as fake:
        fake.add_artifact("me/tiny", b"weights", tag="v1")
        repository = open_registry(fake, credentials=ALICE).repository("me/tiny")
        repository.resolve("v1")
        token = next(iter(fake.tokens))
        fake.tokens[token] = (fake.tokens[token][0], float("inf"))
        time.sleep(0.85)
        repository.resolve("v1")

        assert len(fake.tokens) == 2


@pytest.mark.parametrize(("size", "tokens"), [(32 << 20, 2), (1 << 20, 1)])
def test_a_large_body_does_not_leave_with_a_token_of_which_half_is_over(
    open_registry: Opener, size: int, tokens: int
) -> None:
    with FakeRegistry(auth="token", token_lifetime=3) as fake:
        repository = open_registry(fake, credentials=ALICE).repository("me/tiny", push=True)
        assert not repository.has_blob(Descriptor.of(b"", "application/octet-stream"))
        time.sleep(1.6)

        write_whole(repository, bytes(size), "application/octet-stream")

        assert fake.count("GET", "^/token") == tokens
        assert all(one.authorization for one in fake.requests[2:] if not one.path.startswith("/token"))


def test_many_threads_ask_for_one_token(open_registry: Opener) -> None:
    with FakeRegistry(auth="token") as fake:
        blobs = [fake.add_blob(bytes([number])) for number in range(16)]
        fake.fail("GET", "^/token", status=503)
        repository = open_registry(fake, credentials=ALICE).repository("me/tiny")

        with ThreadPoolExecutor(8) as threads:
            contents = list(threads.map(lambda blob: read_whole(repository, blob, limit=1), blobs))

        assert contents == [bytes([number]) for number in range(16)]
        assert len(fake.tokens) == 1


def test_a_right_that_is_not_granted_ends_in_access_denied(open_registry: Opener) -> None:
    with FakeRegistry(auth="token") as fake:
        fake.grant = lambda scope: scope.replace(",push", "")
        repository = open_registry(fake, credentials=ALICE).repository("me/tiny", push=True)

        with pytest.raises(AccessDeniedError, match="authentication required"):
            write_whole(repository, b"weights", "application/octet-stream")
        assert fake.count("POST") == 2


def test_the_scope_that_the_registry_asks_for_is_asked_for_too(open_registry: Opener) -> None:
    # Artifactory and others name a repository otherwise in scopes than in URLs.
    with FakeRegistry(auth="token") as fake:
        fake.add_artifact("me/tiny", b"weights", tag="v1")
        challenge = f'Bearer realm="{fake.url}/token",service="fake",scope="repository:other/name:pull"'
        fake.fail("HEAD", "manifests", status=401, headers={"WWW-Authenticate": challenge})
        repository = open_registry(fake, credentials=ALICE).repository("me/tiny")

        repository.resolve("v1")

        asked = next(one.path for one in fake.requests if one.path.startswith("/token"))
        assert "scope=repository%3Ame%2Ftiny%3Apull&scope=repository%3Aother%2Fname%3Apull" in asked


def test_public_artifacts_need_no_credential(open_registry: Opener) -> None:
    with FakeRegistry(auth="token") as fake:
        fake.anonymous_pull = True
        fake.add_artifact("me/tiny", b"weights", tag="v1")

        assert open_registry(fake).repository("me/tiny").resolve("v1")


def test_a_wrong_password_is_said_and_not_shown(open_registry: Opener) -> None:
    with FakeRegistry(auth="token") as fake:
        wrong = FixedCredentials(Credential("alice", "wrong-canary"))

        with pytest.raises(AccessDeniedError, match="incorrect username or password") as caught:
            open_registry(fake, credentials=wrong).check_login()
        assert "canary" not in str(caught.value)


@pytest.mark.parametrize("auth", ["basic", "token"])
def test_a_login_is_checked_against_the_registry(open_registry: Opener, auth: str) -> None:
    with FakeRegistry(auth=auth) as fake:
        assert open_registry(fake, credentials=ALICE).check_login() is True
        with pytest.raises(AccessDeniedError):
            open_registry(fake).check_login()


def test_a_registry_that_asks_for_nothing_says_nothing_about_a_login(fake: FakeRegistry, open_registry: Opener) -> None:
    assert open_registry(fake, credentials=ALICE).check_login() is False


def test_an_identity_token_is_exchanged_for_access(open_registry: Opener) -> None:
    with FakeRegistry(auth="token") as fake:
        fake.add_artifact("me/tiny", b"weights", tag="v1")
        credentials = FixedCredentials(Credential("<token>", identity_token="refresh-canary"))

        open_registry(fake, credentials=credentials).repository("me/tiny").resolve("v1")

        assert fake.count("POST", "^/token") == 1


def test_a_token_server_elsewhere_gets_no_password(open_registry: Opener) -> None:
    with FakeRegistry() as thief, FakeRegistry(auth="token", realm=f"{thief.url}/token") as fake:
        with pytest.raises(AccessDeniedError, match="another site: not sent"):
            open_registry(fake, credentials=ALICE).ping()
        assert thief.requests == []


def test_a_token_server_elsewhere_gets_the_password_when_its_host_is_trusted(open_registry: Opener) -> None:
    with FakeRegistry(auth="token") as server, FakeRegistry(auth="token", realm=f"{server.url}/token") as fake:
        network = NetworkSettings(trusted_realms=frozenset({"127.0.0.1"}))
        fake.tokens = server.tokens

        open_registry(fake, credentials=ALICE, network=network).ping()

        assert server.count("GET", "^/token") == 1


def test_a_token_server_that_redirects_is_not_followed(open_registry: Opener) -> None:
    with FakeRegistry() as thief, FakeRegistry(auth="token") as fake:
        fake.fail("GET", "^/token", status=307, headers={"Location": f"{thief.url}/token"})

        with pytest.raises(RegistryRefusedError, match="token"):
            open_registry(fake, credentials=ALICE).ping()
        assert thief.requests == []


@pytest.mark.parametrize("token", ["", "a b", "a\\r\\nX-Evil: 1", "é", 7])
def test_what_is_no_token_is_not_sent(open_registry: Opener, token: object) -> None:
    with FakeRegistry(auth="token") as fake:
        value = f'"{token}"' if isinstance(token, str) else token
        fake.fail("GET", "^/token", times=9, status=200, body=f'{{"token": {value}}}'.encode())

        with pytest.raises(ModelpackError, match="token"):
            open_registry(fake, credentials=ALICE).ping()
        assert not [one for one in fake.requests if (one.authorization or "").startswith("Bearer")]


def test_a_blob_on_another_host_is_fetched_without_authorization(open_registry: Opener) -> None:
    with FakeRegistry() as cdn, FakeRegistry(auth="token") as fake:
        content = cdn.add_blob(b"weights")
        fake.fail("GET", "blobs", status=307, headers={"Location": f"{cdn.url}/v2/x/blobs/{content.digest}?sig=1"})
        repository = open_registry(fake, credentials=ALICE).repository("me/tiny")
        repository.list_tags()

        assert read_whole(repository, content, limit=100) == b"weights"
        assert cdn.count("GET") == 1
        assert secrets_seen_by(cdn) == []


def test_an_upload_never_goes_to_another_host(open_registry: Opener) -> None:
    with FakeRegistry() as thief, FakeRegistry(auth="token") as fake:
        fake.location = lambda path: f"{thief.url}{path}"
        repository = open_registry(fake, credentials=ALICE).repository("me/tiny", push=True)

        with pytest.raises(RegistryRefusedError, match="another host"):
            write_whole(repository, b"weights", "application/octet-stream")
        assert thief.requests == []


def test_a_redirected_upload_never_goes_to_another_host(open_registry: Opener) -> None:
    with FakeRegistry() as thief, FakeRegistry() as fake:
        fake.fail("PUT", "uploads", status=307, headers={"Location": f"{thief.url}/v2/x/blobs/uploads/1"})

        with pytest.raises(RegistryRefusedError, match="another host"):
            write_whole(open_registry(fake).repository("me/tiny"), b"weights", "application/octet-stream")
        assert thief.requests == []


def test_a_redirect_loop_ends(fake: FakeRegistry, open_registry: Opener) -> None:
    fake.fail("HEAD", "manifests", times=99, status=307, headers={"Location": "/v2/me/tiny/manifests/v1"})

    with pytest.raises(RegistryRefusedError, match="redirects more than"):
        open_registry(fake).repository("me/tiny").resolve("v1")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("auth.docker.io", "registry-1.docker.io", True),
        ("gitlab.com", "registry.gitlab.com", True),
        ("gitlab.example.org", "registry.example.org", True),
        ("evil.com", "registry.com", False),
        ("example.org.evil.com", "registry.example.org", False),
        ("evilexample.org", "registry.example.org", False),
        ("10.0.0.1", "10.0.0.2", False),
        ("com", "registry.com", False),
        ("::1", "::2", False),
    ],
)
def test_a_site_is_a_shared_parent_of_two_labels(one: str, other: str, same: bool) -> None:
    assert _same_site(one, other) is same
    assert _same_site(other, one) is same


def test_an_empty_descriptor_needs_no_request(open_registry: Opener, fake: FakeRegistry) -> None:
    empty = Descriptor.of(b"", "application/octet-stream")

    assert read_whole(open_registry(fake).repository("me/tiny"), empty, limit=1) == b""
