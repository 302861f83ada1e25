"""Modelcars: container images whose ``/models`` folder holds a model (KServe, RamaLama's ``car`` and ``raw``, olot).

Any image could hold one. Taken for a model is what says so: RamaLama's label, olot's and our own annotations, a layer
named after a model file, or a build step that speaks of ``/models``.
"""

from modelpack.errors import UnsupportedError
from modelpack.formats import model as m
from modelpack.formats.model import Model, PackedLayer
from modelpack.oci import strict_json
from modelpack.oci.manifest import Manifest

CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
CONFIG_TYPES = (CONFIG_TYPE, "application/vnd.docker.container.image.v1+json")
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
FOLDER = "models"
LABEL = "org.containers.type"

_PACKINGS = {
    LAYER_TYPE: "tar",
    f"{LAYER_TYPE}+gzip": "tar+gzip",
    f"{LAYER_TYPE}+zstd": "tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar": "tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip": "tar+gzip",
}
_OLOT = "olot.layer.content."


class ModelcarFormat:
    name = "car"

    def reads(self, manifest: Manifest) -> bool:
        is_image = manifest.config is not None and manifest.config.media_type in CONFIG_TYPES
        return is_image and bool(manifest.layers) and all(layer.media_type in _PACKINGS for layer in manifest.layers)

    def decode(self, manifest: Manifest, config: bytes) -> Model:
        document = strict_json.parse_object(config, what="image config")
        labels = {str(key): str(text) for key, text in m.object_of(m.object_of(document, "config"), "Labels").items()}
        if not _holds_model(manifest, document, labels):
            raise UnsupportedError(f"{manifest.digest} is a container image, and nothing says that it holds a model")
        packed: list[PackedLayer] = [
            m.packed_of(layer, None, _PACKINGS[layer.media_type], folder=FOLDER) for layer in manifest.layers
        ]
        described = {**labels, **manifest.annotations}
        return Model(
            name=described.get(m.TITLE) or "model",
            files=(),
            packed=tuple(packed),
            created=m.parse_rfc3339(document.get("created")),
            title=described.get(m.TITLE),
            version=described.get("org.opencontainers.image.version"),
            source_url=described.get("org.opencontainers.image.source"),
            revision=described.get("org.opencontainers.image.revision"),
            quantization=described.get("dev.modelpack.quantization"),
            annotations=manifest.annotations,
        )


def _holds_model(manifest: Manifest, document: dict[str, object], labels: dict[str, str]) -> bool:
    annotations = [manifest.annotations, *(layer.annotations for layer in manifest.layers)]
    titles = [one.get(key, "") for one in annotations for key in (m.TITLE, m.FILE_PATH)]
    history = document.get("history")
    steps = [step.get("created_by") for step in history if isinstance(step, dict)] if isinstance(history, list) else []
    return (
        labels.get(LABEL, "").startswith("ai.image.model")
        or any(key.startswith(_OLOT) for one in annotations for key in one)
        or any(title.startswith(f"{FOLDER}/") or title.endswith((".gguf", ".safetensors")) for title in titles)
        or any(isinstance(step, str) and f"/{FOLDER}" in step for step in steps)
    )
