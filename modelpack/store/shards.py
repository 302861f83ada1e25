"""Shards of a model side by side: llama.cpp finds the others by the first one's name, and blobs have digests for names.

Links to the blobs, made when a model is first opened; they hold nothing and go when their blobs do.
"""

import contextlib
import hashlib
import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

from modelpack.atomic_file import disk_errors
from modelpack.gguf_shards import shard_name

_STEM = "model"


def side_by_side(directory: Path, blobs: Sequence[Path]) -> Path:
    """The first of the ``blobs``, which lie beside ``directory``, as ``model-00001-of-0000N.gguf`` with its siblings.

    What is there already is believed link by link: blobs are hashed, names are not. Raises InsufficientDiskError.
    """
    names = [shard_name(_STEM, number, len(blobs)) for number in range(1, len(blobs) + 1)]
    folder = directory / hashlib.sha256("".join(blob.name for blob in blobs).encode()).hexdigest()
    links = {name: os.path.relpath(blob, folder) for name, blob in zip(names, blobs, strict=True)}
    if not _holds(folder, links):
        _discard(folder)
        temporary = directory / f".{uuid.uuid4().hex}"
        try:
            with disk_errors(directory):
                temporary.mkdir(parents=True, mode=0o700)
                for name, target in links.items():
                    (temporary / name).symlink_to(target)
                temporary.rename(folder)
        except OSError:
            if not _holds(folder, links):  # else somebody was quicker
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder / names[0]


def forget_broken(directory: Path) -> None:
    """Remove what no model is behind any more: folders of which a blob is gone, and what killed processes left."""
    for folder in list(directory.iterdir()) if directory.is_dir() else ():
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            links = list(folder.iterdir())
            if not links or not all(link.exists() for link in links):
                _discard(folder)


def _holds(folder: Path, links: dict[str, str]) -> bool:
    try:
        return {link.name: str(link.readlink()) for link in folder.iterdir()} == links
    except OSError:
        return False


def _discard(folder: Path) -> None:
    """Under another name first, so that no half of it is ever found under its own."""
    doomed = folder.with_name(f".{uuid.uuid4().hex}")
    with contextlib.suppress(FileNotFoundError):
        folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)
