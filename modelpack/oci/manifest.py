"""Descriptors, image manifests and image indexes (OCI image specification 1.1: descriptor.md, manifest.md,
image-index.md). The bytes are the truth: a Manifest keeps those it was parsed from, and its digest is theirs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from modelpack.errors import DigestMismatchError, InvalidContentError
from modelpack.oci import strict_json
from modelpack.oci.digest import Digest

IMAGE_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
IMAGE_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_MANIFEST_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
MANIFEST_TYPES = (IMAGE_MANIFEST, DOCKER_MANIFEST)
INDEX_TYPES = (IMAGE_INDEX, DOCKER_MANIFEST_LIST)
ACCEPTED_TYPES = (*MANIFEST_TYPES, *INDEX_TYPES)

EMPTY_JSON = b"{}"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"

_NOT_DISTRIBUTED = (
    "application/vnd.oci.image.layer.nondistributable.",
    "application/vnd.docker.image.rootfs.foreign.",
)

# Registries refuse larger manifests (distribution specification 1.1, "Pushing Manifests": at least 4 MiB).
MAX_MANIFEST_SIZE = 4 << 20
MAX_LAYERS = 10_000
MAX_BLOB_SIZE = 1 << 50

_NO_ANNOTATIONS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a piece of content is: media type, digest and size in bytes."""

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = field(default_factory=lambda: _NO_ANNOTATIONS)
    artifact_type: str | None = None

    def __hash__(self) -> int:
        return hash((self.media_type, self.digest, self.size))

    @classmethod
    def of(
        cls,
        content: bytes,
        media_type: str,
        *,
        annotations: Mapping[str, str] | None = None,
        artifact_type: str | None = None,
    ) -> "Descriptor":
        return cls(media_type, Digest.of(content), len(content), annotations or _NO_ANNOTATIONS, artifact_type)

    @classmethod
    def parse(cls, document: object, *, what: str = "descriptor") -> "Descriptor":
        """Read a descriptor from parsed JSON; raises InvalidContentError."""
        if not isinstance(document, dict):
            raise InvalidContentError(f"{what} is not an object")
        media_type = document.get("mediaType")
        digest = document.get("digest")
        size = document.get("size")
        if not isinstance(media_type, str) or not isinstance(digest, str):
            raise InvalidContentError(f"{what} lacks a mediaType or a digest")
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= MAX_BLOB_SIZE:
            raise InvalidContentError(f"{what} has no valid size: {size!r:.40}")
        artifact_type = document.get("artifactType")
        if artifact_type is not None and not isinstance(artifact_type, str):
            raise InvalidContentError(f"{what} has an artifactType that is not a string")
        return cls(media_type, Digest(digest), size, _annotations(document, what), artifact_type)

    def to_json(self) -> dict[str, Any]:
        document: dict[str, Any] = {"mediaType": self.media_type, "digest": str(self.digest), "size": self.size}
        if self.artifact_type:
            document["artifactType"] = self.artifact_type
        if self.annotations:
            document["annotations"] = dict(sorted(self.annotations.items()))
        return document

    def check(self, content: bytes) -> bytes:
        """Return ``content`` if it is what this descriptor names; raises DigestMismatchError."""
        if len(content) != self.size:
            raise DigestMismatchError(f"{self.digest} has {len(content)} bytes where {self.size} were promised")
        actual = Digest.of(content)
        if actual != self.digest:
            raise DigestMismatchError(f"content of {self.digest} has the digest {actual}")
        return content


EMPTY_CONFIG = Descriptor.of(EMPTY_JSON, EMPTY_TYPE)


@dataclass(frozen=True, slots=True)
class Manifest:
    """An image manifest or an image index, with the exact bytes it was read from.

    ``config`` and ``layers`` are those of an image manifest, ``manifests`` those of an index.
    """

    raw: bytes
    media_type: str
    artifact_type: str | None
    config: Descriptor | None
    layers: tuple[Descriptor, ...]
    manifests: tuple[Descriptor, ...]
    subject: Descriptor | None
    annotations: Mapping[str, str]

    @property
    def is_index(self) -> bool:
        return self.media_type in INDEX_TYPES

    @property
    def digest(self) -> Digest:
        return Digest.of(self.raw)

    @property
    def descriptor(self) -> Descriptor:
        """A descriptor of this manifest as an index or a referrers list spells it.

        The artifact type falls back to the config's media type (distribution specification 1.1, "Listing Referrers").
        """
        kind = self.artifact_type or (self.config.media_type if self.config else None)
        return Descriptor.of(self.raw, self.media_type, annotations=self.annotations, artifact_type=kind)

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """The config and the layers, each digest once, in order: what has to be where the manifest is.

        Layers that nobody may distribute lie elsewhere (layer.md, "Non-Distributable Layers"), and are left out.
        """
        unique: dict[Digest, Descriptor] = {}
        layers = [layer for layer in self.layers if not layer.media_type.startswith(_NOT_DISTRIBUTED)]
        for descriptor in (self.config, *layers) if self.config else layers:
            unique.setdefault(descriptor.digest, descriptor)
        return tuple(unique.values())

    @classmethod
    def parse(cls, raw: bytes, *, media_type: str | None = None) -> "Manifest":
        """Parse a manifest or an index.

        ``media_type`` is what the outside claimed (a Content-Type, a descriptor); where the document says something
        else, or is both a manifest and an index, it is refused (CVE-2021-41190). Raises InvalidContentError.
        """
        if len(raw) > MAX_MANIFEST_SIZE:
            raise InvalidContentError(f"manifest has {len(raw)} bytes, more than {MAX_MANIFEST_SIZE}")
        document = strict_json.parse_object(raw, what="manifest")
        if document.get("schemaVersion") != 2:
            raise InvalidContentError("manifest is not of schemaVersion 2")
        own = document.get("mediaType", media_type)
        if media_type is not None and own != media_type:
            raise InvalidContentError(f"manifest says it is {own!r:.120}, but was served as {media_type!r:.120}")
        if own not in ACCEPTED_TYPES:
            raise InvalidContentError(f"manifest has an unknown media type: {own!r:.120}")
        if "manifests" in document and ("layers" in document or "config" in document):
            raise InvalidContentError("manifest is both an image manifest and an index")
        artifact_type = document.get("artifactType")
        if artifact_type is not None and not isinstance(artifact_type, str):
            raise InvalidContentError("manifest has an artifactType that is not a string")
        subject = Descriptor.parse(document["subject"], what="subject") if document.get("subject") else None
        is_index = own in INDEX_TYPES
        return cls(
            raw=raw,
            media_type=own,
            artifact_type=artifact_type or None,
            config=None if is_index else Descriptor.parse(document.get("config"), what="config"),
            layers=() if is_index else _descriptors(document.get("layers"), "layers"),
            manifests=_descriptors(document.get("manifests"), "manifests") if is_index else (),
            subject=subject,
            annotations=_annotations(document, "manifest"),
        )


def image_manifest(
    *,
    config: Descriptor,
    layers: Sequence[Descriptor],
    artifact_type: str | None = None,
    subject: Descriptor | None = None,
    annotations: Mapping[str, str] | None = None,
    media_type: str = IMAGE_MANIFEST,
) -> Manifest:
    """Make an image manifest. The same arguments give the same bytes."""
    document: dict[str, Any] = {"schemaVersion": 2, "mediaType": media_type}
    if artifact_type:
        document["artifactType"] = artifact_type
    document["config"] = config.to_json()
    document["layers"] = [layer.to_json() for layer in layers]
    if subject:
        # A subject is named by type, digest and size alone: its annotations are its own business.
        document["subject"] = Descriptor(subject.media_type, subject.digest, subject.size).to_json()
    if annotations:
        document["annotations"] = dict(sorted(annotations.items()))
    return Manifest.parse(strict_json.canonical(document))


def image_index(
    manifests: Sequence[Descriptor],
    *,
    artifact_type: str | None = None,
    subject: Descriptor | None = None,
    annotations: Mapping[str, str] | None = None,
) -> Manifest:
    """Make an image index. The same arguments give the same bytes."""
    document: dict[str, Any] = {"schemaVersion": 2, "mediaType": IMAGE_INDEX}
    if artifact_type:
        document["artifactType"] = artifact_type
    document["manifests"] = [manifest.to_json() for manifest in manifests]
    if subject:
        document["subject"] = Descriptor(subject.media_type, subject.digest, subject.size).to_json()
    if annotations:
        document["annotations"] = dict(sorted(annotations.items()))
    return Manifest.parse(strict_json.canonical(document))


def _descriptors(value: object, what: str) -> tuple[Descriptor, ...]:
    if not isinstance(value, list):
        raise InvalidContentError(f"manifest has no list of {what}")
    if len(value) > MAX_LAYERS:
        raise InvalidContentError(f"manifest lists {len(value)} {what}, more than {MAX_LAYERS}")
    return tuple(Descriptor.parse(item, what=f"{what}[{position}]") for position, item in enumerate(value))


def _annotations(document: dict[str, Any], what: str) -> Mapping[str, str]:
    annotations = document.get("annotations")
    if not annotations:
        return _NO_ANNOTATIONS
    if not isinstance(annotations, dict) or not all(isinstance(text, str) for text in annotations.values()):
        raise InvalidContentError(f"{what} has annotations that are not strings")
    return MappingProxyType(annotations)
