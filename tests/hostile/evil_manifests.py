"""Manifests that no builder would make, served by a registry that checks nothing."""

import json
from typing import Any

from fakes.registry import FakeRegistry

from modelpack.oci.digest import Digest
from modelpack.oci.manifest import Descriptor

NAME = "demo/tiny"
WEIGHTS = b"GGUF" + bytes(range(256)) * 400


def document_of(*layers: Descriptor, config: Descriptor | None = None, **members: Any) -> dict[str, Any]:
    """An image manifest to be broken by hand."""
    return {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": (config or Descriptor.of(b"{}", "application/vnd.oci.empty.v1+json")).to_json(),
        "layers": [layer.to_json() for layer in layers],
        **members,
    }


def serve(registry: FakeRegistry, document: object, *, tag: str = "evil", media_type: str | None = None) -> str:
    """Put any bytes under a tag, as a registry that checks nothing would; the reference that names them."""
    raw = document if isinstance(document, bytes) else json.dumps(document).encode()
    digest = str(Digest.of(raw))
    registry.add_blob(b"{}")
    registry.manifests[NAME, digest] = (media_type or "application/vnd.oci.image.manifest.v1+json", raw)
    registry.tags[NAME, tag] = digest
    return f"{registry.address}/{NAME}:{tag}"
