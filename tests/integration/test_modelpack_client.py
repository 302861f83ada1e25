"""modelpack-client, a public implementation of the same format, pulls what we push and pushes what we pull.

It lives in an environment of its own, kept in pytest's cache directory.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
from fakes.artifacts import put_cncf_model
from fakes.peers import peer_environment
from fakes.servers import running_registry

from modelpack.formats import codec_for
from modelpack.oci.target import read_whole
from modelpack.registry.client import connect
from modelpack.store import Store
from modelpack.transfer import copy

pytestmark = pytest.mark.peer
REQUIREMENT = "modelpack-client==0.1.0"
WEIGHTS = b"GGUF" + bytes(range(256)) * 9000


@pytest.fixture(scope="module")
def peer(request: pytest.FixtureRequest) -> Path:
    """The peer's command."""
    return peer_environment(request.config, REQUIREMENT) / "modelpack"


def run(command: Path, home: Path, *arguments: str | Path) -> str:
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "DOCKER_CONFIG": str(home)}
    result = subprocess.run(
        [command, "--insecure", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment,
        cwd=home,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_peer_pulls_what_we_push(peer: Path, tmp_path: Path) -> None:
    store, remote = Store.open(tmp_path / "store"), Store.open(tmp_path / "remote")
    manifest, files = put_cncf_model(store, "me/tiny:v1", WEIGHTS)
    with running_registry(remote) as address:
        target = connect(address).repository("me/tiny", push=True)
        copy(store.repository("me/tiny"), target, manifest.descriptor, tag="v1")
        run(peer, tmp_path, "pull", f"{address}/me/tiny:v1", tmp_path / "model")
    pulled = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    assert {name: pulled[name] for name in files} == files


def test_we_pull_what_the_peer_pushes(peer: Path, tmp_path: Path) -> None:
    remote, store = Store.open(tmp_path / "remote"), Store.open(tmp_path / "store")
    (tmp_path / "model.gguf").write_bytes(WEIGHTS)
    config = {
        "descriptor": {"name": "tiny"},
        "config": {"architecture": "llama", "format": "gguf", "quantization": "Q8_0"},
        "modelfs": {"type": "layers", "diffIds": []},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    with running_registry(remote) as address:
        run(
            peer, tmp_path, "push", f"{address}/me/theirs:v1",
            "--config", tmp_path / "config.json",
            "--layer", "model.gguf:application/vnd.cncf.model.weight.v1.raw",
        )  # fmt: skip
        source = connect(address).repository("me/theirs")
        copy(source, store.repository("me/theirs"), source.resolve("v1"), tag="v1")

    repository = store.repository("me/theirs")
    manifest = repository.fetch_manifest(repository.resolve("v1"))
    assert manifest.config
    model = codec_for(manifest).decode(manifest, read_whole(repository, manifest.config, limit=1 << 20))
    assert (model.name, model.quantization) == ("tiny", "Q8_0")
    assert store.blob_path(model.weights[0].digest).read_bytes() == WEIGHTS
