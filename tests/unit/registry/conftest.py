from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fakes.registry import FakeRegistry

from modelpack.registry.client import Registry, Repository, connect
from modelpack.registry.credentials import Credential, FixedCredentials
from modelpack.registry.network import NetworkSettings
from modelpack.registry.retry import Retries

ALICE = FixedCredentials(Credential("alice", "s3cret-canary"))


@pytest.fixture
def fake() -> Iterator[FakeRegistry]:
    with FakeRegistry() as registry:
        yield registry


@pytest.fixture
def sleeps() -> list[float]:
    """How long the client would have slept."""
    return []


@pytest.fixture
def open_registry(sleeps: list[float]) -> Callable[..., Registry]:
    def opened(fake: FakeRegistry, **settings: Any) -> Registry:
        settings.setdefault("network", NetworkSettings(read_timeout=5))
        return connect(fake.address, retries=Retries(sleep=sleeps.append, jitter=lambda: 1.0), **settings)

    return opened


@pytest.fixture
def repository(fake: FakeRegistry, open_registry: Callable[..., Registry]) -> Repository:
    return open_registry(fake).repository("me/tiny")
