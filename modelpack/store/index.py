"""The ``index.json`` of an image layout: which manifests there are, and under which names.

A name is the annotation ``org.opencontainers.image.ref.name`` (image specification 1.1, annotations.md). In our own
store it is a full reference: ``repository:tag``, or ``repository@sha256:...`` for a manifest without a tag. In the
layouts of others it is mostly a bare tag.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from modelpack.atomic_file import write_atomically
from modelpack.errors import InvalidContentError, MalformedReferenceError, NotFoundError
from modelpack.oci import strict_json
from modelpack.oci.manifest import IMAGE_INDEX, Descriptor
from modelpack.oci.reference import DEFAULT_TAG, Reference

REF_NAME = "org.opencontainers.image.ref.name"
_MAX_SIZE = 64 << 20

# What cosign's legacy scheme and the referrers fallback call a tag: it belongs to the digest in its name.
_ATTACHMENT_TAG = re.compile(r"sha256-([0-9a-f]{64})(\.[a-z]+)?", re.ASCII)


@dataclass(frozen=True)
class Entry:
    """One descriptor of the index. ``name`` is empty when it has none."""

    name: str
    descriptor: Descriptor

    @cached_property
    def reference(self) -> Reference | None:
        """The name as one of our references; None when another tool wrote something else there."""
        try:
            reference = Reference.parse(self.name)
        except MalformedReferenceError:
            return None
        return reference if reference.tag or reference.digest else reference.with_tag(DEFAULT_TAG)

    @property
    def tag(self) -> str | None:
        return self.reference.tag if self.reference else None


@dataclass(frozen=True, slots=True)
class Index:
    entries: tuple[Entry, ...] = ()

    @classmethod
    def load(cls, path: Path) -> "Index":
        """Read an index.json. Raises NotFoundError, InvalidContentError."""
        try:
            with path.open("rb") as file:
                raw = file.read(_MAX_SIZE + 1)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFoundError(f"no OCI image layout in {path.parent}") from error
        if len(raw) > _MAX_SIZE:
            raise InvalidContentError(f"{path} has more than {_MAX_SIZE} bytes")
        document = strict_json.parse_object(raw, what=str(path))
        manifests = document.get("manifests")
        if not isinstance(manifests, list):
            raise InvalidContentError(f"{path} has no list of manifests")
        descriptors = (Descriptor.parse(item, what=str(path)) for item in manifests)
        return cls(tuple(Entry(descriptor.annotations.get(REF_NAME, ""), descriptor) for descriptor in descriptors))

    def save(self, path: Path) -> None:
        document = {
            "schemaVersion": 2,
            "mediaType": IMAGE_INDEX,
            "manifests": [entry.descriptor.to_json() for entry in self.entries],
        }
        write_atomically(path, strict_json.canonical(document))

    def get(self, name: str) -> Descriptor | None:
        return next((entry.descriptor for entry in self.entries if entry.name == name), None)

    def with_entry(self, name: str, descriptor: Descriptor) -> "Index":
        """``name`` now names ``descriptor``, and only that."""
        annotated = replace(descriptor, annotations={REF_NAME: name}, artifact_type=descriptor.artifact_type)
        kept = tuple(entry for entry in self.entries if entry.name != name)
        return Index((*kept, Entry(name, annotated)))

    def without(self, condition: Callable[[Entry], bool]) -> "Index":
        return Index(tuple(entry for entry in self.entries if not condition(entry)))


def plain(descriptor: Descriptor) -> Descriptor:
    """The descriptor without what the index says about it."""
    return Descriptor(descriptor.media_type, descriptor.digest, descriptor.size)


def attached_to(tag: str | None) -> str | None:
    """The hexadecimal digest that a tag such as ``sha256-<hex>.sig`` belongs to; None for a tag of a person."""
    match = _ATTACHMENT_TAG.fullmatch(tag) if tag else None
    return match.group(1) if match else None
