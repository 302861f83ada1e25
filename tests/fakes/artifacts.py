"""Artifacts in the CNCF format with content that needs no llama.cpp."""

from datetime import UTC, datetime

from modelpack.formats import FileKind, Model, ModelFile, codec_named
from modelpack.oci.manifest import Manifest
from modelpack.oci.reference import Reference
from modelpack.store import Store

FILES = {"tiny-Q8_0.gguf": FileKind.WEIGHT, "LICENSE": FileKind.DOC, "README.md": FileKind.DOC}


def put_cncf_model(store: Store, reference: str, weights: bytes) -> tuple[Manifest, dict[str, bytes]]:
    """Put a model into the store, as a build does; returns its manifest and its files by name."""
    contents = {"tiny-Q8_0.gguf": weights, "LICENSE": b"Apache-2.0\n", "README.md": b"# Tiny\n"}
    files = []
    for name, content in contents.items():
        blob = store.write_small(content, "application/octet-stream")
        files.append(ModelFile(name, FILES[name], blob.digest, blob.size))
    model = Model(
        name="tiny",
        files=tuple(files),
        created=datetime(2026, 7, 22, 9, 22, 8, tzinfo=UTC),
        architecture="llama",
        quantization="Q8_0",
        parameters=1_000_000,
        licenses=("Apache-2.0",),
    )
    encoded = codec_named("cncf").encode(model)
    assert encoded.manifest.config
    store.write_small(encoded.config, encoded.manifest.config.media_type)
    parsed = Reference.parse(reference)
    store.repository(parsed.name).put_manifest(encoded.manifest, tag=parsed.tag)
    return encoded.manifest, contents
