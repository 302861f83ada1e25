"""Copies against the tools that others have: Debian's docker-registry and skopeo."""

import itertools
import json
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fakes.artifacts import put_cncf_model
from fakes.docker_registry import running_docker_registry
from fakes.servers import running_registry

from modelpack.archive import Archive, ArchiveBuilder
from modelpack.mirror import mirror
from modelpack.oci.reference import Reference
from modelpack.oci.target import read_whole
from modelpack.registry.client import connect
from modelpack.signing import signature
from modelpack.signing.keys import PrivateKey
from modelpack.store import Store, create_layout, open_layout

WEIGHTS = b"GGUF" + bytes(range(256)) * 9000
needs_skopeo = pytest.mark.skipif(not shutil.which("skopeo"), reason="skopeo is not installed (apt-get install skopeo)")


def skopeo(*arguments: str | Path) -> bytes:
    result = subprocess.run(["skopeo", *map(str, arguments)], capture_output=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr.decode()
    return result.stdout


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "store")


@pytest.fixture
def artifact(store):
    """A signed model in the store, under me/tiny:v1."""
    manifest, _ = put_cncf_model(store, "me/tiny:v1", WEIGHTS)
    signature.sign(
        store.repository("me/tiny"),
        Reference.parse("me/tiny:v1"),
        manifest.descriptor,
        PrivateKey.generate(),
        signed_at=datetime(2026, 7, 22, tzinfo=UTC),
    )
    return manifest


@pytest.mark.docker_registry
def test_a_model_goes_round_all_places_and_keeps_digest_and_signatures(store, artifact, tmp_path):
    """Store, docker-registry, layout, embedded registry, archive, store: none of them drops anything."""
    far = Store.open(tmp_path / "far")
    with running_docker_registry(tmp_path / "debian") as debian, running_registry(far) as embedded:
        builder = ArchiveBuilder()
        places = [
            store.repository("me/tiny"),
            connect(debian).repository("one/tiny", push=True),
            create_layout(tmp_path / "layout"),
            connect(embedded).repository("two/tiny", push=True),
            builder.repository("registry.example.com/me/tiny"),
        ]
        results = [
            mirror(source, target, source.resolve("v1"), tag="v1") for source, target in itertools.pairwise(places)
        ]
        builder.write(tmp_path / "a.tar")
        again = mirror(places[0], places[1], artifact.descriptor, tag="v1")
    source = Archive.open(tmp_path / "a.tar").repository("registry.example.com/me/tiny")
    end = Store.open(tmp_path / "end").repository("me/tiny")
    results.append(mirror(source, end, source.resolve("v1"), tag="v1"))

    assert {result.descriptor.digest for result in results} == {artifact.digest}
    assert {result.referrers_copied for result in results} == {2}, "a bundle referrer and a .sig tag"
    assert again.blobs_copied == 0
    assert read_whole(end, artifact.layers[0], limit=1 << 30) == WEIGHTS
    found = signature.find_signatures(end, artifact.descriptor)
    assert len([one for one in found if isinstance(one, signature.Signature)]) == 2


@pytest.mark.skopeo
@needs_skopeo
def test_skopeo_reads_the_archives_and_layouts_that_we_write(store, artifact, tmp_path):
    source = store.repository("me/tiny")
    builder = ArchiveBuilder()
    mirror(source, builder.repository(), artifact.descriptor, tag="v1")
    builder.write(tmp_path / "a.tar")
    mirror(source, create_layout(tmp_path / "layout"), artifact.descriptor, tag="v1")

    for number, location in enumerate((f"oci-archive:{tmp_path}/a.tar:v1", f"oci:{tmp_path}/layout:v1")):
        assert skopeo("inspect", "--raw", location) == artifact.raw
        skopeo("copy", location, f"oci:{tmp_path}/out{number}:v1")
        copied = open_layout(tmp_path / f"out{number}")
        assert copied.fetch_manifest(copied.resolve("v1")).raw == artifact.raw
        assert read_whole(copied, artifact.layers[0], limit=1 << 30) == WEIGHTS


@pytest.mark.skopeo
@needs_skopeo
def test_we_read_the_archives_that_skopeo_writes(store, artifact, tmp_path):
    skopeo("copy", f"oci:{store.root}:me/tiny:v1", f"oci-archive:{tmp_path}/a.tar:v1")

    source = Archive.open(tmp_path / "a.tar").repository()
    end = Store.open(tmp_path / "end").repository("me/tiny")
    mirror(source, end, source.resolve("v1"), tag="v1")

    assert end.fetch_manifest(end.resolve("v1")).raw == artifact.raw
    assert read_whole(end, artifact.layers[0], limit=1 << 30) == WEIGHTS


@pytest.mark.skopeo
@needs_skopeo
def test_skopeo_takes_a_car_for_the_image_that_it_is(modelpack, home, tiny_checkpoint, tmp_path):
    built = modelpack("build", tiny_checkpoint, "-t", "demo/tiny:v1", "--quant", "Q4_K_M")
    assert built.code == 0, built.stderr
    exported = modelpack("export-view", "demo/tiny:v1", "--format", "car")
    assert exported.code == 0, exported.stderr
    location = f"oci:{home}/.local/share/modelpack:demo/tiny:v1-car"

    seen = json.loads(skopeo("inspect", "--override-arch", "arm64", "--override-os", "linux", location))

    assert (seen["Architecture"], seen["Os"]) == ("arm64", "linux")
    assert seen["Labels"]["org.containers.type"] == "ai.image.model.car"
    skopeo("copy", "--all", "--preserve-digests", location, f"oci:{tmp_path}/out:v1")
