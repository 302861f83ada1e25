"""Which chat templates an artifact brings along, held against those that a rule pins.

A template decides what a model is told before a person says a word, and another one is no bug that a scanner finds.
"""

import io
from collections.abc import Iterator

from modelpack.errors import InvalidContentError, InvalidGGUFError, PolicyRefusedError, UnsupportedError
from modelpack.formats import codec_for, docker
from modelpack.formats.model import MAX_CONFIG_SIZE, ModelFile
from modelpack.gguf_header import parse_header
from modelpack.oci.manifest import Descriptor
from modelpack.oci.reference import Reference
from modelpack.oci.target import Source, read_whole
from modelpack.policy import Rule
from modelpack.template import digests

_TEMPLATE_TYPES = (docker.TEMPLATE_TYPE, "application/vnd.ollama.image.template")
_ANY = "application/octet-stream"


def require_templates(source: Source, reference: Reference, subject: Descriptor, rule: Rule) -> None:
    """Raise PolicyRefusedError unless every chat template of the artifact is pinned by the rule, and there is one.

    Reads the headers of the weights, a few MiB at most, and what lies beside them as a template. Bytes of a registry
    are not hashed here, only when they arrive: what is loaded from the store is asked again.
    """
    if rule.templates is None:
        return
    try:
        found = dict(_templates(source, subject))
    except (InvalidGGUFError, InvalidContentError, UnsupportedError) as error:
        raise PolicyRefusedError(
            f"{reference} is refused by the rule {rule.match!r}, which pins the chat template: {error}"
        ) from error
    others = [f"{digest}, {where}" for digest, where in found.items() if digest not in rule.templates]
    if not found or others:
        what = f"its chat template is {others[0]}" if others else "it has no chat template"
        raise PolicyRefusedError(
            f"{reference} is refused by the rule {rule.match!r}: {what:.300}, and the rule pins "
            f"{', '.join(rule.templates)}"
        )


def _templates(source: Source, subject: Descriptor) -> Iterator[tuple[str, str]]:
    """The sha256 of each template, and where it is."""
    manifest = source.fetch_manifest(subject)
    config = read_whole(source, manifest.config, limit=MAX_CONFIG_SIZE) if manifest.config else b"{}"
    model = codec_for(manifest).decode(manifest, config)
    if model.packed:
        raise UnsupportedError("its files are packed, and cannot be looked into")
    for file in model.weights:
        for key, digest in digests(_metadata(source, file)).items():
            yield digest, f"{key} of {file.name}"
    for file in model.files:
        if file.name.lower().endswith(".jinja"):
            yield file.digest.hex, file.name
    for layer in manifest.layers:
        if layer.media_type in _TEMPLATE_TYPES:
            yield layer.digest.hex, f"a layer of the type {layer.media_type}"


def _metadata(source: Source, file: ModelFile) -> "dict[str, object]":
    with source.read_blob(Descriptor(_ANY, file.digest, file.size)) as chunks:
        reader = io.BufferedReader(_Stream(chunks), buffer_size=1 << 16)
        return dict(parse_header(reader, file.size, name=file.name).metadata)


class _Stream(io.RawIOBase):
    """Chunks as a file that is read from front to back."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]
        if not self._left:
            self._left = next(self._chunks, b"")
        taken = self._left[: len(buffer)]
        buffer[: len(taken)] = taken
        self._left = self._left[len(taken) :]
        return len(taken)
