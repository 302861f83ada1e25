"""KitOps ModelKits (kitops 1.16): the config is the Kitfile as JSON, and the layers come in its order.

Layer types are ``application/vnd.kitops.modelkit.{model,modelpart,dataset,code,docs,mcpb}.v1.{tar,raw}[+gzip|+zstd]``.
"""

import re
from collections.abc import Iterator, Mapping

from modelpack.errors import InvalidContentError
from modelpack.formats import model as m
from modelpack.formats.model import FileKind, Model, ModelFile, PackedLayer
from modelpack.oci import strict_json
from modelpack.oci.manifest import Manifest

CONFIG_TYPE = "application/vnd.kitops.modelkit.config.v1+json"

_LAYER = re.compile(
    r"application/vnd\.kitops\.modelkit\.(?P<kind>model|modelpart|dataset|code|docs|mcpb)\.v1\.(?P<packing>[a-z0-9+]+)"
)
_KINDS = {
    "model": FileKind.WEIGHT,
    # Adapters and projectors; the shards of a model are known by their names.
    "modelpart": FileKind.WEIGHT_CONFIG,
    "docs": FileKind.DOC,
    "code": FileKind.CODE,
    "mcpb": FileKind.CODE,
    "dataset": FileKind.DATASET,
}
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.gguf", re.ASCII)


class ModelKitFormat:
    name = "modelkit"

    def reads(self, manifest: Manifest) -> bool:
        return manifest.config is not None and manifest.config.media_type == CONFIG_TYPE

    def decode(self, manifest: Manifest, config: bytes) -> Model:
        kitfile = strict_json.parse_object(config, what="Kitfile")
        package, described = m.object_of(kitfile, "package"), m.object_of(kitfile, "model")
        paths = {
            "model": iter([m.text_of(described, "path")]),
            "modelpart": _paths(described, "parts"),
            "docs": _paths(kitfile, "docs"),
            "code": _paths(kitfile, "code"),
            "dataset": _paths(kitfile, "datasets"),
        }
        files: list[ModelFile] = []
        packed: list[PackedLayer] = []
        for layer in manifest.layers:
            match = _LAYER.fullmatch(layer.media_type)
            if match is None:
                raise InvalidContentError(f"layer {layer.digest} is of the type {layer.media_type[:120]!r}")
            path = next(paths.get(match["kind"], iter(())), None)
            kind = _KINDS[match["kind"]]
            if match["kind"] == "modelpart" and path and _SHARD.search(path):
                kind = FileKind.WEIGHT
            if match["packing"] == "raw":
                files.append(m.file_of(layer, kind, default=path))
            else:
                packed.append(m.packed_of(layer, kind, match["packing"], default=path))
        licence = m.text_of(package, "license") or m.text_of(described, "license")
        return Model(
            name=m.text_of(described, "name") or m.text_of(package, "name") or "model",
            files=tuple(files),
            packed=tuple(packed),
            created=m.parse_rfc3339(manifest.annotations.get("org.opencontainers.image.created")),
            version=m.text_of(described, "version") or m.text_of(package, "version"),
            description=m.text_of(described, "description") or m.text_of(package, "description"),
            licenses=(licence,) if licence else (),
            annotations=manifest.annotations,
        )


def _paths(document: Mapping[str, object], key: str) -> Iterator[str | None]:
    entries = document.get(key)
    for entry in entries if isinstance(entries, list) else ():
        yield m.text_of(entry, "path") if isinstance(entry, dict) else None
