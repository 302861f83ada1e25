"""A registry that may turn hostile, a model published in it, and the developer who pulls from it."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from evil_manifests import NAME, WEIGHTS
from fakes.artifacts import put_cncf_model
from fakes.registry import FakeRegistry

from modelpack.convert import Checkpoint, plan_conversion, run_conversion
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import Manifest
from modelpack.store import Store


@dataclass
class Published:
    """A signed model in a registry."""

    reference: str
    manifest: Manifest
    weights: Digest


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as fake:
        yield fake


@pytest.fixture
def published(registry, modelpack, key_pair, tmp_path) -> Published:
    reference = f"{registry.address}/{NAME}:v1"
    manifest, _ = put_cncf_model(Store.open(tmp_path / "author-store"), reference, WEIGHTS)
    arguments = ("push", reference, "--sign", key_pair[0], "--store", tmp_path / "author-store")
    pushed = modelpack(*arguments, env={"MODELPACK_PASSWORD": ""})
    assert pushed.code == 0, pushed.stderr
    return Published(reference, manifest, Digest.of(WEIGHTS))


@pytest.fixture
def developer(modelpack, key_pair, tmp_path):
    """Runs a command against a developer's own store."""

    def run(*arguments: object, **options: Any):
        return modelpack(*arguments, "--store", tmp_path / "developer-store", **options)

    return run


@pytest.fixture
def pull(developer, key_pair):
    """Pulls as somebody who trusts the author; ``unchecked`` as somebody who does not look at signatures."""

    def run(reference: str, *, unchecked: bool = False, **options: Any):
        trust = ("--insecure-skip-verify",) if unchecked else ("--key", key_pair[1])
        return developer("pull", reference, *trust, "--json", **options)

    return run


@pytest.fixture
def store(tmp_path):
    """The developer's store, as it is when the test looks."""

    def opened() -> Store:
        return Store.open(tmp_path / "developer-store")

    return opened


@pytest.fixture(scope="session")
def tiny_gguf(tiny_checkpoint, tmp_path_factory) -> Path:
    """The tiny checkpoint, converted as it is."""
    path = tmp_path_factory.mktemp("hostile") / "tiny.gguf"
    run_conversion(plan_conversion(Checkpoint.open(tiny_checkpoint)), path)
    return path


@pytest.fixture
def checkpoint(tiny_checkpoint, tmp_path) -> Path:
    """A copy of the tiny checkpoint, to be tampered with."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
