"""Bundles that came beside an artifact, in files, seen as if they hung on it: how an air-gapped machine checks one."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext

from modelpack.errors import NotFoundError
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import Descriptor, Manifest
from modelpack.oci.target import BlobStream, OpenBlob, Source
from modelpack.signing import envelope, places


def with_bundles(source: Source, subject: Descriptor, bundles: Sequence[bytes]) -> Source:
    """``source`` with ``bundles`` among the referrers of ``subject``, each with the same doubts as any other.

    Raises InvalidContentError and UnsupportedError for what is no bundle: it was named on purpose.
    """
    overlay = _Overlay(source)
    for raw in bundles:
        bundle = envelope.Bundle.parse(raw)
        kind = envelope.Statement.parse(bundle.envelope.payload).predicate_type
        places.put_bundle(overlay, subject, bundle, predicate_type=kind, created=None)
    return overlay


class _Overlay:
    """What is written stays in memory, in front of a source that is only read."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._blobs: dict[Digest, bytes] = {}
        self._manifests: dict[Digest, Manifest] = {}

    def resolve(self, selector: str) -> Descriptor:
        return self._source.resolve(selector)

    def fetch_manifest(self, descriptor: Descriptor) -> Manifest:
        return self._manifests.get(descriptor.digest) or self._source.fetch_manifest(descriptor)

    def read_blob(self, descriptor: Descriptor, *, offset: int = 0) -> BlobStream:
        if descriptor.digest in self._blobs:
            return nullcontext(iter([self._blobs[descriptor.digest][offset:]]))
        return self._source.read_blob(descriptor, offset=offset)

    def list_referrers(self, subject: Digest) -> list[Descriptor]:
        own = [m.descriptor for m in self._manifests.values() if m.subject and m.subject.digest == subject]
        try:
            return own + self._source.list_referrers(subject)
        except NotFoundError:
            return own

    def list_tags(self) -> list[str]:
        return self._source.list_tags()

    def has_blob(self, descriptor: Descriptor) -> bool:
        return descriptor.digest in self._blobs

    def write_blob(
        self, descriptor: Descriptor, open_blob: OpenBlob, *, on_bytes: Callable[[int], None] = lambda _: None
    ) -> None:
        with open_blob(0) as chunks:
            self._blobs[descriptor.digest] = descriptor.check(b"".join(chunks))
        on_bytes(descriptor.size)

    def put_manifest(self, manifest: Manifest, *, tag: str | None = None) -> Descriptor:
        if tag:
            raise AssertionError("nothing is tagged in an overlay")
        self._manifests[manifest.digest] = manifest
        return manifest.descriptor
