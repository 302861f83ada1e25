"""Against distribution 2.8, which answers as many of the registries out there do."""

import json
import os
import random
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from fakes.artifacts import put_cncf_model
from fakes.certificates import make_certificate
from fakes.docker_registry import running_docker_registry

from modelpack.errors import (
    AccessDeniedError,
    DigestMismatchError,
    InvalidContentError,
    NotFoundError,
    RegistryRefusedError,
    UntrustedError,
)
from modelpack.oci.manifest import EMPTY_CONFIG, Descriptor, Manifest, image_manifest
from modelpack.oci.target import read_whole, write_whole
from modelpack.registry.client import Repository, connect
from modelpack.registry.credentials import Credential, FixedCredentials
from modelpack.registry.network import NetworkSettings
from modelpack.store import Store
from modelpack.transfer import copy

pytestmark = pytest.mark.docker_registry


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_docker_registry(tmp_path_factory.mktemp("docker-registry")) as running:
        yield running


@pytest.fixture
def repository(address: str, request: pytest.FixtureRequest) -> Repository:
    return connect(address).repository(f"tests/{request.node.name.lower()[:60].rstrip('_')}", push=True)


def push(
    repository: Repository, *contents: bytes, subject: Descriptor | None = None, tag: str | None = None
) -> Manifest:
    write_whole(repository, b"{}", EMPTY_CONFIG.media_type)
    manifest = image_manifest(
        config=EMPTY_CONFIG,
        layers=[write_whole(repository, content, "application/octet-stream") for content in contents],
        artifact_type="application/x.test",
        subject=subject,
    )
    repository.put_manifest(manifest, tag=tag)
    return manifest


def test_what_was_pushed_comes_back(repository: Repository) -> None:
    manifest = push(repository, b"weights", b"", tag="v1")

    descriptor = repository.resolve("v1")

    assert descriptor.digest == manifest.digest
    assert repository.fetch_manifest(descriptor).raw == manifest.raw
    assert [read_whole(repository, layer, limit=100) for layer in manifest.layers] == [b"weights", b""]
    assert repository.list_tags() == ["v1"]


def test_a_blob_is_read_from_an_offset(repository: Repository) -> None:
    descriptor = write_whole(repository, b"0123456789", "application/octet-stream")

    with repository.read_blob(descriptor, offset=7) as chunks:
        assert b"".join(chunks) == b"789"
    with repository.read_blob(descriptor, offset=10) as chunks:
        assert b"".join(chunks) == b""


def test_many_tags_are_all_listed(repository: Repository) -> None:
    manifest = push(repository, b"weights")
    for number in range(12):
        repository.put_manifest(manifest, tag=f"v{number:02}")

    assert repository.list_tags() == [f"v{number:02}" for number in range(12)]


def test_signatures_go_under_the_fallback_tag(repository: Repository) -> None:
    model = push(repository, b"weights", tag="v1")
    signatures = [push(repository, text, subject=model.descriptor) for text in (b"alice", b"bob")]

    assert [one.digest for one in repository.list_referrers(model.digest)] == [one.digest for one in signatures]
    assert repository.list_tags() == [f"sha256-{model.digest.hex}", "v1"]

    repository.delete(str(signatures[0].digest))
    assert [one.digest for one in repository.list_referrers(model.digest)] == [signatures[1].digest]


def test_a_manifest_without_its_blobs_is_refused(repository: Repository) -> None:
    layer = Descriptor.of(b"never sent", "application/octet-stream")
    write_whole(repository, b"{}", EMPTY_CONFIG.media_type)

    with pytest.raises(InvalidContentError, match="does not have"):
        repository.put_manifest(image_manifest(config=EMPTY_CONFIG, layers=[layer], artifact_type="x/y"))


def test_wrong_content_does_not_arrive(repository: Repository) -> None:
    promised = Descriptor.of(b"right", "application/octet-stream")

    with pytest.raises(DigestMismatchError):
        repository.write_blob(promised, lambda offset: nullcontext(iter([b"wrong"])))
    assert repository.has_blob(promised) is False


def test_what_is_not_there_is_not_found(repository: Repository) -> None:
    with pytest.raises(NotFoundError):
        repository.resolve("v1")
    with pytest.raises(NotFoundError):
        repository.list_tags()


def test_tags_cannot_be_deleted_there_and_it_says_so(repository: Repository) -> None:
    push(repository, b"weights", tag="v1")

    with pytest.raises(RegistryRefusedError, match="does not delete tags"):
        repository.delete("v1")


def test_a_registry_in_read_only_mode_is_called_so(modelpack: Callable[..., Any], tmp_path: Path) -> None:
    with running_docker_registry(tmp_path / "registry") as address:
        push(connect(address).repository("tiny", push=True), b"weights", tag="v1")
    with running_docker_registry(tmp_path / "registry", read_only=True) as address:
        repository = connect(address).repository("tiny", push=True)
        there = repository.fetch_manifest(repository.resolve("v1"))
        with pytest.raises(RegistryRefusedError, match=r"refused manifest .* \(HTTP 405\): it is read-only"):
            repository.put_manifest(there, tag="v2")
        with pytest.raises(RegistryRefusedError, match="it is read-only"):
            repository.delete(str(there.digest))
        put_cncf_model(Store.open(tmp_path / "here"), f"{address}/new/tiny:v1", b"GGUF")

        refused = modelpack("push", f"{address}/new/tiny:v1", "--store", tmp_path / "here", "--json")

    error = refused.json("error")["error"]
    assert (error["exit"], error["retryable"]) == (1, False)
    assert re.search(r"refused an upload of blob .* \(HTTP 405\): it is read-only", error["message"])


def test_an_artifact_travels_from_store_to_registry_to_store(repository: Repository, tmp_path: Path) -> None:
    here, there = (Store.open(tmp_path / name).repository("tiny") for name in ("here", "there"))
    write_whole(here, b"{}", EMPTY_CONFIG.media_type)
    layer = write_whole(here, os.urandom(3_000_000), "application/octet-stream")
    model = image_manifest(config=EMPTY_CONFIG, layers=[layer], artifact_type="application/x.test")
    here.put_manifest(model, tag="v1")
    signature = image_manifest(
        config=EMPTY_CONFIG, layers=[], artifact_type="application/x.signature", subject=model.descriptor
    )
    here.put_manifest(signature)

    pushed = copy(here, repository, here.resolve("v1"), tag="v1")
    pulled = copy(repository, there, repository.resolve("v1"), tag="v1")

    assert (pushed.blobs_copied, pushed.referrers_copied) == (pulled.blobs_copied, pulled.referrers_copied) == (2, 1)
    assert there.resolve("v1").digest == model.digest
    assert [one.digest for one in there.list_referrers(model.digest)] == [signature.digest]


def test_basic_auth_is_checked_by_the_registry_itself(tmp_path: Path) -> None:
    # bcrypt of "s3cret", made with crypt(3).
    line = "alice:$2b$05$abcdefghijklmnopqrstuuLK7U1u6pVRmL7L1BBM2aS35PSZnDXlK"
    with running_docker_registry(tmp_path, htpasswd=line) as address:
        alice = FixedCredentials(Credential("alice", "s3cret"))
        assert connect(address, credentials=alice).check_login() is True
        push(connect(address, credentials=alice).repository("tiny"), b"weights", tag="v1")
        with pytest.raises(AccessDeniedError):
            connect(address, credentials=FixedCredentials(Credential("alice", "wrong"))).check_login()
        with pytest.raises(AccessDeniedError):
            connect(address).repository("tiny").resolve("v1")


def test_tls_is_trusted_by_the_authority_in_certs_d_alone(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    stranger, _ = make_certificate(tmp_path, "stranger")

    def settings(address: str, home: str, authority: Path) -> NetworkSettings:
        place = tmp_path / home / ".docker/certs.d" / address
        place.mkdir(parents=True)
        (place / "ca.crt").write_bytes(authority.read_bytes())
        return NetworkSettings.from_environment({"HOME": str(tmp_path / home)})

    with running_docker_registry(tmp_path / "registry", certificate=(certificate, key)) as address:
        trusting = connect(address, network=settings(address, "alice", certificate))
        push(trusting.repository("tiny"), b"weights", tag="v1")

        doubting = connect(address, network=settings(address, "bob", stranger))
        with pytest.raises(UntrustedError, match=r"certificate of https://127.0.0.1:.* is not trusted"):
            doubting.ping()


_TRANSFER = r"""
import hashlib, json, os, re, sys
from contextlib import nullcontext
from pathlib import Path
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import EMPTY_CONFIG, Descriptor, image_manifest
from modelpack.oci.target import write_whole
from modelpack.registry.client import connect
from modelpack.store import Store
from modelpack.transfer import copy

address, root, size = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
block = os.urandom(1 << 20)
blocks = lambda offset: nullcontext(block for _ in range(offset, size, 1 << 20))
hasher = hashlib.sha256()
for _ in range(0, size, 1 << 20):
    hasher.update(block)
layer = Descriptor("application/octet-stream", Digest.from_hex(hasher.hexdigest()), size)
repository = connect(address).repository("large", push=True)
write_whole(repository, b"{}", EMPTY_CONFIG.media_type)
repository.write_blob(layer, blocks)
repository.put_manifest(image_manifest(config=EMPTY_CONFIG, layers=[layer], artifact_type="x/y"), tag="v1")
result = copy(repository, Store.open(root).repository("large"), repository.resolve("v1"), tag="v1")
# Not ru_maxrss: that of a child begins with what its parent had.
peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]
print(json.dumps({"copied": result.bytes_copied, "kib": int(peak)}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from Linux's /proc")
def test_memory_stays_flat_whatever_the_size_of_a_blob(address: str, tmp_path: Path) -> None:
    size = 256 << 20
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_TRANSFER), address, str(tmp_path / "store"), str(size)],
        capture_output=True,
        check=True,
        timeout=300,
    )

    answer = json.loads(done.stdout)
    assert answer["copied"] == size + 2
    assert 10 << 10 < answer["kib"] < 80 << 10


def test_a_large_blob_comes_back_over_several_connections(repository: Repository, tmp_path: Path) -> None:
    weights = random.Random(11).randbytes(50 << 20)
    manifest = push(repository, weights, tag="v1")
    target = Store.open(tmp_path / "store").repository("tiny")
    before = repository.traffic.bytes_received

    result = copy(repository, target, manifest.descriptor, tag="v1")

    assert read_whole(target, manifest.layers[0], limit=1 << 26) == weights
    assert result.bytes_copied <= repository.traffic.bytes_received - before < 1.01 * result.bytes_copied


def test_a_blob_of_another_repository_is_mounted(address: str) -> None:
    registry = connect(address)
    blob = write_whole(
        registry.repository("tests/mount-from", push=True), b"shared weights", "application/octet-stream"
    )
    repository = registry.repository("tests/mount-to", push=True, mount_from=lambda _: ("tests/mount-from",))
    sent = registry.traffic.bytes_sent

    repository.write_blob(blob, lambda offset: nullcontext(iter([b"never asked for"])))

    assert repository.has_blob(blob)
    assert registry.traffic.bytes_sent == sent


def test_signers_at_the_same_moment_lose_no_signature(modelpack, address, environment, tmp_path):
    """No referrers API and no compare-and-swap: an index and a tag that all of them rewrite."""
    name = f"{address}/tests/many-signers:v1"
    manifest = push(connect(address).repository("tests/many-signers", push=True), b"weights", tag="v1")
    signers = []
    for number in range(4):
        key = tmp_path / f"k{number}"
        assert modelpack("keygen", "--out", key, "--no-password").code == 0
        command = [sys.executable, "-m", "modelpack", "sign", f"{name}@{manifest.digest}", "--key", f"{key}.key"]
        signers.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE))
    for signer in signers:
        _, told = signer.communicate(timeout=60)
        assert signer.returncode == 0, told.decode()

    for number in range(4):
        checked = modelpack("verify", name, "--trust-only", "--key", tmp_path / f"k{number}.pub", "--json")
        assert checked.code == 0, checked.stderr
