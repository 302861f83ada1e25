"""What the places that hold artifacts have in common: the local store, a repository in a registry, an OCI layout."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from modelpack.errors import DigestMismatchError, InvalidContentError, UnavailableError
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import Descriptor, Manifest

BlobStream = AbstractContextManager[Iterator[bytes]]
"""The bytes of a blob in chunks of at most a few MiB; the context holds the file or the connection open."""

OpenBlob = Callable[[int], BlobStream]
"""Opens the same blob at a byte offset, as often as needed: how an interrupted transfer resumes."""


class RangesIgnoredError(UnavailableError):
    """A source was asked for a part of a blob and sent all of it: it has to be read in one stream."""

    code = "ranges.ignored"


@dataclass(frozen=True, slots=True)
class RangedBlob:
    """An OpenBlob that can also be read in parts, by up to ``connections`` readers at once."""

    open_stream: OpenBlob
    open_range: Callable[[int, int], BlobStream]
    connections: int

    def __call__(self, offset: int) -> BlobStream:
        return self.open_stream(offset)


@dataclass(frozen=True, slots=True)
class Written:
    """What a target had of a blob before it was written: all of it, in another repository, or ``kept`` bytes of an
    earlier try.
    """

    is_mounted: bool = False
    kept: int = 0


class Source(Protocol):
    """One repository's worth of artifacts to read from."""

    def resolve(self, selector: str) -> Descriptor:
        """The manifest that a tag or a digest names now. Raises NotFoundError."""

    def fetch_manifest(self, descriptor: Descriptor) -> Manifest:
        """The manifest's bytes, checked against the descriptor. Raises NotFoundError, DigestMismatchError."""

    def read_blob(self, descriptor: Descriptor, *, offset: int = 0) -> BlobStream:
        """The blob's bytes from ``offset`` on. NOT checked: whoever keeps or uses them hashes them."""

    def list_referrers(self, subject: Digest) -> list[Descriptor]:
        """Manifests whose subject is ``subject``, from the referrers API and the fallback tag, as advertised there.

        The descriptors are claims: fetch a manifest and look at its own ``subject`` and ``artifactType``.
        """

    def list_tags(self) -> list[str]:
        """All tags, sorted."""


@runtime_checkable
class RangedSource(Protocol):
    """A Source that gains from being read in several places at once: each connection to it has a speed of its own."""

    def open_range(self, descriptor: Descriptor, start: int, stop: int) -> BlobStream:
        """The bytes ``start`` to ``stop - 1`` of a blob, not checked. Raises RangesIgnoredError."""


@runtime_checkable
class PatientPlace(Protocol):
    """A place behind a network, which is asked again where that may help."""

    @property
    def retries(self) -> int:
        """How often it was, so far."""


@runtime_checkable
class ThrottledSource(Protocol):
    """A Source that is known to hold each connection back, so that more of them bring more."""

    @property
    def connections(self) -> int:
        """How many bring as much as can be had."""


@runtime_checkable
class LimitedTarget(Protocol):
    """A Target that knows beforehand what it will not take."""

    def check_limits(self, blobs: Iterable[Descriptor]) -> None:
        """Raises RegistryRefusedError before a byte has moved."""


class Target(Source, Protocol):
    """A Source that can be written to."""

    def has_blob(self, descriptor: Descriptor) -> bool: ...

    def write_blob(
        self, descriptor: Descriptor, open_blob: OpenBlob, *, on_bytes: Callable[[int], None] = lambda _: None
    ) -> Written | None:
        """Store a blob that streams from ``open_blob``; only content that matches the descriptor becomes visible.

        ``on_bytes`` hears of every chunk that arrives, and of what an earlier try had already brought. Returns what the
        bytes that were read do not tell: a blob that was mounted, of which ``on_bytes`` hears nothing, and what was
        read again only to be hashed. Raises DigestMismatchError, InsufficientDiskError.
        """

    def put_manifest(self, manifest: Manifest, *, tag: str | None = None) -> Descriptor:
        """Store a manifest under its digest and, if asked, point ``tag`` at it; list it among its subject's
        referrers. Idempotent. Raises InvalidContentError when a blob that it names is missing.
        """


def read_whole(source: Source, descriptor: Descriptor, *, limit: int) -> bytes:
    """A small blob in memory, checked. Raises InvalidContentError above ``limit`` bytes, DigestMismatchError."""
    if descriptor.size > limit:
        raise InvalidContentError(f"{descriptor.digest} has {descriptor.size} bytes, more than {limit}")
    content = bytearray()
    with source.read_blob(descriptor) as chunks:
        for chunk in chunks:
            content += chunk
            if len(content) > descriptor.size:
                raise DigestMismatchError(f"{descriptor.digest} is longer than the {descriptor.size} bytes promised")
    return descriptor.check(bytes(content))


def write_whole(target: Target, content: bytes, media_type: str) -> Descriptor:
    """Store a small blob from memory; returns its descriptor."""
    descriptor = Descriptor.of(content, media_type)
    if not target.has_blob(descriptor):
        target.write_blob(descriptor, lambda offset: nullcontext(iter([content[offset:]])))
    return descriptor
