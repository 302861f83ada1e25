"""Blobs as files of a folder, under the names that a model gives them, without a second copy where that can be."""

import hashlib
import os
import uuid
from collections.abc import Mapping
from pathlib import Path

from modelpack.atomic_file import disk_errors, sync_directory
from modelpack.errors import InvalidInputError
from modelpack.oci.digest import Digest
from modelpack.store.blobs import Blobs
from modelpack.store.ingest import check_space, copy_contents, share_extents


def check_export(blobs: Blobs, files: Mapping[str, Digest], directory: Path) -> None:
    """Raises InvalidInputError where a file of another content, or one in place of a folder, is in the way."""
    nearest = next((place for place in (directory, *directory.parents) if _is_there(place)), None)
    if nearest is not None and not nearest.is_dir():
        raise InvalidInputError(f"{nearest} is not a folder")
    for name, digest in files.items():
        path = directory / name
        if _is_there(path) and not _holds(blobs, path, digest):
            raise InvalidInputError(f"{path} exists already, and is not what would be written there")


def export_files(blobs: Blobs, files: Mapping[str, Digest], directory: Path) -> tuple[Path, ...]:
    """Write blobs under safe flat names into ``directory``; returns the paths.

    Extents are shared where the file system can do that, else the file is a hard link (read-only, as the blob is), else
    a copy. Each appears whole or not at all. Raises InvalidInputError for a file in the way, InsufficientDiskError.
    """
    check_export(blobs, files, directory)
    directory.mkdir(parents=True, exist_ok=True)
    paths = tuple(directory / name for name in files)
    for path, digest in zip(paths, files.values(), strict=True):
        if not _is_there(path):
            _place(blobs.path(digest), path)
    sync_directory(directory)
    return paths


def _place(blob: Path, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with disk_errors(path), blob.open("rb") as source:
            with temporary.open("xb") as target:
                is_complete = share_extents(source.fileno(), target.fileno())
            if not is_complete:
                temporary.unlink()
                is_complete = _link(blob, temporary)
            if not is_complete:
                check_space(path.parent, blob.stat().st_size)
                with temporary.open("xb") as target:
                    copy_contents(source.fileno(), target.fileno())
                    os.fsync(target.fileno())
            temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def _link(blob: Path, path: Path) -> bool:
    try:
        path.hardlink_to(blob)
    except OSError:  # another file system, or one without links
        return False
    return True


def _holds(blobs: Blobs, path: Path, digest: Digest) -> bool:
    """Whether a file has a blob's content; a link to a blob that is here is seen without reading it."""
    if path.is_symlink() or not path.is_file():
        return False
    size = blobs.size(digest)
    if size is not None and path.stat().st_size != size:
        return False
    if size is not None and path.samefile(blobs.path(digest)):
        return True
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == digest.hex


def _is_there(path: Path) -> bool:
    return path.is_symlink() or path.exists()
