"""What belongs to an artifact, and is copied with it: its manifests, what refers to them, and cosign's tags beside it.

Anybody may attach anything to an artifact, so of that only what has reasonable bounds comes along, and what cannot be
read, or lacks a part, hinders nobody.
"""

import logging
from collections.abc import Mapping, Set
from dataclasses import dataclass, field

from modelpack.errors import InvalidContentError, NotFoundError
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import Descriptor, Manifest
from modelpack.oci.target import Source, Target
from modelpack.signing import tagged
from modelpack.signing.signature import worth_copying

logger = logging.getLogger(__name__)

# cosign's tags beside an artifact (cosign, "Signature Specification": "Storing the signature").
_LEGACY_SUFFIXES = ("sig", "att")

# Bounds on what a hostile registry can make us fetch (cosign GHSA-88jx-383q-w4qc and others were endless lists).
_MAX_DEPTH = 6
_MAX_MANIFESTS = 5_000
_MAX_MANIFESTS_SIZE = 128 << 20  # all of them are in memory at once

# What refers to an artifact is anybody's to write, and it is copied before it is judged, or without ever being: it may
# weigh as much as the artifact, or this.
_MAX_REFERRERS_SIZE = 1 << 30
_MAX_REFERRER_MANIFESTS_SIZE = 32 << 20


@dataclass(slots=True)
class Graph:
    """What to copy, each once: manifests in an order in which every one comes after those that it names."""

    manifests: dict[Digest, Manifest] = field(default_factory=dict)
    referrers: dict[Digest, Manifest] = field(default_factory=dict)
    legacy_tags: dict[str, Manifest] = field(default_factory=dict)
    left: set[Digest] = field(default_factory=set)
    unreadable: set[Digest] = field(default_factory=set)
    """Referrers that are no manifests, or name some that are none."""
    room: int = 0
    """How many bytes more the referrers may have."""
    manifest_room: int = _MAX_REFERRER_MANIFESTS_SIZE
    """How many bytes more their manifests may have, which are in memory."""

    def make_room(self, manifests: Mapping[Digest, Manifest]) -> bool:
        """Whether these, which nobody has judged, may come along."""
        manifest_size = sum(len(one.raw) for one in manifests.values())
        size = manifest_size + sum(blob.size for one in manifests.values() for blob in one.blobs)
        if size > self.room or manifest_size > self.manifest_room:
            return False
        self.room -= size
        self.manifest_room -= manifest_size
        return True

    def expendable(self) -> set[Digest]:
        """The blobs that only what refers to the artifact needs."""
        needed = {blob.digest for manifest in self.manifests.values() for blob in manifest.blobs}
        return {blob.digest for blob in self.blobs()} - needed

    def leave_incomplete(self, absent: Set[Digest]) -> None:
        """What needs a blob that is nowhere stays behind: anybody may attach something and take a part of it away."""
        for digest, manifest in list(self.referrers.items()):
            needed = {one.digest for one in (*manifest.blobs, *manifest.manifests)}
            if needed & (absent | self.unreadable):
                self.unreadable.add(digest)
                del self.referrers[digest]
        for tag, manifest in list(self.legacy_tags.items()):
            if {blob.digest for blob in manifest.blobs} & absent:
                self.unreadable.add(manifest.digest)
                del self.legacy_tags[tag]

    def blobs(self) -> list[Descriptor]:
        unique: dict[Digest, Descriptor] = {}
        for manifest in (*self.manifests.values(), *self.referrers.values(), *self.legacy_tags.values()):
            for descriptor in manifest.blobs:
                unique.setdefault(descriptor.digest, descriptor)
        return list(unique.values())


def read_graph(source: Source, target: Target, descriptor: Descriptor, *, referrers: bool) -> Graph:
    """The graph of an artifact, as far as ``target`` lacks cosign's tags of it. Reads manifests, and no blobs.

    Raises InvalidContentError for an artifact without reasonable bounds, and what the source raises.
    """
    graph = Graph()
    _walk(source, descriptor, graph.manifests, depth=0)
    if referrers:
        graph.room = max(_MAX_REFERRERS_SIZE, sum(blob.size for blob in graph.blobs()))
        for digest in list(graph.manifests):
            _walk_referrers(source, digest, graph, depth=0)
            _find_legacy_tags(source, target, digest, graph)
    return graph


def _walk(source: Source, descriptor: Descriptor, found: dict[Digest, Manifest], *, depth: int) -> Manifest:
    if descriptor.digest in found:
        return found[descriptor.digest]
    _check_bounds(len(found), depth)
    manifest = source.fetch_manifest(descriptor)
    if sum(len(one.raw) for one in found.values()) + len(manifest.raw) > _MAX_MANIFESTS_SIZE:
        raise InvalidContentError(f"the manifests of the artifact have more than {_MAX_MANIFESTS_SIZE} bytes")
    for child in manifest.manifests:
        _walk(source, child, found, depth=depth + 1)
    found[descriptor.digest] = manifest
    return manifest


def _walk_referrers(source: Source, subject: Digest, graph: Graph, *, depth: int) -> None:
    advertised = source.list_referrers(subject)
    wanted = worth_copying(advertised)
    graph.left |= {claimed.digest for claimed in advertised} - {claimed.digest for claimed in wanted}
    for claimed in wanted:
        if claimed.digest in graph.referrers or claimed.digest in graph.manifests:
            continue
        if depth > _MAX_DEPTH or len(graph.referrers) >= _MAX_MANIFESTS:
            # As anybody may attach anything to anything, what goes on and on is no reason to fail either.
            graph.left.add(claimed.digest)
            continue
        try:
            manifest = source.fetch_manifest(claimed)
        except NotFoundError:
            # The fallback tag outlives what it lists when somebody deletes with another tool.
            logger.info("referrer %s of %s is listed but gone", claimed.digest, subject)
            continue
        except InvalidContentError as error:
            # Anybody may attach anything, and nobody's copy shall fail for it.
            logger.warning("referrer %s of %s is left behind: %s", claimed.digest, subject, error)
            graph.unreadable.add(claimed.digest)
            continue
        if manifest.subject is None or manifest.subject.digest != subject:
            logger.warning("%s is listed as a referrer of %s, but is none: left behind", claimed.digest, subject)
            continue
        found: dict[Digest, Manifest] = {}
        try:
            for child in manifest.manifests:
                _walk(source, child, found, depth=depth + 1)
        except (NotFoundError, InvalidContentError) as error:
            logger.warning("referrer %s of %s is left behind: %s", claimed.digest, subject, error)
            graph.unreadable.add(claimed.digest)
            continue
        found[claimed.digest] = manifest
        if graph.make_room(found):
            graph.referrers |= found
        else:
            graph.left.add(claimed.digest)
            continue
        _walk_referrers(source, claimed.digest, graph, depth=depth + 1)


def _find_legacy_tags(source: Source, target: Target, subject: Digest, graph: Graph) -> None:
    for suffix in _LEGACY_SUFFIXES:
        tag = f"sha256-{subject.hex}.{suffix}"
        manifest = tagged.mergeable_manifest(source, tag)
        if manifest is None:
            continue
        # The target may have been signed by others: what its tag says stays, and a tag that says all of this too.
        if tagged.missing_layers(manifest, tagged.mergeable_manifest(target, tag)):
            if graph.make_room({manifest.digest: manifest}):
                graph.legacy_tags[tag] = manifest
            else:
                graph.left.add(manifest.digest)


def _check_bounds(count: int, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise InvalidContentError(f"the artifact is nested deeper than {_MAX_DEPTH}")
    if count >= _MAX_MANIFESTS:
        raise InvalidContentError(f"the artifact has more than {_MAX_MANIFESTS} manifests")
