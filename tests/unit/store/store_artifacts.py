"""Artifacts small enough to read, put into a store as a build or a pull would."""

import contextlib
import os
import time

from modelpack.oci.digest import Digest
from modelpack.oci.manifest import EMPTY_CONFIG, EMPTY_JSON, EMPTY_TYPE, Descriptor, Manifest, image_manifest
from modelpack.oci.target import OpenBlob, write_whole
from modelpack.store import Store, StoreRepository

WEIGHT = "application/vnd.cncf.model.weight.v1.raw"


def opener(content: bytes, *, chunk: int = 1000) -> OpenBlob:
    """A source that streams ``content`` from any offset."""

    def open_blob(offset: int) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext(content[at : at + chunk] for at in range(offset, len(content), chunk))

    return open_blob


def put_model(
    repository: StoreRepository, weights: bytes, *, tag: str | None = None, subject: Descriptor | None = None
) -> Manifest:
    write_whole(repository, EMPTY_JSON, EMPTY_TYPE)
    layer = write_whole(repository, weights, WEIGHT)
    manifest = image_manifest(
        config=EMPTY_CONFIG, layers=[layer], artifact_type="application/vnd.test+json", subject=subject
    )
    repository.put_manifest(manifest, tag=tag)
    return manifest


def tags(store: Store) -> list[str]:
    return [str(stored.reference) for stored in store.list()]


def age(store: Store, digest: Digest, seconds: float) -> None:
    """Make a blob look as if it had been written long ago."""
    then = time.time() - seconds
    os.utime(store.blobs.path(digest), (then, then))


def age_all(store: Store, seconds: float = 86400) -> None:
    for digest, _ in store.blobs.all():
        age(store, digest, seconds)
