"""OCI image layouts in a tar file (``oci-archive:``), as skopeo and podman write them, and bundles: the same with full
references for names, signatures beside what they sign, and the public keys of whoever made it, for a person to compare.

Read in place, blob by blob, and written in one pass: there is never a second copy of the weights on disk. The same
artifacts give the same bytes.
"""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from modelpack import tar
from modelpack.atomic_file import sync_directory
from modelpack.errors import (
    DigestMismatchError,
    InvalidContentError,
    InvalidInputError,
    NotFoundError,
)
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import Descriptor, Manifest
from modelpack.oci.reference import Reference
from modelpack.oci.target import BlobStream, OpenBlob
from modelpack.progress import SILENT, Progress, Step
from modelpack.regular_file import open_regular
from modelpack.store import check_space, disk_errors
from modelpack.store.blobs import CHUNK_SIZE, Blobs
from modelpack.store.index import Entry, Index, attached_to
from modelpack.store.layout import INDEX_FILE, LAYOUT, LAYOUT_FILE, MAX_LAYOUT_FILE, LayoutRepository, check_version
from modelpack.store.layout_target import entries_with

_BLOBS = "blobs/sha256/"
_MAX_INDEX = 64 << 20
_PACKED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}


class Archive:
    """A layout in a tar file, open for reading. Nothing in it is believed: who reads a blob hashes it."""

    def __init__(self, path: Path, members: dict[str, tar.Member]) -> None:
        """Use ``Archive.open``."""
        self.path = path
        self._members = members
        self._blobs = _ArchivedBlobs(path, members)
        check_version(self._read_small(LAYOUT_FILE, MAX_LAYOUT_FILE), path)
        self.index = Index.parse(self._read_small(INDEX_FILE, _MAX_INDEX), path / INDEX_FILE)

    @classmethod
    def open(cls, path: Path) -> "Archive":
        """Look through the headers of a tar file.

        Raises NotFoundError, InvalidContentError for what is no image layout, ends too early, names a file twice or
        outside its folder, or holds links and devices; UnsupportedError never: a packed archive is InvalidInputError.
        """
        members: dict[str, tar.Member] = {}
        with open_regular(path) as file:
            stream = _FileStream(file)
            _refuse_packed(file, path)
            for member in tar.read_members(stream):
                if member.kind not in (tar.Kind.FILE, tar.Kind.FOLDER):
                    raise InvalidContentError(f"{path}: {member.name!r:.120} is neither a file nor a folder")
                if member.kind is tar.Kind.FILE and members.setdefault(member.name, member) is not member:
                    raise InvalidContentError(f"{path} holds {member.name!r:.120} twice")
        if LAYOUT_FILE not in members or INDEX_FILE not in members:
            raise InvalidContentError(f"{path} is no OCI image layout: it lacks {LAYOUT_FILE} or {INDEX_FILE}")
        return cls(path, members)

    @property
    def references(self) -> list[Reference]:
        """What a bundle was made of, by the full references in its index; empty for an archive with bare tags."""
        return [
            entry.reference
            for entry in self.index.entries
            if entry.reference and (":" in entry.name) and not self._is_attached(entry)
        ]

    def _is_attached(self, entry: Entry) -> bool:
        if entry.tag is not None:
            return attached_to(entry.tag) is not None
        return self.repository().fetch_manifest(entry.descriptor).subject is not None

    def repository(self, name: str | None = None) -> LayoutRepository:
        """One repository of a bundle; without a name, the archive as one, with the names in its index for tags."""
        return _ArchivedRepository(self, name, self._blobs)

    def _read_small(self, name: str, limit: int) -> bytes:
        member = self._members[name]
        if member.size > limit:
            raise InvalidContentError(f"{self.path}: {name} has {member.size} bytes, more than {limit}")
        with open_regular(self.path) as file:
            file.seek(member.offset)
            return file.read(member.size)


class _ArchivedRepository(LayoutRepository):
    def __init__(self, archive: Archive, repository: str | None, blobs: Blobs) -> None:
        super().__init__(archive.path, repository=repository, blobs=blobs)
        self._archive = archive

    @property
    def index(self) -> Index:
        return self._archive.index


class _ArchivedBlobs(Blobs):
    """``blobs/sha256`` inside a tar file."""

    def __init__(self, path: Path, members: dict[str, tar.Member]) -> None:
        super().__init__(path)
        self._archive = path
        self._members = members

    def size(self, digest: Digest) -> int | None:
        member = self._members.get(_BLOBS + digest.hex)
        return member.size if member else None

    @contextlib.contextmanager
    def read(self, digest: Digest, *, offset: int = 0) -> Iterator[Iterator[bytes]]:
        member = self._members.get(_BLOBS + digest.hex)
        if member is None:
            raise NotFoundError(f"no blob {digest} in {self._archive}")
        with open_regular(self._archive) as file:
            file.seek(member.offset + offset)
            yield _read(file, max(0, member.size - offset))


class ArchiveBuilder:
    """Collects what an archive shall hold, then writes it. Blobs are read when they are written, and not before."""

    def __init__(self) -> None:
        self._repositories: dict[str | None, ArchiveTarget] = {}
        self._files: dict[str, bytes] = {}

    def repository(self, name: str | None = None) -> "ArchiveTarget":
        """A Target for one repository of a bundle; without a name, for an archive with bare tags."""
        return self._repositories.setdefault(name, ArchiveTarget(name))

    def add_file(self, name: str, content: bytes) -> None:
        """A file beside the layout, for a person to read."""
        self._files[name] = content

    def write(self, path: Path, *, progress: Progress = SILENT) -> int:
        """Write the archive; whole or not at all. Returns its size in bytes.

        Raises DigestMismatchError when a source does not give what it promised, InsufficientDiskError, and
        InvalidInputError where a folder has that name.
        """
        if path.is_dir():
            raise InvalidInputError(f"{path} is a folder, not a file")
        blobs: dict[str, tuple[Descriptor, OpenBlob]] = {}
        entries: list[Entry] = []
        for target in self._repositories.values():
            entries += target.entries()
            blobs |= {_BLOBS + blob.digest.hex: (blob, opened) for blob, opened in target.contents()}
        index = Index(tuple(sorted(entries, key=lambda entry: (entry.name, entry.descriptor.digest))))
        first = {LAYOUT_FILE: LAYOUT, INDEX_FILE: index.encode()}
        total = sum(blob.size for blob, _ in blobs.values())
        path.parent.mkdir(parents=True, exist_ok=True)
        check_space(path.parent, total)
        with _replacing(path) as file, progress.step(f"writing {path.name}", total=total) as step:
            for name, content in (*first.items(), *sorted(self._files.items())):
                _write(file, tar.write_file(name, len(content), contextlib.nullcontext(iter([content]))))
            for name, (blob, open_blob) in sorted(blobs.items()):
                _write(file, tar.write_file(name, blob.size, _checked(blob, open_blob, step)))
            file.write(tar.END)
            return file.tell()


class ArchiveTarget:
    """One repository of an archive that is being made; implements Target."""

    def __init__(self, name: str | None) -> None:
        self._name = name
        self._index = Index()
        self._manifests: dict[Digest, Manifest] = {}
        self._blobs: dict[Digest, tuple[Descriptor, OpenBlob]] = {}

    def resolve(self, selector: str) -> Descriptor:
        for entry in self._index.entries:
            if selector in (entry.name, str(entry.descriptor.digest)):
                return self._manifests[entry.descriptor.digest].descriptor
        raise NotFoundError(f"no {selector} in the archive")

    def fetch_manifest(self, descriptor: Descriptor) -> Manifest:
        if descriptor.digest not in self._manifests:
            raise NotFoundError(f"no {descriptor.digest} in the archive")
        return self._manifests[descriptor.digest]

    def read_blob(self, descriptor: Descriptor, *, offset: int = 0) -> BlobStream:
        if descriptor.digest not in self._blobs:
            raise NotFoundError(f"no {descriptor.digest} in the archive")
        return self._blobs[descriptor.digest][1](offset)

    def list_referrers(self, subject: Digest) -> list[Descriptor]:
        return [
            manifest.descriptor
            for manifest in self._manifests.values()
            if manifest.subject and manifest.subject.digest == subject
        ]

    def list_tags(self) -> list[str]:
        return sorted(entry.name for entry in self._index.entries if entry.name)

    def has_blob(self, descriptor: Descriptor) -> bool:
        return descriptor.digest in self._blobs

    def write_blob(
        self,
        descriptor: Descriptor,
        open_blob: OpenBlob,
        *,
        on_bytes: Callable[[int], None] = lambda _: None,  # noqa: ARG002  # it is the archive's writing that takes time
    ) -> None:
        self._blobs[descriptor.digest] = (descriptor, open_blob)

    def put_manifest(self, manifest: Manifest, *, tag: str | None = None) -> Descriptor:
        missing = next((blob for blob in manifest.blobs if blob.digest not in self._blobs), None)
        missing = missing or next((one for one in manifest.manifests if one.digest not in self._manifests), None)
        if missing:
            raise InvalidContentError(f"manifest {manifest.digest} names {missing.digest}, which is not in the archive")
        self._manifests[manifest.digest] = manifest
        self._index = entries_with(self._index, manifest, tag)
        return manifest.descriptor

    def entries(self) -> Iterator[Entry]:
        """What the index of the archive says of this repository: full references where it has a name."""
        for entry in self._index.entries:
            if self._name is None:
                yield entry
            else:
                name = f"{self._name}:{entry.name}" if entry.name else f"{self._name}@{entry.descriptor.digest}"
                yield from Index().with_entry(name, entry.descriptor).entries

    def contents(self) -> Iterator[tuple[Descriptor, OpenBlob]]:
        yield from self._blobs.values()
        for manifest in self._manifests.values():
            yield manifest.descriptor, _opener(manifest.raw)


class _FileStream:
    """A tar Stream over a file that skips by seeking."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        self.position = 0

    def read(self, amount: int) -> bytes:
        self._file.seek(self.position)
        chunk = self._file.read(amount)
        self.position += len(chunk)
        return chunk

    def skip(self, amount: int) -> None:
        self.position += amount
        if self.position > self._size:
            raise InvalidContentError("the archive ends too early")


def _refuse_packed(file: BinaryIO, path: Path) -> None:
    begin = file.read(6)
    for magic, name in _PACKED.items():
        if begin.startswith(magic):
            raise InvalidInputError(f"{path} is packed with {name}: unpack it first, archives are read in place")


def _read(file: BinaryIO, amount: int) -> Iterator[bytes]:
    while amount:
        chunk = file.read(min(amount, CHUNK_SIZE))
        if not chunk:
            return  # whoever wanted these bytes counts them
        amount -= len(chunk)
        yield chunk


def _opener(content: bytes) -> OpenBlob:
    return lambda offset: contextlib.nullcontext(iter([content[offset:]]))


@contextlib.contextmanager
def _checked(descriptor: Descriptor, open_blob: OpenBlob, step: Step) -> Iterator[Iterator[bytes]]:
    with open_blob(0) as chunks:
        yield _hashed(descriptor, chunks, step)


def _hashed(descriptor: Descriptor, chunks: Iterator[bytes], step: Step) -> Iterator[bytes]:
    hasher, size = hashlib.sha256(), 0
    for chunk in chunks:
        size += len(chunk)
        if size > descriptor.size:
            break
        hasher.update(chunk)
        step.advance(len(chunk))
        yield chunk
    if size != descriptor.size or hasher.hexdigest() != descriptor.digest.hex:
        raise DigestMismatchError(f"{descriptor.digest} is not what its source promised")


def _write(file: BinaryIO, chunks: Iterator[bytes]) -> None:
    for chunk in chunks:
        file.write(chunk)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file in place of ``path``, when all went well."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with disk_errors(path), os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        Path(temporary).rename(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_directory(path.parent)
