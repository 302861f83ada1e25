"""skopeo, from Debian, reads what we store, serve and push; we read what it writes."""

import contextlib
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.artifacts import put_cncf_model
from fakes.servers import running_registry

from modelpack.oci.manifest import Manifest
from modelpack.registry.client import connect
from modelpack.store import Store, open_layout
from modelpack.transfer import copy

pytestmark = [
    pytest.mark.skopeo,
    pytest.mark.skipif(not shutil.which("skopeo"), reason="skopeo is not installed (apt-get install skopeo)"),
]
WEIGHTS = b"GGUF" + bytes(range(256)) * 9000


def skopeo(*arguments: str | Path) -> bytes:
    result = subprocess.run(["skopeo", *map(str, arguments)], capture_output=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr.decode()
    return result.stdout


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


@contextlib.contextmanager
def docker_registry(folder: Path) -> Iterator[str]:
    """Debian's docker-registry on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    config = folder / "registry.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder / 'data'}}}}}\nhttp: {{addr: '{address}'}}\n"
    )
    process = subprocess.Popen(["docker-registry", "serve", config], stderr=subprocess.DEVNULL)
    try:
        host, port = address.split(":")
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection((host, int(port)), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < deadline, "docker-registry did not start"
                time.sleep(0.05)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=10)


def assert_layout_holds(layout: Path, manifest: Manifest, files: dict[str, bytes]) -> None:
    source = open_layout(layout)
    copied = source.fetch_manifest(source.resolve("v1"))
    assert copied.raw == manifest.raw
    for layer, content in zip(copied.layers, files.values(), strict=True):
        with source.read_blob(layer) as chunks:
            assert b"".join(chunks) == content


def test_skopeo_reads_the_store_itself(store: Store, tmp_path: Path) -> None:
    manifest, files = put_cncf_model(store, "127.0.0.1:5000/me/tiny:v1", WEIGHTS)
    put_cncf_model(store, "other:v1", b"GGUF other")
    location = f"oci:{store.root}:127.0.0.1:5000/me/tiny:v1"

    assert skopeo("inspect", "--raw", location) == manifest.raw
    skopeo("copy", location, f"oci:{tmp_path / 'out'}:v1")
    assert_layout_holds(tmp_path / "out", manifest, files)


def test_skopeo_reads_the_store_through_the_embedded_registry(store: Store, tmp_path: Path) -> None:
    manifest, files = put_cncf_model(store, "me/tiny:v1", WEIGHTS)
    with running_registry(store) as address:
        location = f"docker://{address}/me/tiny"
        skopeo("copy", "--src-tls-verify=false", f"{location}:v1", f"oci:{tmp_path / 'out'}:v1")
        tags = json.loads(skopeo("list-tags", "--tls-verify=false", location))["Tags"]
    assert_layout_holds(tmp_path / "out", manifest, files)
    assert tags == ["v1"]


def test_the_embedded_registry_takes_what_skopeo_pushes(store: Store, tmp_path: Path) -> None:
    manifest, files = put_cncf_model(store, "me/tiny:v1", WEIGHTS)
    other = Store.open(tmp_path / "other")
    with running_registry(other) as address:
        location = f"docker://{address}/team/tiny:v2"
        skopeo("copy", "--dest-tls-verify=false", f"oci:{store.root}:me/tiny:v1", location)
        # The second time everything is there.
        skopeo("copy", "--dest-tls-verify=false", f"oci:{store.root}:me/tiny:v1", location)
        copied = json.loads(skopeo("inspect", "--raw", "--tls-verify=false", location))
        assert copied == json.loads(manifest.raw)
        skopeo("delete", "--tls-verify=false", location)
    assert other.list() == []
    for layer, content in zip(manifest.layers, files.values(), strict=True):
        assert other.blob_path(layer).read_bytes() == content


def test_what_skopeo_writes_into_the_store_is_a_model_like_any_other(store: Store, tmp_path: Path) -> None:
    source = Store.open(tmp_path / "source")
    manifest, _ = put_cncf_model(source, "me/tiny:v1", WEIGHTS)
    put_cncf_model(store, "mine:v1", b"GGUF mine")

    skopeo("copy", f"oci:{source.root}:me/tiny:v1", f"oci:{store.root}:ghcr.io/me/tiny:v1")

    assert [str(stored.reference) for stored in store.list()] == ["ghcr.io/me/tiny:v1", "mine:v1"]
    descriptor = store.repository("ghcr.io/me/tiny").resolve("v1")
    assert store.repository("ghcr.io/me/tiny").fetch_manifest(descriptor).raw == manifest.raw
    assert store.prune().freed == 0


@pytest.mark.docker_registry
@pytest.mark.skipif(not shutil.which("docker-registry"), reason="docker-registry is not installed")
def test_skopeo_reads_what_we_push_to_a_real_registry(store: Store, tmp_path: Path) -> None:
    manifest, files = put_cncf_model(store, "me/tiny:v1", WEIGHTS)
    with docker_registry(tmp_path) as address:
        target = connect(address).repository("me/tiny", push=True)
        copy(store.repository("me/tiny"), target, manifest.descriptor, tag="v1")
        skopeo("copy", "--src-tls-verify=false", f"docker://{address}/me/tiny:v1", f"oci:{tmp_path / 'out'}:v1")
    assert_layout_holds(tmp_path / "out", manifest, files)
