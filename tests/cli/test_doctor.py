"""modelpack doctor registry: what it finds out, and what it never shows."""

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.registry import FakeRegistry
from fakes.registry_flavours import GHCR

Command = Callable[..., Any]
WEIGHTS = bytes(range(256)) * 10


@pytest.fixture
def fake() -> Iterator[FakeRegistry]:
    with FakeRegistry(auth="token") as registry:
        registry.add_artifact("me/tiny", WEIGHTS, tag="v1")
        yield registry


def login(home: Path, fake: FakeRegistry, password: str) -> Path:
    path = home / ".docker" / "config.json"
    path.parent.mkdir()
    auth = base64.b64encode(f"alice:{password}".encode()).decode()
    path.write_text(json.dumps({"auths": {fake.address: {"auth": auth}}}))
    return path


def test_a_registry_is_described_without_its_secret(modelpack: Command, home: Path, fake: FakeRegistry) -> None:
    path = login(home, fake, "s3cret-canary")

    answer = modelpack("doctor", "registry", f"{fake.address}/me/tiny:v1", "--json")
    text = modelpack("doctor", "registry", f"{fake.address}/me/tiny:v1")

    document = answer.json("doctor")
    assert document["status"] == 401
    assert document["authentication"] == [f"bearer ({fake.url}/token)"]
    assert document["credential"] == {"rule": f"the entry {fake.address} of {path}", "username": "alice"}
    assert document["login"] == {"ok": True, "error": None}
    assert (document["referrers_api"], document["ranges"], document["encrypted"]) == (True, True, False)
    for result in (answer, text):
        assert result.code == 0
        assert "canary" not in result.stdout + result.stderr
        assert "token-" not in result.stdout + result.stderr
    assert "without TLS" in text.stdout


def test_a_wrong_password_is_a_finding(modelpack: Command, home: Path, fake: FakeRegistry) -> None:
    login(home, fake, "wrong-canary")

    answer = modelpack("doctor", "registry", fake.address, "--json")

    assert answer.code == 0
    assert answer.json("doctor")["login"]["ok"] is False
    assert "incorrect username or password" in answer.json("doctor")["login"]["error"]
    assert "canary" not in answer.stdout + answer.stderr


def test_what_a_registry_lacks_is_said(modelpack: Command, fake: FakeRegistry) -> None:
    fake.auth, fake.quirks = "none", GHCR
    fake.fail("GET", "blobs", times=9, ignore_range=True)

    text = modelpack("doctor", "registry", f"{fake.address}/me/tiny:v1").stdout

    assert "none is asked for" in text
    assert "no: tags of digests serve instead" in text
    assert "no: blobs come in one stream" in text


def test_a_registry_that_is_not_there_is_a_finding(modelpack: Command) -> None:
    answer = modelpack("doctor", "registry", "127.0.0.1:9", "--json")

    assert answer.code == 0
    document = answer.json("doctor")
    assert document["status"] is None
    assert "cannot be reached" in document["problem"]


def test_limits_come_from_the_name_alone(modelpack: Command, environment: dict[str, str]) -> None:
    # A proxy that is not there keeps the test on this machine.
    answer = modelpack("doctor", "registry", "ghcr.io", "--json", env={"HTTPS_PROXY": "http://127.0.0.1:9"})

    document = answer.json("doctor")
    assert document["profile"]["name"] == "GitHub Container Registry"
    assert document["profile"]["max_layer"] == 10_000_000_000
    assert document["proxy"] is True
