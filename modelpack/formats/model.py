"""A model as all formats see it: its files and the facts about them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from pathlib import PurePosixPath
from typing import Literal, Protocol, cast, get_args

from modelpack.errors import InvalidContentError
from modelpack.oci import strict_json
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import Descriptor, Manifest

MAX_CONFIG_SIZE = 4 << 20

FILE_PATH = "org.cncf.model.filepath"
FILE_METADATA = "org.cncf.model.file.metadata+json"
FILE_UNTESTED = "org.cncf.model.file.mediatype.untested"
TITLE = "org.opencontainers.image.title"

# One flat segment, so that no name in a manifest reaches outside a folder or is special on any system
# (path traversal, drive letters, NUL, leading dots, trailing dots and spaces, devices).
_FILE_NAME = re.compile(r"[A-Za-z0-9_+@(][A-Za-z0-9 ._+@()-]{0,199}(?<![. ])", re.ASCII)
_SHARD_NAME = re.compile(r"-\d{5}-of-\d{5}\.gguf\Z", re.ASCII)
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.ASCII | re.IGNORECASE)


Compression = Literal["gzip", "zstd"]


class FileKind(Enum):
    """What a file is for, in ModelPack's words."""

    WEIGHT = "weight"
    WEIGHT_CONFIG = "weight.config"
    DOC = "doc"
    CODE = "code"
    DATASET = "dataset"


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One file of a model: a flat name, what it is for, and its content."""

    name: str
    kind: FileKind
    digest: Digest
    size: int

    def __post_init__(self) -> None:
        check_file_name(self.name)


@dataclass(frozen=True, slots=True)
class PackedLayer:
    """A layer whose files cannot be used in place: an archive, a compressed file, or both.

    ``name`` is the file's where it is no archive. In a container image only what lies in ``folder`` belongs to the
    model, and the rest, links included, is the image's own business.
    """

    digest: Digest
    size: int
    kind: FileKind | None
    is_tar: bool
    compression: Compression | None = None
    name: str | None = None
    folder: str | None = None

    @property
    def packing(self) -> str:
        """As media types end: ``tar+gzip``."""
        return ("tar" if self.is_tar else "raw") + (f"+{self.compression}" if self.compression else "")


@dataclass(frozen=True, slots=True)
class Model:
    """What an artifact holds and says. ``created`` is the time that the bytes speak of, never the clock."""

    name: str
    files: tuple[ModelFile, ...]
    created: datetime
    architecture: str | None = None
    quantization: str | None = None
    parameters: int | str | None = None
    context_length: int | None = None
    title: str | None = None
    version: str | None = None
    description: str | None = None
    source_url: str | None = None
    revision: str | None = None
    licenses: tuple[str, ...] = ()
    base_models: tuple[str, ...] = ()
    embeds: bool = False
    gguf: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    packed: tuple[PackedLayer, ...] = ()

    def __post_init__(self) -> None:
        seen = {file.name.casefold() for file in self.files}
        if len(seen) != len(self.files):
            raise InvalidContentError(f"model {self.name!r} has two files of one name")

    @property
    def weights(self) -> tuple[ModelFile, ...]:
        """The GGUF file, or its shards in order."""
        weights = tuple(file for file in self.files if file.kind is FileKind.WEIGHT)
        # An archive may hold them in any order; the number in llama.cpp's names decides.
        are_shards = all(_SHARD_NAME.search(file.name) for file in weights)
        return tuple(sorted(weights, key=lambda file: file.name)) if are_shards else weights

    @property
    def size(self) -> int:
        """Bytes of all files, packed ones as they are."""
        return sum(file.size for file in self.files) + sum(layer.size for layer in self.packed)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A model in one format: the manifest and the config blob that it names. The files are blobs as they are."""

    manifest: Manifest
    config: bytes


class Format(Protocol):
    """One artifact format, to read."""

    name: str

    def reads(self, manifest: Manifest) -> bool: ...

    def decode(self, manifest: Manifest, config: bytes) -> Model:
        """Raises InvalidContentError for what breaks the format, a file name that is not flat above all;
        UnsupportedError where only the config shows that it is no model.
        """


class Codec(Format, Protocol):
    """One artifact format, to read and to write."""

    def encode(self, model: Model) -> Encoded:
        """The same model gives the same bytes."""


def check_file_name(name: str) -> str:
    """Returns the name if it is one safe path segment; raises InvalidContentError."""
    if not _FILE_NAME.fullmatch(name) or _DEVICE.fullmatch(name):
        raise InvalidContentError(f"not a safe file name: {name[:120]!r}")
    return name


def rfc3339(moment: datetime) -> str:
    """UTC to the second, as the formats spell time."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_rfc3339(text: object) -> datetime:
    """The moment, or the epoch where a producer wrote none or nonsense: no check depends on it."""
    if isinstance(text, str):
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            pass
        else:
            return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return datetime.fromtimestamp(0, UTC)


def layer(file: ModelFile, media_type: str, created: datetime) -> Descriptor:
    """A raw layer with the annotations that ModelPack and Docker Model Runner share.

    Mode, owner and time are constants: they are part of the digest, and a file's own would differ by machine.
    """
    metadata = {
        "name": file.name,
        "mode": 0o644,
        "uid": 0,
        "gid": 0,
        "size": file.size,
        "mtime": rfc3339(created),
        "typeflag": 0,
    }
    return Descriptor(
        media_type,
        file.digest,
        file.size,
        {
            FILE_PATH: file.name,
            FILE_METADATA: strict_json.canonical(metadata).decode(),
            FILE_UNTESTED: "false",
            TITLE: file.name,
        },
    )


def file_of(descriptor: Descriptor, kind: FileKind, *, default: str | None = None) -> ModelFile:
    """The file that a layer carries, under a flat name."""
    return ModelFile(_layer_name(descriptor, kind, default), kind, descriptor.digest, descriptor.size)


def packed_of(
    descriptor: Descriptor,
    kind: FileKind | None,
    packing: str,
    *,
    default: str | None = None,
    folder: str | None = None,
) -> PackedLayer:
    """The archive that a layer is; ``packing`` as media types end: ``tar``, ``tar+gzip``, ``raw+zstd``."""
    archive, _, compression = packing.partition("+")
    if archive not in ("tar", "raw") or compression not in ("", *get_args(Compression)):
        raise InvalidContentError(f"layer {descriptor.digest} is packed as {packing[:60]!r}, which is not read")
    is_tar = archive == "tar"
    return PackedLayer(
        descriptor.digest,
        descriptor.size,
        kind,
        is_tar,
        cast("Compression | None", compression or None),
        None if is_tar else _layer_name(descriptor, kind or FileKind.DOC, default),
        folder,
    )


def flat_name(path: str, kind: FileKind) -> str:
    """One segment for a path in an artifact. Raises InvalidContentError for a path that is not safe.

    Of weights and documents the last segment says all. Code repeats it (``__init__.py``) and is never run, so there
    the whole path becomes one name.
    """
    parts = PurePosixPath(path).parts
    if path.startswith("/") or ".." in parts or not parts:
        raise InvalidContentError(f"unsafe path: {path[:120]!r}")
    is_deep = kind in (FileKind.CODE, FileKind.DATASET)
    return check_file_name("__".join(parts) if is_deep else parts[-1])


def kind_of_name(name: str) -> FileKind:
    """What a file is for, where only its name says so."""
    lower = name.lower()
    if lower.endswith((".gguf", ".safetensors")):
        # A projector goes with the weights, but is not what is loaded first.
        return FileKind.WEIGHT_CONFIG if lower.startswith("mmproj") else FileKind.WEIGHT
    if lower.startswith(("license", "licence", "notice", "readme")) or lower.endswith((".md", ".txt", ".pdf")):
        return FileKind.DOC
    return FileKind.WEIGHT_CONFIG


def _layer_name(descriptor: Descriptor, kind: FileKind, default: str | None) -> str:
    path = descriptor.annotations.get(FILE_PATH) or descriptor.annotations.get(TITLE) or default
    if path is None:
        raise InvalidContentError(f"layer {descriptor.digest} has no file name")
    try:
        return flat_name(path, kind)
    except InvalidContentError as error:
        raise InvalidContentError(f"layer {descriptor.digest}: {error}") from error


def text_of(document: Mapping[str, object], key: str, *, limit: int = 1024) -> str | None:
    """A string member of a config, bounded; None where it is absent or something else."""
    value = document.get(key)
    return value[:limit] if isinstance(value, str) and value else None


def object_of(document: Mapping[str, object], key: str) -> Mapping[str, object]:
    """An object member of a config, empty where it is absent. Raises InvalidContentError for anything else."""
    value = document.get(key, {})
    if not isinstance(value, dict):
        raise InvalidContentError(f"config has a member {key!r} that is not an object")
    return value


def texts_of(document: Mapping[str, object], key: str) -> tuple[str, ...]:
    value = document.get(key)
    if not isinstance(value, Sequence) or isinstance(value, str):
        return ()
    return tuple(item[:256] for item in value[:64] if isinstance(item, str))
