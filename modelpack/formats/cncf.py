"""CNCF ModelPack: https://github.com/modelpack/model-spec, docs/spec.md and docs/config.md at v0.0.7.

Written: one manifest per variant and raw layers only, the form that Docker Model Runner 1.1.29, modctl, KitOps, CRI-O
volumes, oras and skopeo all consume. Read: all twenty layer types, and the ``vnd.cnai`` ones of v0.0.1 to v0.0.6.
"""

import re

from modelpack.formats import model as m
from modelpack.formats.model import Encoded, FileKind, Model, ModelFile, PackedLayer
from modelpack.oci import strict_json
from modelpack.oci.manifest import Descriptor, Manifest, image_manifest

ARTIFACT_TYPE = "application/vnd.cncf.model.manifest.v1+json"
CONFIG_TYPE = "application/vnd.cncf.model.config.v1+json"
_RAW = "application/vnd.cncf.model.{kind}.v1.raw"
_LAYER = re.compile(
    r"application/vnd\.cncf\.model\.(?P<kind>weight\.config|weight|doc|code|dataset)\.v1\.(?P<packing>[a-z0-9+]+)"
)
# Docker Model Runner reads two names of its own for raw weights.
_IN_PLACE = ("raw", "gguf", "safetensors")

# org.opencontainers.image.* annotations and the fields of a Model that they carry.
_ANNOTATED = (
    ("title", "title"),
    ("description", "description"),
    ("version", "version"),
    ("source", "source_url"),
    ("revision", "revision"),
)


class CncfCodec:
    name = "cncf"

    def encode(self, model: Model) -> Encoded:
        config = strict_json.canonical(_config(model))
        manifest = image_manifest(
            artifact_type=ARTIFACT_TYPE,
            config=Descriptor.of(config, CONFIG_TYPE),
            layers=[m.layer(file, _RAW.format(kind=file.kind.value), model.created) for file in model.files],
            annotations=_annotations(model),
        )
        return Encoded(manifest, config)

    def reads(self, manifest: Manifest) -> bool:
        return manifest.config is not None and _current(manifest.config.media_type) == CONFIG_TYPE

    def decode(self, manifest: Manifest, config: bytes) -> Model:
        document = strict_json.parse_object(config, what="model config")
        described = m.object_of(document, "descriptor")
        technical = m.object_of(document, "config")
        files, packed = layers_of(manifest)
        return Model(
            name=m.text_of(described, "name") or m.text_of(described, "family") or "model",
            files=files,
            packed=packed,
            created=m.parse_rfc3339(described.get("createdAt")),
            architecture=m.text_of(technical, "architecture"),
            quantization=m.text_of(technical, "quantization"),
            parameters=m.text_of(technical, "paramSize"),
            context_length=_context_length(manifest),
            title=m.text_of(described, "title"),
            version=m.text_of(described, "version"),
            description=m.text_of(described, "description", limit=4096),
            source_url=m.text_of(described, "sourceURL"),
            revision=m.text_of(described, "revision"),
            licenses=m.texts_of(described, "licenses"),
            annotations=manifest.annotations,
        )


def layers_of(manifest: Manifest) -> tuple[tuple[ModelFile, ...], tuple[PackedLayer, ...]]:
    """The files of a ModelPack manifest, of any version, and what of it is packed. Layers of other types are left out.

    Raises InvalidContentError for a packing that the specification does not have.
    """
    files: list[ModelFile] = []
    packed: list[PackedLayer] = []
    for descriptor in map(_modern, manifest.layers):
        match = _LAYER.fullmatch(descriptor.media_type)
        if match is None:
            continue
        kind, packing = FileKind(match["kind"]), match["packing"]
        if packing in _IN_PLACE:
            files.append(m.file_of(descriptor, kind))
        else:
            packed.append(m.packed_of(descriptor, kind, packing))
    return tuple(files), tuple(packed)


def _modern(layer: Descriptor) -> Descriptor:
    """A layer in the words of v0.0.7: before it, everything was called cnai (vnd.cnai, org.cnai)."""
    annotations = {
        key.replace("org.cnai.model.", "org.cncf.model.", 1): text for key, text in layer.annotations.items()
    }
    return Descriptor(_current(layer.media_type), layer.digest, layer.size, annotations)


def _current(media_type: str) -> str:
    return media_type.replace("application/vnd.cnai.model.", "application/vnd.cncf.model.", 1)


def _config(model: Model) -> dict[str, object]:
    described = {
        "createdAt": m.rfc3339(model.created),
        "family": model.architecture,
        "name": model.name,
        "version": model.version,
        "title": model.title,
        "description": model.description,
        "sourceURL": model.source_url,
        "revision": model.revision,
        "licenses": list(model.licenses),
    }
    technical = {
        "architecture": model.architecture,
        "format": "gguf",
        "paramSize": parameter_size(model.parameters),
        "precision": precision(model.quantization),
        "quantization": model.quantization,
        "capabilities": {"inputTypes": ["text"], "outputTypes": ["embedding" if model.embeds else "text"]},
    }
    return {
        "descriptor": {key: value for key, value in described.items() if value},
        "modelfs": {"type": "layers", "diffIds": [str(file.digest) for file in model.files]},
        "config": {key: value for key, value in technical.items() if value},
    }


def _annotations(model: Model) -> dict[str, str]:
    annotations = dict(model.annotations)
    annotations["org.opencontainers.image.created"] = m.rfc3339(model.created)
    for key, attribute in _ANNOTATED:
        value = getattr(model, attribute)
        if value:
            annotations[f"org.opencontainers.image.{key}"] = value
    if model.licenses:
        annotations["org.opencontainers.image.licenses"] = " AND ".join(model.licenses)
    if model.base_models:
        annotations["org.opencontainers.image.base.name"] = model.base_models[0]
    if model.quantization:
        annotations["dev.modelpack.quantization"] = model.quantization
    if model.context_length:
        annotations["dev.modelpack.context-length"] = str(model.context_length)
    if isinstance(model.parameters, int):
        annotations["dev.modelpack.parameters"] = str(model.parameters)
    return annotations


def _context_length(manifest: Manifest) -> int | None:
    # ModelPack itself has no place for it.
    text = manifest.annotations.get("dev.modelpack.context-length", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 12 else None


def parameter_size(parameters: int | str | None) -> str | None:
    """``1.1b`` for 1 100 048 384: a count with at most one decimal and a scale letter (docs/config.md, paramSize)."""
    if not isinstance(parameters, int):
        return parameters
    for scale, letter in ((10**15, "q"), (10**12, "t"), (10**9, "b"), (10**6, "m")):
        if parameters >= scale:
            return f"{parameters / scale:.1f}".removesuffix(".0") + letter
    return f"{parameters / 1000:.1f}".removesuffix(".0") + "k"


def precision(quantization: str | None) -> str | None:
    """The computational precision in ModelPack's words; ``int4`` and its like go beyond the table but fit its form."""
    plain = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    if quantization is None or quantization in plain:
        return plain.get(quantization or "")
    bits = next((character for character in quantization if character.isdigit()), None)
    return f"int{bits}" if bits else None
