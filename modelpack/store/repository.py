"""One repository of the local store: a Target."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from modelpack.errors import InvalidContentError, NotFoundError
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import Descriptor, Manifest
from modelpack.oci.reference import Reference
from modelpack.oci.target import OpenBlob
from modelpack.store.cleanup import Graph
from modelpack.store.index import Index, attached_to
from modelpack.store.layout import LayoutRepository

if TYPE_CHECKING:
    from modelpack.store.local import Store


class StoreRepository(LayoutRepository):
    """Reads and writes one repository of a Store; implements Target.

    Blobs are shared by all repositories of the store, so a blob that one has, all have.
    """

    _lone_is_latest = False

    def __init__(self, store: "Store", name: str) -> None:
        super().__init__(store.root)
        self._store = store
        self.name = name

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Whether the blob is there. It then stays until this process ends or puts a manifest that names it."""
        return self._store.hold(descriptor.digest, if_present=True) == descriptor.size

    def write_blob(
        self, descriptor: Descriptor, open_blob: OpenBlob, *, on_bytes: Callable[[int], None] = lambda _: None
    ) -> None:
        self._store.hold(descriptor.digest)
        self._store.ingest.write(descriptor, open_blob, on_bytes)

    def put_manifest(self, manifest: Manifest, *, tag: str | None = None) -> Descriptor:
        """Store a manifest; the contract is that of Target. What ``tag`` named before stays, under its digest."""
        missing = self.missing(manifest)
        if missing:
            raise InvalidContentError(
                f"manifest {manifest.digest} names {missing[0].digest}, which is not in the store"
            )
        own = manifest.descriptor
        self._store.hold(own.digest)
        self._store.ingest.write_small(manifest.raw, manifest.media_type)
        descriptor = Descriptor(own.media_type, own.digest, own.size, artifact_type=own.artifact_type)
        self._store.update_index(lambda index: self.with_manifest(index, descriptor, tag))
        self._store.release([own.digest, *(item.digest for item in (*manifest.blobs, *manifest.manifests))])
        return own

    def missing(self, manifest: Manifest) -> list[Descriptor]:
        """What the manifest names and the store lacks."""
        return [item for item in (*manifest.blobs, *manifest.manifests) if not self.has_blob(item)]

    def delete_tag(self, tag: str) -> None:
        """Forget a tag; its manifest stays, under its digest. Raises NotFoundError."""
        name = self._reference(tag)

        def forget(index: Index) -> Index:
            descriptor = index.get(name)
            if descriptor is None:
                raise NotFoundError(f"no {tag} in {self.name}")
            return self.with_manifest(index.without(lambda entry: entry.name == name), descriptor, None)

        self._store.update_index(forget)

    def delete_manifest(self, digest: Digest) -> None:
        """Forget a manifest and all its tags here; its blobs are for a prune. Raises NotFoundError."""

        def forget(index: Index) -> Index:
            rest = index.without(
                lambda entry: (
                    entry.reference is not None
                    and entry.reference.name == self.name
                    and entry.descriptor.digest == digest
                )
            )
            if len(rest.entries) == len(index.entries):
                raise NotFoundError(f"no {digest} in {self.name}")
            return rest

        self._store.update_index(forget)

    def exists(self) -> bool:
        """Whether the store has anything of this name."""
        return next(self._members(), None) is not None

    def with_manifest(self, index: Index, descriptor: Descriptor, tag: str | None) -> Index:
        """The index with a manifest in this repository, under a tag or under its digest alone."""
        untagged = f"{self.name}@{descriptor.digest}"
        if tag is None:
            has_name = any(d.digest == descriptor.digest for _, d in self._members_of(index))
            return index if has_name else index.with_entry(untagged, descriptor)
        name = self._reference(tag)
        before = index.get(name)
        index = index.with_entry(name, descriptor).without(lambda entry: entry.name == untagged)
        if before is not None and before.digest != descriptor.digest:
            return self.with_manifest(index, before, None)
        return index

    def family(self, index: Index, digest: Digest) -> list[tuple[str | None, Descriptor]]:
        """What hangs on a manifest here: what lies below it and what is attached to it, with its attachment tag."""
        graph = Graph(self._store.blobs)
        own = Index(index.of_repository(self.name))
        related = graph.family(own, [digest])
        return [
            (entry.tag if attached_to(entry.tag) else None, entry.descriptor)
            for entry in own.entries
            if entry.descriptor.digest in related
        ]

    def _reference(self, tag: str) -> str:
        return str(Reference.parse(self.name).with_tag(tag))

    @property
    def _name(self) -> str:
        return self.name

    def _members(self) -> Iterator[tuple[str | None, Descriptor]]:
        return self._members_of(self._store.read_index())

    def _members_of(self, index: Index) -> Iterator[tuple[str | None, Descriptor]]:
        for entry in index.of_repository(self.name):
            yield entry.tag, entry.descriptor
