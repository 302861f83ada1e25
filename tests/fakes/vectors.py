"""A repository in memory, and one read from a directory of signing vectors: the far end for tests of trust.

It keeps the promises of a Target (checked manifests, unchecked blobs), and lets a test lie: ``advertised`` holds
referrers that were never asked for, ``blobs`` may hold anything under any digest.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from modelpack.errors import InvalidContentError, NotFoundError
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import IMAGE_MANIFEST, Descriptor, Manifest, image_manifest
from modelpack.oci.target import BlobStream, OpenBlob, write_whole


class MemoryRepository:
    def __init__(self) -> None:
        self.tags: dict[str, Digest] = {}
        self.manifests: dict[Digest, bytes] = {}
        self.blobs: dict[Digest, bytes] = {}
        self.advertised: list[Descriptor] = []
        self.reads: list[Digest] = []
        self.on_put: Callable[[Manifest, str | None], None] = lambda manifest, tag: None

    @classmethod
    def load(cls, directory: Path) -> "MemoryRepository":
        """A case of tests/data/signing: tags.json, manifests/<hex>.json, blobs/<hex>."""
        repository = cls()
        tags: dict[str, str] = json.loads((directory / "tags.json").read_text())
        repository.tags = {tag: Digest(digest) for tag, digest in tags.items()}
        for path in (directory / "manifests").iterdir():
            repository.manifests[Digest.from_hex(path.stem)] = path.read_bytes()
        for path in (directory / "blobs").iterdir():
            repository.blobs[Digest.from_hex(path.name)] = path.read_bytes()
        return repository

    # Source

    def resolve(self, selector: str) -> Descriptor:
        digest = Digest(selector) if selector.startswith("sha256:") else self.tags.get(selector)
        if digest is None or digest not in self.manifests:
            raise NotFoundError(f"no manifest {selector}")
        raw = self.manifests[digest]
        return Descriptor(json.loads(raw).get("mediaType", IMAGE_MANIFEST), digest, len(raw))

    def fetch_manifest(self, descriptor: Descriptor) -> Manifest:
        if descriptor.digest not in self.manifests:
            raise NotFoundError(f"no manifest {descriptor.digest}")
        return Manifest.parse(descriptor.check(self.manifests[descriptor.digest]), media_type=descriptor.media_type)

    def read_blob(self, descriptor: Descriptor, *, offset: int = 0) -> BlobStream:
        if descriptor.digest not in self.blobs:
            raise NotFoundError(f"no blob {descriptor.digest}")
        self.reads.append(descriptor.digest)
        content = self.blobs[descriptor.digest][offset:]
        chunks: Iterator[bytes] = (content[at : at + 65536] for at in range(0, len(content), 65536))
        return nullcontext(chunks)

    def list_referrers(self, subject: Digest) -> list[Descriptor]:
        fallback = self.tags.get(f"sha256-{subject.hex}")
        listed = list(self.fetch_manifest(self.resolve(str(fallback))).manifests) if fallback else []
        for raw in self.manifests.values():
            manifest = Manifest.parse(raw)
            if (
                manifest.subject
                and manifest.subject.digest == subject
                and manifest.digest not in [one.digest for one in listed]
            ):
                listed.append(manifest.descriptor)
        return listed + self.advertised

    def list_tags(self) -> list[str]:
        return sorted(self.tags)

    # Target

    def has_blob(self, descriptor: Descriptor) -> bool:
        return descriptor.digest in self.blobs

    def write_blob(
        self, descriptor: Descriptor, open_blob: OpenBlob, *, on_bytes: Callable[[int], None] = lambda _: None
    ) -> None:
        with open_blob(0) as chunks:
            content = b"".join(chunks)
        self.blobs[descriptor.digest] = descriptor.check(content)
        on_bytes(len(content))

    def put_manifest(self, manifest: Manifest, *, tag: str | None = None) -> Descriptor:
        for blob in manifest.blobs:
            if blob.digest not in self.blobs:
                raise InvalidContentError(f"blob {blob.digest} is missing")
        self.manifests[manifest.digest] = manifest.raw
        if tag:
            self.tags[tag] = manifest.digest
        self.on_put(manifest, tag)
        return manifest.descriptor

    # For tests

    def add_artifact(self, weights: bytes = b"GGUF weights", *, tag: str = "v1") -> Descriptor:
        """An artifact with one blob of weights; its descriptor as ``resolve`` gives it."""
        config = write_whole(self, b"{}", "application/vnd.cncf.model.config.v1+json")
        layer = write_whole(self, weights, "application/vnd.cncf.model.weight.v1.raw")
        self.put_manifest(image_manifest(config=config, layers=[layer]), tag=tag)
        return self.resolve(tag)

    def add_referrer(
        self, subject: Descriptor, content: bytes, media_type: str, *, artifact_type: str | None = None, **also: Any
    ) -> Descriptor:
        """A manifest about ``subject`` with one layer: how any tool hangs anything on an artifact."""
        config = write_whole(self, b"{}", also.get("config_type", "application/vnd.oci.empty.v1+json"))
        layer = write_whole(self, content, media_type)
        return self.put_manifest(
            image_manifest(config=config, layers=[layer], subject=subject, artifact_type=artifact_type)
        )
