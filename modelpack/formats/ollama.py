"""Ollama's manifests (0.33): Docker's manifest v2 with layers of ``application/vnd.ollama.image.*``.

The client asks for Docker's manifest type alone, and insists on registries that redirect to where blobs lie. Template,
system prompt, parameters and messages stay files: the template is written in Go's language, and llama.cpp takes the
one inside the GGUF file.
"""

from modelpack.errors import UnsupportedError
from modelpack.formats import model as m
from modelpack.formats.model import Encoded, FileKind, Model, ModelFile
from modelpack.oci import strict_json
from modelpack.oci.manifest import DOCKER_MANIFEST, Descriptor, Manifest, image_manifest

CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
_LAYER = "application/vnd.ollama.image."

# What a layer is, and how the file is called that nobody named.
_KINDS = {
    "model": (FileKind.WEIGHT, "model.gguf"),
    "projector": (FileKind.WEIGHT_CONFIG, "mmproj-model.gguf"),
    "adapter": (FileKind.WEIGHT_CONFIG, "adapter.gguf"),
    "draft": (FileKind.WEIGHT_CONFIG, "draft.gguf"),
    "template": (FileKind.WEIGHT_CONFIG, "template"),
    "prompt": (FileKind.WEIGHT_CONFIG, "prompt"),
    "system": (FileKind.WEIGHT_CONFIG, "system.txt"),
    "params": (FileKind.WEIGHT_CONFIG, "params.json"),
    "messages": (FileKind.WEIGHT_CONFIG, "messages.json"),
    "json": (FileKind.WEIGHT_CONFIG, "config.json"),
    "license": (FileKind.DOC, "LICENSE"),
}


class OllamaCodec:
    name = "ollama"

    def encode(self, model: Model) -> Encoded:
        layers = [(file, kind) for file in model.files if (kind := _kind(file))]
        config = strict_json.canonical(_config(model, [file for file, _ in layers]))
        manifest = image_manifest(
            media_type=DOCKER_MANIFEST,
            config=Descriptor.of(config, CONFIG_TYPE),
            layers=[Descriptor(_LAYER + kind, file.digest, file.size) for file, kind in layers],
        )
        return Encoded(manifest, config)

    def reads(self, manifest: Manifest) -> bool:
        return any(layer.media_type.startswith(_LAYER) for layer in manifest.layers)

    def decode(self, manifest: Manifest, config: bytes) -> Model:
        document = strict_json.parse_object(config, what="model config")
        files: list[ModelFile] = []
        for layer in manifest.layers:
            what = layer.media_type.removeprefix(_LAYER)
            if what == "tensor":
                raise UnsupportedError(
                    f"{manifest.digest} keeps each tensor as a layer of its own; GGUF files are read"
                )
            kind, default = _KINDS.get(what, (FileKind.WEIGHT_CONFIG, what))
            taken = {file.name for file in files}
            name = default if default not in taken else _numbered(default, len(taken))
            files.append(m.file_of(layer, kind, default=name))
        return Model(
            name=m.text_of(document, "model_family") or "model",
            files=tuple(files),
            created=m.parse_rfc3339(None),
            architecture=m.text_of(document, "model_family"),
            quantization=m.text_of(document, "file_type"),
            parameters=m.text_of(document, "model_type"),
            annotations=manifest.annotations,
        )


def _kind(file: ModelFile) -> str | None:
    if file.kind is FileKind.WEIGHT:
        return "model"
    if file.kind is FileKind.DOC and file.name.upper().startswith("LICENSE"):
        return "license"
    return "projector" if file.name.lower().startswith("mmproj") else None


def _config(model: Model, files: list[ModelFile]) -> dict[str, object]:
    config: dict[str, object] = {
        "model_format": "gguf",
        "model_family": model.architecture,
        "model_families": [model.architecture] if model.architecture else None,
        "model_type": _size(model.parameters),
        "file_type": model.quantization,
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [str(file.digest) for file in files]},
    }
    return {key: value for key, value in config.items() if value}


def _size(parameters: int | str | None) -> str | None:
    """``1.1B``, as Ollama writes sizes for a person (format/format.go, HumanNumber)."""
    if not isinstance(parameters, int):
        return parameters
    for scale, letter in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K")):
        if parameters >= scale:
            return f"{parameters / scale:.1f}".removesuffix(".0") + letter
    return str(parameters)


def _numbered(name: str, number: int) -> str:
    stem, dot, suffix = name.partition(".")
    return f"{stem}-{number}{dot}{suffix}"
