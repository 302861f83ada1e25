"""Writing an OCI image layout in a folder of anyone's, one repository with bare tags: ``oci-layout:DIR``."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from modelpack.atomic_file import write_atomically
from modelpack.errors import InvalidContentError, InvalidInputError
from modelpack.oci.manifest import Descriptor, Manifest
from modelpack.oci.target import OpenBlob
from modelpack.store import locks
from modelpack.store.index import REF_NAME, Entry, Index
from modelpack.store.ingest import Ingest
from modelpack.store.layout import INDEX_FILE, LAYOUT, LAYOUT_FILE, LayoutRepository, check_layout

# The specification lets other files lie beside the layout's own.
_PARTIALS = ".partial"


def create_layout(path: Path) -> "LayoutTarget":
    """The layout at ``path``, made if missing. Raises InvalidInputError for a folder that holds something else."""
    if path.exists() and not (path / LAYOUT_FILE).exists():
        if not path.is_dir() or any(path.iterdir()):
            raise InvalidInputError(f"{path} is no OCI image layout, and not an empty folder")
    elif path.exists():
        check_layout(path)
    return LayoutTarget(path)


class LayoutTarget(LayoutRepository):
    """Reads and writes a layout; implements Target."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._partials = root / _PARTIALS
        for folder in (self._blobs.directory, self._partials):
            folder.mkdir(parents=True, exist_ok=True)
        self._ingest = Ingest(self._blobs, self._partials)
        for name, content in ((LAYOUT_FILE, LAYOUT), (INDEX_FILE, Index().encode())):
            if not (root / name).exists():
                write_atomically(root / name, content)

    def has_blob(self, descriptor: Descriptor) -> bool:
        return self._blobs.has(descriptor)

    def write_blob(
        self, descriptor: Descriptor, open_blob: OpenBlob, *, on_bytes: Callable[[int], None] = lambda _: None
    ) -> None:
        self._ingest.write(descriptor, open_blob, on_bytes)

    def put_manifest(self, manifest: Manifest, *, tag: str | None = None) -> Descriptor:
        missing = [item for item in (*manifest.blobs, *manifest.manifests) if not self._blobs.has(item)]
        if missing:
            raise InvalidContentError(
                f"manifest {manifest.digest} names {missing[0].digest}, which is not in {self._root}"
            )
        self._ingest.write_small(manifest.raw, manifest.media_type)
        with locks.locked(self._partials / "lock"):
            before = Index.load(self._root / INDEX_FILE)
            after = entries_with(before, manifest, tag)
            if after != before:
                after.save(self._root / INDEX_FILE)
        return manifest.descriptor


def entries_with(index: Index, manifest: Manifest, tag: str | None) -> Index:
    """The index of a layout of one repository with one manifest more.

    A manifest has an entry under each of its tags, one without a name when it has none, and none at all when an index
    here lists it: then the way to it is through that index.
    """
    own = manifest.descriptor
    descriptor = Descriptor(own.media_type, own.digest, own.size, artifact_type=own.artifact_type)
    listed = {child.digest for child in manifest.manifests}
    index = index.without(lambda entry: not entry.name and entry.descriptor.digest in listed)
    if tag is None:
        if any(entry.descriptor.digest == own.digest for entry in index.entries):
            return index
        return Index((*index.entries, Entry("", descriptor)))
    index = index.without(lambda entry: entry.name == tag or (not entry.name and entry.descriptor.digest == own.digest))
    return Index((*index.entries, Entry(tag, replace(descriptor, annotations={REF_NAME: tag}))))
