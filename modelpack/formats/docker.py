"""Docker Model Runner's own format: media types and members as its code writes them (docker/model-runner,
pkg/distribution/types/config.go); the published docker/model-spec describes something else.

Written: config v0.1. Read: v0.2 as well, a layer per file, and the directories in tar layers of before.
"""

from dataclasses import replace

from modelpack.formats import model as m
from modelpack.formats.model import Encoded, FileKind, Model, ModelFile
from modelpack.oci import strict_json
from modelpack.oci.manifest import Descriptor, Manifest, image_manifest

CONFIG_TYPE = "application/vnd.docker.ai.model.config.v0.1+json"
CONFIG_TYPE_V2 = "application/vnd.docker.ai.model.config.v0.2+json"
GGUF_TYPE = "application/vnd.docker.ai.gguf.v3"
LICENSE_TYPE = "application/vnd.docker.ai.license"
FILE_TYPE = "application/vnd.docker.ai.model.file"
TEMPLATE_TYPE = "application/vnd.docker.ai.chat.template.jinja"
MMPROJ_TYPE = "application/vnd.docker.ai.mmproj"

_KINDS = {
    GGUF_TYPE: FileKind.WEIGHT,
    "application/vnd.docker.ai.safetensors": FileKind.WEIGHT,
    "application/vnd.docker.ai.dduf": FileKind.WEIGHT,
    # What the published specification calls a projector; no released code writes it.
    "application/vnd.docker.ai.gguf.v3.mmproj": FileKind.WEIGHT_CONFIG,
    MMPROJ_TYPE: FileKind.WEIGHT_CONFIG,
    TEMPLATE_TYPE: FileKind.WEIGHT_CONFIG,
    LICENSE_TYPE: FileKind.DOC,
}
_TARS = ("application/vnd.docker.ai.vllm.config.tar", "application/vnd.docker.ai.dir.tar")


class DockerCodec:
    name = "docker"

    def encode(self, model: Model) -> Encoded:
        # There is no place for a model card: README.md stays out of it.
        layers = [(file, media_type) for file in model.files if (media_type := _media_type(file))]
        config = strict_json.canonical(_config(model, [file for file, _ in layers]))
        manifest = image_manifest(
            config=Descriptor.of(config, CONFIG_TYPE),
            layers=[m.layer(file, media_type, model.created) for file, media_type in layers],
        )
        return Encoded(manifest, config)

    def reads(self, manifest: Manifest) -> bool:
        return manifest.config is not None and manifest.config.media_type in (CONFIG_TYPE, CONFIG_TYPE_V2)

    def decode(self, manifest: Manifest, config: bytes) -> Model:
        document = strict_json.parse_object(config, what="model config")
        technical = m.object_of(document, "config")
        gguf = {str(key): str(value) for key, value in m.object_of(technical, "gguf").items()}
        files = []
        packed = []
        for position, descriptor in enumerate(manifest.layers, 1):
            if descriptor.media_type in _TARS:
                packed.append(m.packed_of(descriptor, FileKind.WEIGHT_CONFIG, "tar"))
                continue
            kind = _KINDS.get(descriptor.media_type)
            default = f"model-{position:05d}.gguf" if descriptor.media_type == GGUF_TYPE else f"file-{position}"
            file = m.file_of(descriptor, kind or FileKind.DOC, default=default)
            files.append(file if kind else replace(file, kind=m.kind_of_name(file.name)))
        context = technical.get("context_size")
        quantization = m.text_of(technical, "quantization")
        return Model(
            name=gguf.get("general.name") or m.text_of(technical, "architecture") or "model",
            files=tuple(files),
            packed=tuple(packed),
            created=m.parse_rfc3339(m.object_of(document, "descriptor").get("created")),
            architecture=m.text_of(technical, "architecture"),
            quantization=quantization.removeprefix("MOSTLY_") if quantization else None,
            parameters=m.text_of(technical, "parameters"),
            context_length=context if isinstance(context, int) and context > 0 else None,
            gguf=gguf,
            annotations=manifest.annotations,
        )


def _media_type(file: ModelFile) -> str | None:
    if file.kind is FileKind.WEIGHT:
        return GGUF_TYPE
    if file.kind is FileKind.DOC and file.name.upper().startswith("LICENSE"):
        return LICENSE_TYPE
    if file.kind is FileKind.WEIGHT_CONFIG and file.name.lower().startswith("mmproj"):
        return MMPROJ_TYPE
    if file.kind is FileKind.WEIGHT_CONFIG and file.name.lower().endswith(".jinja"):
        return TEMPLATE_TYPE
    return None


def _config(model: Model, files: list[ModelFile]) -> dict[str, object]:
    plain = model.quantization in (None, "F32", "F16", "BF16")
    technical = {
        "format": "gguf",
        "quantization": model.quantization if plain else f"MOSTLY_{model.quantization}",
        "parameters": _parameters(model.parameters),
        "architecture": model.architecture,
        "size": _binary_size(sum(file.size for file in model.weights)),
        "gguf": dict(model.gguf),
        "context_size": model.context_length,
    }
    return {
        "config": {key: value for key, value in technical.items() if value},
        "descriptor": {"created": m.rfc3339(model.created)},
        "rootfs": {"type": "rootfs", "diff_ids": [str(file.digest) for file in files]},
    }


def _parameters(parameters: int | str | None) -> str | None:
    if not isinstance(parameters, int):
        return parameters
    for scale, letter in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K")):
        if parameters >= scale:
            return f"{parameters / scale:.2f}{letter}"
    return str(parameters)


def _binary_size(size: int) -> str:
    for scale, unit in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= scale:
            return f"{size / scale:.2f}{unit}"
    return f"{size}B"
