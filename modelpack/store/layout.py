"""Reading an OCI image layout, ours or anyone's (image specification 1.1, image-layout.md)."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from modelpack.errors import DigestMismatchError, InvalidContentError, MissingFileError, NotFoundError
from modelpack.oci import strict_json
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import ACCEPTED_TYPES, INDEX_TYPES, Descriptor, Manifest
from modelpack.oci.reference import DEFAULT_TAG
from modelpack.oci.target import BlobStream
from modelpack.store.blobs import Blobs
from modelpack.store.index import Index, plain

LAYOUT_FILE = "oci-layout"
INDEX_FILE = "index.json"
LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
MAX_LAYOUT_FILE = 4096


def open_layout(path: Path, *, repository: str | None = None) -> "LayoutRepository":
    """An image layout on disk as one repository, to read from; its tags are the reference names in its index.

    Where those are full references, as in our store, ``repository`` says which of its repositories is meant.
    Raises NotFoundError when there is none, InvalidContentError for a version that we do not know.
    """
    check_layout(path)
    return LayoutRepository(path, repository=repository)


def check_layout(path: Path) -> None:
    """Raises NotFoundError or InvalidContentError when ``path`` is no image layout 1.x."""
    try:
        with (path / LAYOUT_FILE).open("rb") as file:
            raw = file.read(MAX_LAYOUT_FILE + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingFileError(f"no OCI image layout in {path}") from error
    check_version(raw, path)


def check_version(raw: bytes, path: Path) -> None:
    """Raises InvalidContentError for the ``oci-layout`` file of a version that we do not know."""
    version = strict_json.parse_object(raw, what=str(path / LAYOUT_FILE)).get("imageLayoutVersion")
    if not isinstance(version, str) or version.partition(".")[0] != "1":
        raise InvalidContentError(f"{path} is an image layout of version {version!r:.20}, not 1")


class LayoutRepository:
    """Reads one repository from a layout; implements Source."""

    _lone_is_latest: ClassVar[bool] = True

    def __init__(self, root: Path, *, repository: str | None = None, blobs: Blobs | None = None) -> None:
        self._root = root
        self._repository = repository
        self._blobs = blobs or Blobs(root)

    def resolve(self, selector: str) -> Descriptor:
        """What a tag or digest names. In a layout of one manifest, ``latest`` names that one, as skopeo has it."""
        members = list(self._members())
        if selector.startswith("sha256:"):
            digest = Digest(selector)
            found = next((descriptor for _, descriptor in members if descriptor.digest == digest), None)
            found = found or self._find_child(digest, [descriptor for _, descriptor in members])
        else:
            found = next((descriptor for tag, descriptor in members if tag == selector), None)
            if found is None and self._lone_is_latest and selector == DEFAULT_TAG and len(members) == 1:
                found = members[0][1]
        if found is None:
            raise NotFoundError(f"no {selector} in {self._name}")
        return plain(found)

    def fetch_manifest(self, descriptor: Descriptor) -> Manifest:
        raw = self._blobs.read_small(descriptor)
        return Manifest.parse(raw, media_type=descriptor.media_type)

    def read_blob(self, descriptor: Descriptor, *, offset: int = 0) -> BlobStream:
        return self._blobs.read(descriptor.digest, offset=offset)

    def list_referrers(self, subject: Digest) -> list[Descriptor]:
        referrers: dict[Digest, Descriptor] = {}
        for _, descriptor in self._members():
            if descriptor.media_type in ACCEPTED_TYPES and descriptor.digest not in referrers:
                manifest = self._read_manifest(descriptor)
                if manifest and manifest.subject and manifest.subject.digest == subject:
                    referrers[descriptor.digest] = manifest.descriptor
        return list(referrers.values())

    def list_tags(self) -> list[str]:
        return sorted({tag for tag, _ in self._members() if tag})

    @property
    def _name(self) -> str:
        return str(self._root)

    def _members(self) -> Iterator[tuple[str | None, Descriptor]]:
        """Every manifest of this repository that the index names, with its tag."""
        index = self.index
        if self._repository is None:
            yield from ((entry.name or None, entry.descriptor) for entry in index.entries)
        else:
            yield from ((entry.tag, entry.descriptor) for entry in index.of_repository(self._repository))

    @property
    def index(self) -> Index:
        """All that the layout's index.json names, of every repository."""
        return Index.load(self._root / INDEX_FILE)

    def _find_child(self, digest: Digest, parents: list[Descriptor]) -> Descriptor | None:
        """A manifest that only an index names: other tools list in index.json what has a name."""
        seen: set[Digest] = set()
        while parents:
            parent = parents.pop()
            if parent.media_type not in INDEX_TYPES or parent.digest in seen:
                continue
            seen.add(parent.digest)
            manifest = self._read_manifest(parent)
            for child in manifest.manifests if manifest else ():
                if child.digest == digest and self._blobs.has(child):
                    return child
                parents.append(child)
        return None

    def _read_manifest(self, descriptor: Descriptor) -> Manifest | None:
        """A manifest to look into; None when it is missing or broken, which is for whoever asks for it to say."""
        try:
            return self.fetch_manifest(descriptor)
        except (NotFoundError, InvalidContentError, DigestMismatchError):
            return None
