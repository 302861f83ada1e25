"""What a removal or a prune would take away: plans, computed from the index, the manifests and the file system."""

import contextlib
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from modelpack.errors import DigestMismatchError, InvalidContentError, NotFoundError
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import ACCEPTED_TYPES, Descriptor, Manifest
from modelpack.oci.reference import Reference
from modelpack.store import locks
from modelpack.store.blobs import Blobs
from modelpack.store.index import Entry, Index, attached_to

# The temporary names of ``atomic_file``: a dot, the name that was to be, and eight characters of tempfile's.
_LEFTOVER = re.compile(r"\.(oci-layout|index\.json|[0-9a-f]{64}(\.json)?)\.[a-z0-9_]{8}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Cleanup:
    """What is to go, or what went.

    ``tags`` are the references that a person would miss; ``entries`` all index entries, (name, digest), theirs
    included; ``blobs`` (digest, bytes); ``partials`` files and folders of transfers that nobody finished, with
    their bytes. ``broken`` says which manifests cannot be read: while there is one, no blob is pruned, since what
    it names is unknown.
    """

    tags: tuple[Reference, ...] = ()
    entries: tuple[tuple[str, Digest], ...] = ()
    blobs: tuple[tuple[Digest, int], ...] = ()
    partials: tuple[tuple[Path, int], ...] = ()
    broken: tuple[str, ...] = ()

    @property
    def freed(self) -> int:
        """Bytes on disk."""
        return sum(size for _, size in self.blobs) + sum(size for _, size in self.partials)


class Graph:
    """Which manifests and blobs the entries of an index hold together."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._manifests: dict[Digest, Manifest | None] = {}

    def manifest(self, descriptor: Descriptor) -> Manifest | None:
        """The manifest; None when it is missing, broken or of a type that we do not know."""
        if descriptor.digest not in self._manifests:
            self._manifests[descriptor.digest] = None
            if descriptor.media_type in ACCEPTED_TYPES:
                with contextlib.suppress(NotFoundError, InvalidContentError, DigestMismatchError):
                    raw = self._blobs.read_small(descriptor)
                    self._manifests[descriptor.digest] = Manifest.parse(raw, media_type=descriptor.media_type)
        return self._manifests[descriptor.digest]

    def content(self, descriptors: Iterable[Descriptor]) -> dict[Digest, int]:
        """All blobs that these hold, manifests included, there or not: digest and size in bytes."""
        return {descriptor.digest: descriptor.size for descriptor in self.closure(descriptors)}

    def closure(self, descriptors: Iterable[Descriptor]) -> Iterator[Descriptor]:
        """These, all manifests below them and the blobs of all, there or not, each once."""
        seen: set[Digest] = set()
        for descriptor in self.descend(descriptors):
            manifest = self.manifest(descriptor)
            for each in (descriptor, *(manifest.blobs if manifest else ())):
                if each.digest not in seen:
                    seen.add(each.digest)
                    yield each

    def descend(self, descriptors: Iterable[Descriptor]) -> Iterator[Descriptor]:
        """These and, through indexes, all below them, each once."""
        seen: set[Digest] = set()
        rest = list(descriptors)
        while rest:
            descriptor = rest.pop()
            if descriptor.digest in seen:
                continue
            seen.add(descriptor.digest)
            yield descriptor
            manifest = self.manifest(descriptor)
            if manifest:
                rest.extend(manifest.manifests)

    def subject(self, entry: Entry) -> Digest | None:
        """What the entry's manifest is attached to, by its subject or by its tag."""
        manifest = self.manifest(entry.descriptor)
        if manifest and manifest.subject:
            return manifest.subject.digest
        return _attached(entry)

    def family(self, index: Index, roots: Iterable[Digest]) -> set[Digest]:
        """The roots, all below them, and all that is attached to any of these, directly or not."""
        family: set[Digest] = set()
        attached: dict[Digest, list[Digest]] = {}
        known: dict[Digest, Descriptor] = {}
        for entry in index.entries:
            known.setdefault(entry.descriptor.digest, entry.descriptor)
            if subject := self.subject(entry):
                attached.setdefault(subject, []).append(entry.descriptor.digest)
        rest = list(roots)
        while rest:
            digest = rest.pop()
            if digest in family:
                continue
            family.add(digest)
            rest.extend(attached.get(digest, ()))
            descriptor = known.get(digest)
            manifest = self.manifest(descriptor) if descriptor else None
            for child in manifest.manifests if manifest else ():
                known.setdefault(child.digest, child)
                rest.append(child.digest)
        return family


def _attached(entry: Entry) -> Digest | None:
    attached = attached_to(entry.tag)
    return Digest.from_hex(attached) if attached else None


def plan_removal(graph: Graph, index: Index, blobs: Blobs, repository: str, doomed: tuple[Entry, ...]) -> Cleanup:
    """Take ``doomed`` out of ``repository``, with all that only they keep there: the manifests below them, and what
    is attached to these (signatures, reports). Blobs go when no entry of the whole store needs them.
    """
    names = {entry.name for entry in doomed}
    own = Index(index.of_repository(repository))
    gone = graph.family(own, {entry.descriptor.digest for entry in doomed})
    staying = Index(tuple(entry for entry in own.entries if entry.name not in names))
    keepers = [
        entry.descriptor.digest
        for entry in staying.entries
        # A tag keeps what it names. So does a manifest that came by its digest, unless it hangs on what goes.
        if (entry.tag and not attached_to(entry.tag)) or entry.descriptor.digest not in gone
    ]
    left = gone - graph.family(staying, keepers)
    # What several are attached by the same bytes (a signature's, or what two packings unpack to) goes tag by tag.
    leaving = tuple(
        entry
        for entry in own.entries
        if entry.name in names or entry.descriptor.digest in left or _attached(entry) in left
    )
    leaving_names = {entry.name for entry in leaving}
    rest = index.without(lambda entry: entry.name in leaving_names)
    needed = graph.content(entry.descriptor for entry in rest.entries)
    freed = graph.content(entry.descriptor for entry in leaving)
    return Cleanup(
        tags=tuple(entry.reference for entry in leaving if is_visible(entry) and entry.reference),
        entries=tuple((entry.name, entry.descriptor.digest) for entry in leaving),
        blobs=tuple(
            sorted(
                (digest, size)
                for digest, size in freed.items()
                if digest not in needed and blobs.size(digest) is not None
            )
        ),
    )


def plan_forget(graph: Graph, index: Index, blobs: Blobs, doomed: Iterable[Entry]) -> Cleanup:
    """Take entries with tags out of their repositories, as ``plan_removal`` does; what they free is for a prune."""
    by_repository: dict[str, list[Entry]] = {}
    for entry in doomed:
        if entry.reference:
            by_repository.setdefault(entry.reference.name, []).append(entry)
    plans = [plan_removal(graph, index, blobs, name, tuple(entries)) for name, entries in by_repository.items()]
    return Cleanup(
        tags=tuple(tag for plan in plans for tag in plan.tags),
        entries=tuple(entry for plan in plans for entry in plan.entries),
    )


def plan_prune(graph: Graph, index: Index, blobs: Blobs, *, held: set[Digest], young_since: float) -> Cleanup:
    """The entries and blobs that no tag needs.

    What ``held`` names or was written after ``young_since`` (seconds since the epoch) stays: somebody may be at it.
    """
    stale = {digest: status.st_size for digest, status in blobs.all() if status.st_mtime < young_since}
    roots = {
        entry.descriptor.digest
        for entry in index.entries
        # A name that is no reference of ours was put there by another tool, for a reason of its own.
        if entry.tag or entry.reference is None or entry.descriptor.digest in held
        or (blobs.size(entry.descriptor.digest) is not None and entry.descriptor.digest not in stale)
    }  # fmt: skip
    alive = graph.family(index, roots)
    leaving = tuple(
        (entry.name, entry.descriptor.digest) for entry in index.entries if entry.descriptor.digest not in alive
    )
    staying = [entry.descriptor for entry in index.entries if entry.descriptor.digest in alive]
    needed = graph.content(staying)
    broken = tuple(entry.name for entry in index.entries if graph.manifest(entry.descriptor) is None)
    if broken:
        return Cleanup(entries=leaving, broken=broken)
    unused = tuple(sorted((d, size) for d, size in stale.items() if d not in needed and d not in held))
    return Cleanup(entries=leaving, blobs=unused)


def is_visible(entry: Entry) -> bool:
    """Whether a person gave this name: a tag that is not the one of a signature or a referrers list."""
    return entry.tag is not None and attached_to(entry.tag) is None


def is_leftover(path: Path) -> bool:
    """Whether a file is what a process that was killed left of an atomic write of ours."""
    return _LEFTOVER.fullmatch(path.name) is not None


def idle_partials(paths: Iterable[Path], *, older_than: float) -> tuple[tuple[Path, int], ...]:
    """Those of ``paths`` that nobody has in use and that were last written before ``older_than`` (seconds since the
    epoch), with their bytes on disk.
    """
    idle = []
    for path in sorted(paths):
        with locks.attempt(_lock_of(path)) as is_idle, contextlib.suppress(FileNotFoundError):
            if is_idle and path.lstat().st_mtime <= older_than:
                idle.append((path, disk_size(path)))
    return tuple(idle)


def discard_partial(path: Path) -> bool:
    """Remove what nobody has in use; returns whether that was so."""
    with locks.attempt(_lock_of(path)) as is_idle:
        if is_idle:
            # The lock's file goes while it is locked: whoever waits for it notices, and makes a new one.
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        return is_idle


def _lock_of(partial: Path) -> Path:
    """What is locked while a partial file is in use: itself, but the file that it speaks of for a journal."""
    subject = partial.with_suffix("")
    return subject if partial.suffix == ".journal" and subject.exists() else partial


def disk_size(path: Path) -> int:
    """Bytes that a file or everything below a folder takes on disk (a partial file may have holes)."""
    try:
        status = path.lstat()
        below = sum(disk_size(child) for child in path.iterdir()) if path.is_dir() and not path.is_symlink() else 0
    except FileNotFoundError:
        return 0
    return status.st_blocks * 512 + below
