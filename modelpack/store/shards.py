"""Shards of a model side by side: llama.cpp finds the others by the first one's name, and blobs have digests for names.

Links to the blobs, made when a model is first opened; they hold nothing and go when their blobs do.
"""

import hashlib
import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

from modelpack.gguf_shards import shard_name
from modelpack.store.ingest import disk_errors

_STEM = "model"


def side_by_side(directory: Path, blobs: Sequence[Path]) -> Path:
    """The first of the ``blobs``, which lie beside ``directory``, as ``model-00001-of-0000N.gguf`` with its siblings.

    Raises InsufficientDiskError.
    """
    name = hashlib.sha256("".join(blob.name for blob in blobs).encode()).hexdigest()
    folder, names = directory / name, [shard_name(_STEM, number, len(blobs)) for number in range(1, len(blobs) + 1)]
    if not folder.is_dir():
        # A folder that is there is complete: it gets its name last.
        temporary = directory / f".{uuid.uuid4().hex}"
        with disk_errors(directory):
            temporary.mkdir(parents=True, mode=0o700)
            for blob, link in zip(blobs, names, strict=True):
                (temporary / link).symlink_to(os.path.relpath(blob, temporary))
            try:
                temporary.rename(folder)
            except OSError:
                shutil.rmtree(temporary, ignore_errors=True)
                if not folder.is_dir():  # else somebody was quicker
                    raise
    return folder / names[0]


def forget_broken(directory: Path) -> None:
    """Remove the folders of which a blob is gone."""
    for folder in directory.iterdir() if directory.is_dir() else ():
        if not all(link.exists() for link in folder.iterdir()):
            shutil.rmtree(folder, ignore_errors=True)
