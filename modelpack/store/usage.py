"""How much of the disk the store takes, and for what."""

from dataclasses import dataclass
from pathlib import Path

from modelpack.oci.digest import Digest
from modelpack.oci.reference import Reference
from modelpack.store.blobs import Blobs
from modelpack.store.cleanup import Graph, disk_size, is_visible
from modelpack.store.index import Index


@dataclass(frozen=True, slots=True)
class ModelUsage:
    """What a tag takes on disk, in bytes: all it needs, and what would go with it."""

    reference: Reference
    size: int
    unique: int


@dataclass(frozen=True, slots=True)
class Usage:
    """What the store holds; sizes in bytes. ``unused`` is what a prune without grace would free of the blobs."""

    models: tuple[ModelUsage, ...]
    blobs: int
    size: int
    shared: int
    unused: int
    partials: int
    partial_size: int


def measure(graph: Graph, index: Index, blobs: Blobs, unfinished: list[Path]) -> Usage:
    """Count what is there. Nothing is hashed."""
    on_disk = {digest: status.st_size for digest, status in blobs.all()}
    contents = {
        entry.reference: [digest for digest in graph.content([entry.descriptor]) if digest in on_disk]
        for entry in index.entries
        if is_visible(entry) and entry.reference
    }
    users: dict[Digest, int] = {}
    for content in contents.values():
        for digest in content:
            users[digest] = users.get(digest, 0) + 1
    needed = graph.content(entry.descriptor for entry in index.entries)
    return Usage(
        models=tuple(
            ModelUsage(
                reference,
                size=sum(on_disk[digest] for digest in content),
                unique=sum(on_disk[digest] for digest in content if users[digest] == 1),
            )
            for reference, content in sorted(contents.items(), key=lambda item: str(item[0]))
        ),
        blobs=len(on_disk),
        size=sum(on_disk.values()),
        shared=sum(on_disk[digest] for digest, count in users.items() if count > 1),
        unused=sum(size for digest, size in on_disk.items() if digest not in needed),
        partials=len(unfinished),
        partial_size=sum(disk_size(path) for path in unfinished),
    )
