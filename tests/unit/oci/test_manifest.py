"""Manifests from strangers: the bytes are kept, ambiguity is refused."""

import json

import pytest

from modelpack.errors import DigestMismatchError, InvalidContentError
from modelpack.oci import manifest as oci
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import Descriptor, Manifest, image_index, image_manifest

LAYER = Descriptor.of(b"weights", "application/vnd.cncf.model.weight.v1.raw", annotations={"b": "2", "a": "1"})


def document(**changes):
    content = {
        "schemaVersion": 2,
        "mediaType": oci.IMAGE_MANIFEST,
        "config": oci.EMPTY_CONFIG.to_json(),
        "layers": [LAYER.to_json()],
    }
    content.update(changes)
    return json.dumps({key: value for key, value in content.items() if value is not None}).encode()


def test_a_manifest_keeps_the_bytes_it_was_read_from():
    raw = b" " + document() + b"\n"

    manifest = Manifest.parse(raw)

    assert manifest.raw == raw
    assert manifest.digest == Digest.of(raw)
    assert manifest.layers == (LAYER,)


def test_the_same_arguments_make_the_same_manifest():
    first = image_manifest(config=oci.EMPTY_CONFIG, layers=[LAYER], annotations={"y": "1", "x": "2"})
    second = image_manifest(config=oci.EMPTY_CONFIG, layers=[LAYER], annotations={"x": "2", "y": "1"})

    assert first.raw == second.raw
    assert Manifest.parse(first.raw) == first


def test_an_index_names_its_manifests():
    child = image_manifest(config=oci.EMPTY_CONFIG, layers=[LAYER], artifact_type="application/x")
    index = image_index([child.descriptor])

    assert index.is_index
    assert index.manifests[0].artifact_type == "application/x"
    assert index.blobs == ()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"{",
        b"\xff\xfe",
        document(schemaVersion=1),
        document(mediaType="text/html"),
        document(manifests=[]),
        document(layers=None),
        document(layers={}),
        document(config=None),
        document(config={"mediaType": "x", "digest": "sha256:../../etc/passwd", "size": 1}),
        document(config={"mediaType": "x", "digest": str(LAYER.digest), "size": -1}),
        document(config={"mediaType": "x", "digest": str(LAYER.digest), "size": True}),
        document(config={"mediaType": "x", "digest": str(LAYER.digest), "size": 1 << 60}),
        document(annotations={"a": 1}),
        document(annotations=["a"]),
        document(subject={"mediaType": "x"}),
        document(artifactType=1),
        b'{"schemaVersion":2,"schemaVersion":2}',
        b'{"a":' + b"[" * 100_000,
        document() + b" " * oci.MAX_MANIFEST_SIZE,
    ],
)
def test_malformed_ambiguous_and_oversized_manifests_are_refused(raw):
    with pytest.raises(InvalidContentError):
        Manifest.parse(raw)


def test_a_manifest_that_is_served_as_something_else_is_refused():
    with pytest.raises(InvalidContentError, match="served as"):
        Manifest.parse(document(), media_type=oci.IMAGE_INDEX)


def test_a_descriptor_checks_size_before_digest():
    assert LAYER.check(b"weights") == b"weights"
    with pytest.raises(DigestMismatchError, match="8 bytes where 7"):
        LAYER.check(b"weights!")
    with pytest.raises(DigestMismatchError, match="has the digest"):
        LAYER.check(b"Weights")


@pytest.mark.parametrize(
    "text", ["sha256:ABC", "sha256:" + "A" * 64, "sha256:" + "a" * 63, "sha512:" + "a" * 128, "../x"]
)
def test_a_digest_that_exists_is_well_formed(text):
    with pytest.raises(InvalidContentError):
        Digest(text)


def test_only_layers_may_lie_elsewhere():
    elsewhere = "application/vnd.oci.image.layer.nondistributable.v1.tar"
    config, layer = Descriptor.of(b"config", elsewhere), Descriptor.of(b"layer", elsewhere)

    assert image_manifest(config=config, layers=[layer, LAYER]).blobs == (config, LAYER)
