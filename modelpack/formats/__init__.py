"""What an artifact says about a model, one module per format.

A format is one file and one entry in FORMATS, and in CODECS when it is written, too.
"""

from modelpack.errors import SeveralManifestsError, UnsupportedError
from modelpack.formats.cncf import CncfCodec
from modelpack.formats.docker import DockerCodec
from modelpack.formats.model import Codec, Encoded, FileKind, Format, Model, ModelFile, PackedLayer
from modelpack.formats.modelcar import ModelcarFormat
from modelpack.formats.modelkit import ModelKitFormat
from modelpack.formats.ollama import OllamaCodec
from modelpack.formats.ramalama import RamalamaFormat
from modelpack.oci.manifest import Manifest

CODECS: tuple[Codec, ...] = (CncfCodec(), DockerCodec(), OllamaCodec())
# Ollama's layers before container images: both have the same type of config.
FORMATS: tuple[Format, ...] = (*CODECS, RamalamaFormat(), ModelKitFormat(), ModelcarFormat())

__all__ = [
    "CODECS",
    "FORMATS",
    "Codec",
    "Encoded",
    "FileKind",
    "Format",
    "Model",
    "ModelFile",
    "PackedLayer",
    "codec_for",
    "codec_named",
]


def codec_named(name: str) -> Codec:
    """The codec that ``--format`` names. Raises UnsupportedError."""
    for codec in CODECS:
        if codec.name == name:
            return codec
    raise UnsupportedError(f"no format {name!r}; there are {', '.join(codec.name for codec in CODECS)}")


def codec_for(manifest: Manifest) -> Format:
    """The format that this manifest is in. Raises UnsupportedError for anything that is not a model we know."""
    for known in FORMATS:
        if known.reads(manifest):
            return known
    kind = manifest.artifact_type or (manifest.config.media_type if manifest.config else manifest.media_type)
    if manifest.is_index:
        raise SeveralManifestsError(f"{manifest.digest} lists several manifests: name one of them ({kind[:120]})")
    raise UnsupportedError(f"{manifest.digest} is not a model that modelpack reads ({kind[:120]})")
