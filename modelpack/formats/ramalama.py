"""RamaLama's artifacts: a ModelPack artifact type over an empty config (``podman artifact add``, ramalama 0.25).

All that is known of a file is its name: podman guesses the media types of the layers.
"""

from modelpack.formats import cncf
from modelpack.formats import model as m
from modelpack.formats.model import Model
from modelpack.oci.manifest import EMPTY_TYPE, Manifest


class RamalamaFormat:
    name = "ramalama"

    def reads(self, manifest: Manifest) -> bool:
        is_empty = manifest.config is not None and manifest.config.media_type == EMPTY_TYPE
        return is_empty and manifest.artifact_type == cncf.ARTIFACT_TYPE

    def decode(self, manifest: Manifest, config: bytes) -> Model:  # noqa: ARG002  # it is empty
        files, packed = cncf.layers_of(manifest)
        typed = {file.digest for file in files} | {layer.digest for layer in packed}
        for layer in manifest.layers:
            if layer.digest not in typed:
                file = m.file_of(layer, m.FileKind.WEIGHT_CONFIG)
                files += (m.file_of(layer, m.kind_of_name(file.name)),)
        annotations = manifest.annotations
        weights = next((file.name for file in files if file.kind is m.FileKind.WEIGHT), "model")
        return Model(
            name=annotations.get(m.TITLE) or weights.removesuffix(".gguf"),
            files=files,
            packed=packed,
            created=m.parse_rfc3339(annotations.get("org.opencontainers.image.created")),
            title=annotations.get(m.TITLE),
            version=annotations.get("org.opencontainers.image.version"),
            description=annotations.get("org.opencontainers.image.description"),
            source_url=annotations.get("org.opencontainers.image.source"),
            revision=annotations.get("org.opencontainers.image.revision"),
            annotations=annotations,
        )
