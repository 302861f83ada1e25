"""oras-py's own push and pull, on our engine and against its own client."""

import random
from collections.abc import Iterator
from pathlib import Path

import oras.client
import oras.provider
import pytest
from fakes.docker_registry import running_docker_registry
from fakes.registry import FakeRegistry

from modelpack.compat.oras import Registry
from modelpack.errors import AccessDeniedError, DigestMismatchError, MalformedReferenceError, UnsupportedError
from modelpack.registry.credentials import Credential, FixedCredentials
from modelpack.registry.retry import Retries

WEIGHTS = random.Random(10).randbytes(2_000_000)
FAST = Retries(sleep=lambda _: None)


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    # oras-py looks for ~/.docker/config.json by itself, and takes relative paths only.
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    Path("weights.gguf").write_bytes(WEIGHTS)
    return "weights.gguf"


@pytest.fixture
def fake() -> Iterator[FakeRegistry]:
    with FakeRegistry() as registry:
        yield registry


@pytest.mark.docker_registry
def test_what_one_pushes_the_other_pulls(weights: str, tmp_path: Path) -> None:
    with running_docker_registry(tmp_path / "registry") as address:
        ours, theirs = Registry(), oras.client.OrasClient(insecure=True)

        assert ours.push(f"{address}/me/tiny:ours", files=[weights]).status_code == 201
        assert theirs.push(f"{address}/me/tiny:theirs", files=[weights]).status_code == 201

        assert Path(theirs.pull(f"{address}/me/tiny:ours", outdir="a")[0]).read_bytes() == WEIGHTS
        assert Path(ours.pull(f"{address}/me/tiny:theirs", outdir="b")[0]).read_bytes() == WEIGHTS
        assert ours.get_tags(f"{address}/me/tiny") == ["ours", "theirs"]
        assert ours.delete_tag(f"{address}/me/tiny", "ours") is True
        assert ours.delete_tag(f"{address}/me/tiny", "ours") is False


def test_changed_bytes_are_refused_and_leave_no_file(weights: str, fake: FakeRegistry) -> None:
    registry = Registry(retries=FAST)
    registry.push(f"{fake.address}/me/tiny:v1", files=[weights])
    fake.fail("GET", "blobs", change_body=lambda body: b"!" + body[1:])

    with pytest.raises(DigestMismatchError):
        registry.pull(f"{fake.address}/me/tiny:v1", outdir="out")
    assert list(Path("out").iterdir()) == []


def test_a_broken_transfer_goes_on(weights: str, fake: FakeRegistry) -> None:
    registry = Registry(retries=FAST)
    fake.fail("PUT", "uploads", reset_after=1_000_000)
    registry.push(f"{fake.address}/me/tiny:v1", files=[weights])
    fake.fail("GET", "blobs", cut_after=1_000_000)

    assert Path(registry.pull(f"{fake.address}/me/tiny:v1", outdir="out")[0]).read_bytes() == WEIGHTS
    assert "range" in fake.requests[-1].headers


def test_an_upload_is_never_sent_to_another_host(weights: str, fake: FakeRegistry) -> None:
    with FakeRegistry() as thief:
        fake.location = lambda path: f"{thief.url}{path}"

        with pytest.raises(Exception, match="another host"):
            Registry(retries=FAST).push(f"{fake.address}/me/tiny:v1", files=[weights])
        assert thief.requests == []


def test_credentials_are_ours_or_what_the_client_was_told(weights: str) -> None:
    with FakeRegistry(auth="token") as fake:
        target = f"{fake.address}/me/tiny:v1"
        with pytest.raises(AccessDeniedError):
            Registry(retries=FAST).push(target, files=[weights])
        given = Registry(retries=FAST, credentials=FixedCredentials(Credential("alice", "s3cret-canary")))
        assert given.push(target, files=[weights]).status_code == 201
        told = Registry(retries=FAST)
        told.auth.set_basic_auth("alice", "s3cret-canary")
        assert told.get_manifest(target)["layers"][0]["size"] == len(WEIGHTS)


def test_references_follow_the_specification(fake: FakeRegistry) -> None:
    with pytest.raises(MalformedReferenceError):
        Registry().get_manifest(f"{fake.address}/a:tag:tag")
    assert Registry().get_container("localhost/a:1").registry == "localhost"


def test_what_would_go_round_the_checks_is_refused(fake: FakeRegistry) -> None:
    with pytest.raises(UnsupportedError):
        Registry().get_blob(f"{fake.address}/me/tiny", "sha256:" + "0" * 64)
    with pytest.raises(UnsupportedError, match="always verified"):
        Registry(tls_verify=False)
    assert issubclass(Registry, oras.provider.Registry)
