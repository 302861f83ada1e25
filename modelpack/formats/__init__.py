"""What an artifact says about a model, one module per format.

A format is one file and one entry in CODECS.
"""

from modelpack.errors import UnsupportedError
from modelpack.formats.cncf import CncfCodec
from modelpack.formats.docker import DockerCodec
from modelpack.formats.model import Codec, Encoded, FileKind, Model, ModelFile
from modelpack.oci.manifest import Manifest

CODECS: tuple[Codec, ...] = (CncfCodec(), DockerCodec())

__all__ = ["CODECS", "Codec", "Encoded", "FileKind", "Model", "ModelFile", "codec_for", "codec_named"]


def codec_named(name: str) -> Codec:
    """The codec that ``--format`` names. Raises UnsupportedError."""
    for codec in CODECS:
        if codec.name == name:
            return codec
    raise UnsupportedError(f"no format {name!r}; there are {', '.join(codec.name for codec in CODECS)}")


def codec_for(manifest: Manifest) -> Codec:
    """The codec that reads this manifest. Raises UnsupportedError for anything that is not a model we know."""
    for codec in CODECS:
        if codec.reads(manifest):
            return codec
    kind = manifest.artifact_type or (manifest.config.media_type if manifest.config else manifest.media_type)
    raise UnsupportedError(f"{manifest.digest} is not a model that modelpack reads ({kind[:120]})")
