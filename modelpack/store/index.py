"""The ``index.json`` of an image layout: which manifests there are, and under which names.

A name is the annotation ``org.opencontainers.image.ref.name`` (image specification 1.1, annotations.md). In our own
store it is a full reference: ``repository:tag``, or ``repository@sha256:...`` for a manifest without a tag. In the
layouts of others it is mostly a bare tag. ``cosign save`` gives no names; there an annotation says what is what.
"""

import os
import re
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from modelpack.atomic_file import write_atomically
from modelpack.errors import InvalidContentError, MalformedReferenceError, MissingFileError
from modelpack.oci import strict_json
from modelpack.oci.manifest import IMAGE_INDEX, Descriptor
from modelpack.oci.reference import DEFAULT_TAG, Reference

REF_NAME = "org.opencontainers.image.ref.name"
_MAX_SIZE = 64 << 20

# What cosign's legacy scheme and the referrers fallback call a tag: it belongs to the digest in its name.
_ATTACHMENT_TAG = re.compile(r"sha256-([0-9a-f]{64})(\.[a-z]+)?", re.ASCII)

# What `cosign save` writes: one artifact, and the manifests that in a registry have a tag made of its digest
# (github.com/sigstore/cosign, pkg/oci/layout/index.go).
_COSIGN_KIND = "kind"
_COSIGN_SAVED = ("dev.cosignproject.cosign/image", "dev.cosignproject.cosign/imageIndex")
_COSIGN_ATTACHED = {"dev.cosignproject.cosign/sigs": ".sig", "dev.cosignproject.cosign/atts": ".att"}


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


@dataclass(frozen=True)
class Index:
    entries: tuple[Entry, ...] = ()

    @classmethod
    def load(cls, path: Path) -> "Index":
        """Read an index.json. Raises MissingFileError, InvalidContentError."""
        return IndexFile(path).load()

    @classmethod
    def parse(cls, raw: bytes, path: Path) -> "Index":
        """Raises InvalidContentError, naming ``path``."""
        if len(raw) > _MAX_SIZE:
            raise InvalidContentError(f"{path} has more than {_MAX_SIZE} bytes")
        document = strict_json.parse_object(raw, what=str(path))
        manifests = document.get("manifests")
        if not isinstance(manifests, list):
            raise InvalidContentError(f"{path} has no list of manifests")
        descriptors = [Descriptor.parse(item, what=str(path)) for item in manifests]
        saved = [one for one in descriptors if one.annotations.get(_COSIGN_KIND) in _COSIGN_SAVED]
        subject = saved[0] if len(saved) == 1 else None
        return cls(tuple(Entry(_name(descriptor, subject), descriptor) for descriptor in descriptors))

    def save(self, path: Path) -> None:
        write_atomically(path, self.encode())

    def encode(self) -> bytes:
        """The content of an index.json."""
        document = {
            "schemaVersion": 2,
            "mediaType": IMAGE_INDEX,
            "manifests": [entry.descriptor.to_json() for entry in self.entries],
        }
        return strict_json.canonical(document)

    def get(self, name: str) -> Descriptor | None:
        entry = self._by_name.get(name)
        return entry.descriptor if entry else None

    def of_repository(self, name: str) -> tuple[Entry, ...]:
        """The entries of one repository, ``[registry/]repository``."""
        return self._by_repository.get(name, ())

    def repositories(self) -> list[str]:
        """The names of all repositories, sorted."""
        return sorted(self._by_repository)

    def with_entry(self, name: str, descriptor: Descriptor) -> "Index":
        """``name`` now names ``descriptor``, and only that."""
        annotated = replace(descriptor, annotations={REF_NAME: name}, artifact_type=descriptor.artifact_type)
        kept = tuple(entry for entry in self.entries if entry.name != name)
        return Index((*kept, Entry(name, annotated)))

    def without(self, condition: Callable[[Entry], bool]) -> "Index":
        return Index(tuple(entry for entry in self.entries if not condition(entry)))

    @cached_property
    def _by_name(self) -> Mapping[str, Entry]:
        return {entry.name: entry for entry in reversed(self.entries)}

    @cached_property
    def _by_repository(self) -> Mapping[str, tuple[Entry, ...]]:
        members: dict[str, list[Entry]] = {}
        for entry in self.entries:
            if entry.reference:
                members.setdefault(entry.reference.name, []).append(entry)
        return {name: tuple(entries) for name, entries in members.items()}


class IndexFile:
    """An index.json that is parsed again only when it is another: with 10,000 entries that takes 0.1 s."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: _Snapshot | None = None

    def load(self) -> Index:
        """The index as it is now. Raises MissingFileError, InvalidContentError."""
        try:
            file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise MissingFileError(f"no OCI image layout in {self._path.parent}") from error
        # The file of the last time stays open, so that no new file can have its inode number.
        now, known = _Snapshot(file), self._known
        if known is None or known.identity != now.identity:
            with os.fdopen(os.dup(file), "rb") as content:
                now.index = Index.parse(content.read(_MAX_SIZE + 1), self._path)
            known = self._known = now
        return known.index


class _Snapshot:
    """What was read from a file, and which file that was. Other tools write in place, hence size and times."""

    def __init__(self, file: int) -> None:
        weakref.finalize(self, os.close, file)
        status = os.fstat(file)
        self.identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        self.index = Index()


def plain(descriptor: Descriptor) -> Descriptor:
    """The descriptor without what the index says about it."""
    return Descriptor(descriptor.media_type, descriptor.digest, descriptor.size)


def _name(descriptor: Descriptor, saved: Descriptor | None) -> str:
    """What the index calls it; signatures and attestations beside the one that cosign ``saved`` have their tag."""
    suffix = _COSIGN_ATTACHED.get(descriptor.annotations.get(_COSIGN_KIND, ""))
    attached = f"sha256-{saved.digest.hex}{suffix}" if saved and suffix else ""
    return descriptor.annotations.get(REF_NAME, attached)


def attached_to(tag: str | None) -> str | None:
    """The hexadecimal digest that a tag such as ``sha256-<hex>.sig`` belongs to; None for a tag of a person."""
    match = _ATTACHMENT_TAG.fullmatch(tag) if tag else None
    return match.group(1) if match else None
