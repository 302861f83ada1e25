"""The local store: an OCI image layout that many processes share.

Beside the layout's own files (``oci-layout``, ``index.json``, ``blobs``) lie ``partial`` (what is not finished),
``locks`` (the store's lock and the leases), ``receipts`` (what was verified), ``builds`` (how it was built here),
``cached`` (what a proxy put there) and ``shards`` (links).
Any tool that reads image layouts reads it: ``skopeo inspect oci:ROOT:registry/repository:tag``.
"""

import contextlib
import logging
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from modelpack.atomic_file import write_atomically
from modelpack.errors import (
    AccessDeniedError,
    InvalidContentError,
    InvalidInputError,
    MalformedReferenceError,
    NotFoundError,
)
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import Descriptor
from modelpack.oci.reference import DEFAULT_TAG, Reference
from modelpack.progress import SILENT, Progress
from modelpack.store import locks, shards
from modelpack.store.blobs import Blobs
from modelpack.store.cached import CachedTags
from modelpack.store.cleanup import (
    Cleanup,
    Graph,
    discard_partial,
    idle_partials,
    is_leftover,
    is_visible,
    plan_forget,
    plan_prune,
    plan_removal,
)
from modelpack.store.index import Entry, Index, IndexFile, plain
from modelpack.store.ingest import Ingest
from modelpack.store.layout import INDEX_FILE, LAYOUT, LAYOUT_FILE, check_layout
from modelpack.store.leases import Lease, held_digests
from modelpack.store.memory import Memory
from modelpack.store.notes import Notes
from modelpack.store.pushes import PushNote, push_note
from modelpack.store.repository import StoreRepository
from modelpack.store.usage import Usage, measure

_log = logging.getLogger(__name__)

GRACE = timedelta(hours=1)
"""How young a blob must be for a prune to leave it alone."""
PARTIAL_AGE = timedelta(days=7)
"""How long what an interrupted transfer left is kept for the next try."""

SHARDS = "shards"

_DIGEST_PREFIX = re.compile(r"[0-9a-f]{7,64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class StoredTag:
    """A tag of the store. ``reference`` has a repository and a tag, or a digest where there is no tag."""

    reference: Reference
    descriptor: Descriptor


class Store:
    """The local store at ``root``. Safe to share between threads and processes."""

    def __init__(self, root: Path) -> None:
        """Use ``Store.open``."""
        self.root = root
        self.blobs = Blobs(root)
        self.partials = root / "partial"
        self.ingest = Ingest(self.blobs, self.partials)
        self._locks = root / "locks"
        self._receipts = Notes(root / "receipts", "receipt")
        self._builds = Notes(root / "builds", "build record")
        self._notes = (self._receipts, self._builds)
        self.cached = CachedTags(root / "cached")
        self.note_folders = (*(notes.directory for notes in self._notes), self.cached.directory)
        self._lease = Lease(self._locks)
        self.memory = Memory(root / "memory.json", self._locks / "memory")
        self._index = IndexFile(root / INDEX_FILE)

    @classmethod
    def open(cls, root: Path) -> "Store":
        """Open the store at ``root``, made if missing, for its owner alone (mode 0700).

        Raises AccessDeniedError when the folder is another user's or everyone may write into it, InvalidInputError
        when it holds something else, InvalidContentError when it is a layout of another version.
        """
        root = root.absolute()
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_owner(root)
            if not (root / LAYOUT_FILE).exists():
                foreign = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))
                # Two processes may open a new store at once: the other's layout file can be here by now.
                if foreign and not (root / LAYOUT_FILE).exists():
                    raise InvalidInputError(f"{root} is no store and is not empty: it holds {foreign[0]}")
                write_atomically(root / LAYOUT_FILE, LAYOUT)
            check_layout(root)
            store = cls(root)
            for folder in (store.blobs.directory, store.partials, store._locks, *store.note_folders):
                with store._unless_read_only():
                    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if store._is_new():
                with store.locked():
                    if store._is_new():
                        Index().save(root / INDEX_FILE)
        except FileExistsError as error:
            raise InvalidInputError(f"{root} is not a folder") from error
        except PermissionError as error:
            raise AccessDeniedError(f"cannot use the store {root}: {error.strerror}: {error.filename}") from error
        return store

    # What is there

    def repository(self, name: str) -> StoreRepository:
        """The repository of a name, ``[registry/]repository``. Raises MalformedReferenceError."""
        reference = Reference.parse(name)
        if reference.tag or reference.digest:
            raise MalformedReferenceError(f"{name!r} names more than a repository")
        return StoreRepository(self, reference.name)

    def list(self) -> list[StoredTag]:
        """The tags that people gave, sorted; not those of signatures and referrers lists."""
        tags = (
            StoredTag(entry.reference, plain(entry.descriptor))
            for entry in self.read_index().entries
            if is_visible(entry) and entry.reference
        )
        return sorted(tags, key=lambda stored: str(stored.reference))

    def find(self, reference: Reference) -> StoredTag:
        """What a person means by a reference; the answer's reference has the repository's full name.

        In this order: the name as it is; for a short name, the repositories that end in it; for seven or more
        hexadecimal digits, the digests that begin with them. Raises NotFoundError, and InvalidInputError where
        several different artifacts are meant.
        """
        if not (reference.tag or reference.digest):
            by_digest = tuple(self._find_by_prefix(reference.repository)) if not reference.registry else ()
            reference = reference.with_tag(DEFAULT_TAG)
        else:
            by_digest = ()
        with contextlib.suppress(NotFoundError):
            return StoredTag(reference, self.repository(reference.name).resolve(reference.selector))
        candidates = (() if reference.registry else tuple(self._find_by_suffix(reference))) or by_digest
        if not candidates:
            raise NotFoundError(f"no {reference} in the store")
        if len({stored.descriptor.digest for stored in candidates}) > 1:
            names = ", ".join(str(stored.reference) for stored in candidates)
            raise InvalidInputError(f"{reference} may mean any of {names}")
        return candidates[0]

    def blob_path(self, blob: Descriptor | Digest) -> Path:
        """The file that holds a blob, to be read in place and never written. Raises NotFoundError."""
        digest = blob.digest if isinstance(blob, Descriptor) else blob
        if self.blobs.size(digest) is None:
            raise NotFoundError(f"no blob {digest} in the store")
        return self.blobs.path(digest)

    def weights_path(self, blobs: Sequence[Digest]) -> Path:
        """The one blob, or the first of several shards, in order, side by side under names that llama.cpp understands.

        Raises NotFoundError, InsufficientDiskError, AccessDeniedError where the links would have to be made first.
        """
        paths = [self.blob_path(blob) for blob in blobs]
        if len(paths) == 1:
            return paths[0]
        try:
            return shards.side_by_side(self.root / SHARDS, paths)
        except OSError as error:
            if error.errno not in locks.READ_ONLY:
                raise
            raise AccessDeniedError(
                f"the store {self.root} cannot be written to, and a model of several files needs links in it first"
            ) from error

    def rehash(
        self,
        descriptor: Descriptor,
        *,
        progress: Progress = SILENT,
        on_bytes: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Read every byte of a blob again. Raises NotFoundError, DigestMismatchError, and what ``on_bytes`` raises."""
        with progress.step(f"checking {descriptor.digest.short}", total=descriptor.size) as step:

            def tell(count: int) -> None:
                on_bytes(count)
                step.advance(count)

            self.blobs.check(descriptor, on_bytes=tell)

    # Bringing things in

    def import_file(
        self,
        path: Path,
        media_type: str,
        *,
        adopt: bool = False,
        digest: Digest | None = None,
        on_bytes: Callable[[int], None] = lambda _: None,
    ) -> Descriptor:
        """Store a file as a blob: its extents shared where the file system can, else a copy.

        With ``adopt`` the file itself moves into the store, for files that were made to go there (``workspace``). Where
        the caller hashed one while writing it, ``digest`` says what came of it, and it is not read again.
        ``on_bytes`` hears of the bytes as they are hashed. The blob is held until this process ends or puts a
        manifest that names it. Raises NotFoundError, InvalidInputError, InsufficientDiskError.
        """
        return self.ingest.import_file(
            path, media_type, adopt=adopt, digest=digest, on_digest=self.hold, on_bytes=on_bytes
        )

    def write_small(self, content: bytes, media_type: str) -> Descriptor:
        """Store a small blob from memory."""
        self.hold(Digest.of(content))
        return self.ingest.write_small(content, media_type)

    @contextlib.contextmanager
    def workspace(self) -> Iterator[Path]:
        """An empty folder on the store's file system for work in progress; gone afterwards, with all in it."""
        folder = self.partials / f"work-{uuid.uuid4().hex}"
        folder.mkdir(mode=0o700)
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            locks.hold(descriptor)
            yield folder
        finally:
            os.close(descriptor)
            shutil.rmtree(folder, ignore_errors=True)

    def push_note(self, name: str) -> contextlib.AbstractContextManager[PushNote | None]:
        """What is known of an upload to a registry; the contract is that of ``pushes.push_note``."""
        return push_note(self.partials, name)

    def tag(self, source: Reference, target: Reference) -> StoredTag:
        """Give what ``source`` names another name; in another repository, with all that belongs to it there.

        Raises NotFoundError, MalformedReferenceError when ``target`` has a digest.
        """
        if target.digest:
            raise MalformedReferenceError(f"{target} has a digest, which no tag can give it")
        target = target.with_tag(target.tag or DEFAULT_TAG)
        found = self.find(source)
        origin, destination = self.repository(found.reference.name), self.repository(target.name)

        def change(index: Index) -> Index:
            family = origin.family(index, found.descriptor.digest) if origin.name != destination.name else ()
            for tag, descriptor in family:
                index = destination.with_manifest(index, descriptor, tag)
            return destination.with_manifest(index, found.descriptor, target.tag)

        self.update_index(change)
        return StoredTag(target, found.descriptor)

    # Taking things away

    def plan_remove(self, reference: Reference) -> Cleanup:
        """What ``remove`` would take away. Raises NotFoundError."""
        found = self.find(reference)
        index = self.read_index()
        doomed = tuple(
            entry
            for entry in index.entries
            if entry.reference
            and entry.reference.name == found.reference.name
            and (
                entry.descriptor.digest == found.descriptor.digest
                if found.reference.digest
                else entry.tag == found.reference.selector
            )
        )
        return plan_removal(Graph(self.blobs), index, self.blobs, found.reference.name, doomed)

    def remove(self, reference: Reference) -> Cleanup:
        """Take away a tag or, where the reference has a digest, all tags of it; then the manifests, signatures and
        blobs that nothing else needs. Raises NotFoundError.
        """
        return self.carry_out(self.plan_remove(reference))

    def plan_prune(
        self,
        *,
        grace: timedelta = GRACE,
        partial_age: timedelta = PARTIAL_AGE,
        cached_age: timedelta | None = None,
    ) -> Cleanup:
        """What ``prune`` would take away: what no tag needs, and what interrupted transfers left long ago; with
        ``cached_age`` also the tags that only a proxy put there, and that nobody has asked for in that time.

        What is younger than ``grace``, or held by a running process, is left alone.
        """
        now = time.time()
        with self.locked():
            held = held_digests(self._locks)
        graph, index = Graph(self.blobs), self.read_index()
        idle = () if cached_age is None else self._idle_cached(index, older_than=now - cached_age.total_seconds())
        forgotten = plan_forget(graph, index, self.blobs, idle)
        names = {name for name, _ in forgotten.entries}
        plan = plan_prune(
            graph,
            index.without(lambda entry: entry.name in names),
            self.blobs,
            held=held,
            young_since=now - grace.total_seconds(),
        )
        partials = idle_partials(self._unfinished(), older_than=now - partial_age.total_seconds())
        return replace(plan, tags=forgotten.tags, entries=(*forgotten.entries, *plan.entries), partials=partials)

    def prune(
        self,
        *,
        grace: timedelta = GRACE,
        partial_age: timedelta = PARTIAL_AGE,
        cached_age: timedelta | None = None,
    ) -> Cleanup:
        """Free what nothing needs; of what is tagged only what ``cached_age`` says."""
        return self.carry_out(self.plan_prune(grace=grace, partial_age=partial_age, cached_age=cached_age))

    def _idle_cached(self, index: Index, *, older_than: float) -> tuple[Entry, ...]:
        """What a proxy put under tags that nobody asked for since, and that no person pulled or built as well."""
        idle = set(self.cached.idle(older_than=older_than))
        return tuple(
            entry
            for entry in index.entries
            if (entry.name, str(entry.descriptor.digest)) in idle
            and not any(notes.read(entry.descriptor.digest) for notes in self._notes)
        )

    def carry_out(self, plan: Cleanup) -> Cleanup:
        """Do what a plan says, as far as it still holds; returns what went."""
        planned = dict(plan.entries)
        with self.locked():
            index = self.read_index()
            rest = index.without(lambda entry: planned.get(entry.name) == entry.descriptor.digest)
            names = {entry.name for entry in index.entries} - {entry.name for entry in rest.entries}
            if names:
                rest.save(self.root / INDEX_FILE)
            needed = Graph(self.blobs).content(entry.descriptor for entry in rest.entries)
            held = held_digests(self._locks)
            blobs = tuple(blob for blob in plan.blobs if blob[0] not in needed and blob[0] not in held)
            for digest, _ in blobs:
                self.blobs.path(digest).unlink(missing_ok=True)
                for notes in self._notes:
                    notes.discard(digest)
            for name in names:
                self.cached.forget(name)
            if blobs:
                shards.forget_broken(self.root / SHARDS)
            partials = tuple(partial for partial in plan.partials if discard_partial(partial[0]))
        return replace(
            plan,
            tags=tuple(tag for tag in plan.tags if str(tag) in names),
            entries=tuple(entry for entry in plan.entries if entry[0] in names),
            blobs=blobs,
            partials=partials,
        )

    def usage(self) -> Usage:
        """How much the store holds, shared and unique."""
        return measure(Graph(self.blobs), self.read_index(), self.blobs, list(self._unfinished()))

    # Notes about a manifest, kept until it goes: what was verified, under which rule and when; how it was built

    def receipt(self, digest: Digest) -> dict[str, Any] | None:
        """What was kept about a manifest; None when nothing was, or when it cannot be read."""
        return self._receipts.read(digest)

    def put_receipt(self, digest: Digest, receipt: Mapping[str, Any]) -> None:
        """Keep what is to be remembered about a manifest, as JSON, until the manifest goes. A store that cannot be
        written to does not remember: what it holds is verified again the next time.
        """
        with self._unless_read_only():
            self._receipts.write(digest, receipt)

    def build_record(self, digest: Digest) -> dict[str, Any] | None:
        """How a manifest was built here; None when it was not, or when it cannot be read."""
        return self._builds.read(digest)

    def put_build_record(self, digest: Digest, record: Mapping[str, Any]) -> None:
        """Keep how a manifest was built, as JSON, until the manifest goes."""
        self._builds.write(digest, record)

    # For the repositories of this store

    def hold(self, digest: Digest, *, if_present: bool = False) -> int | None:
        """Keep a blob from being pruned while this process works with it. Returns its size, None when it is missing.
        A missing one is held for when it comes, unless the caller only asks: ``if_present``.
        """
        with self.locked(shared=True):
            size = self.blobs.size(digest)
            if size is not None or not if_present:
                with self._unless_read_only():
                    self._lease.hold(digest)
            return size

    def release(self, digests: Iterable[Digest]) -> None:
        """These blobs are in a manifest now."""
        self._lease.release(digests)

    def read_index(self) -> Index:
        """Every manifest that the store knows, under which names."""
        try:
            return self._index.load()
        except NotFoundError as error:
            raise InvalidContentError(f"the store {self.root} has lost its {INDEX_FILE}") from error

    def update_index(self, change: Callable[[Index], Index]) -> None:
        """Replace the index by what ``change`` makes of it; no update of another process is lost."""
        with self.locked():
            before = self.read_index()
            after = change(before)
            if after != before:
                after.save(self.root / INDEX_FILE)

    @contextlib.contextmanager
    def _unless_read_only(self) -> Iterator[None]:
        """For what a store that exists and can only be read does without."""
        try:
            yield
        except OSError as error:
            if error.errno not in locks.READ_ONLY or not (self.root / INDEX_FILE).exists():
                raise
            _log.info("the store %s is read-only: %s", self.root, error)

    def _is_new(self) -> bool:
        """Whether there is no index yet. One that lacks an index and has blobs has lost it: an empty one would give
        all that it holds to the next clean-up.
        """
        return not (self.root / INDEX_FILE).exists() and next(self.blobs.all(), None) is None

    def _unfinished(self) -> Iterator[Path]:
        """What interrupted transfers left, and processes that were killed while they wrote."""
        for folder in (self.partials, self.root, self.blobs.directory, *self.note_folders):
            with contextlib.suppress(FileNotFoundError):
                yield from (path for path in folder.iterdir() if folder == self.partials or is_leftover(path))

    def locked(self, *, shared: bool = False) -> contextlib.AbstractContextManager[int]:
        """Nobody changes the store meanwhile; unless ``shared``, nobody relies on it either."""
        return locks.locked(self._locks / "store", shared=shared, read_only=True)

    def _find_by_suffix(self, short: Reference) -> Iterator[StoredTag]:
        for name in self.read_index().repositories():
            if name.endswith(f"/{short.repository}"):
                meant = replace(Reference.parse(name), tag=short.tag, digest=short.digest)
                with contextlib.suppress(NotFoundError):
                    yield StoredTag(meant, self.repository(name).resolve(meant.selector))

    def _find_by_prefix(self, prefix: str) -> Iterator[StoredTag]:
        if _DIGEST_PREFIX.fullmatch(prefix):
            for entry in self.read_index().entries:
                if entry.reference and entry.descriptor.digest.hex.startswith(prefix):
                    name = Reference(entry.reference.registry, entry.reference.repository)
                    yield StoredTag(name.with_digest(entry.descriptor.digest), plain(entry.descriptor))


def _check_owner(root: Path) -> None:
    status = root.stat()
    if not stat.S_ISDIR(status.st_mode):
        raise InvalidInputError(f"{root} is not a folder")
    if status.st_uid != os.geteuid():
        raise AccessDeniedError(f"the store {root} belongs to another user (uid {status.st_uid})")
    if status.st_mode & stat.S_IWOTH:
        raise AccessDeniedError(f"everyone may write into the store {root}")
