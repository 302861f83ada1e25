"""Whether the store is as it should be, and what can be done where it is not.

A check reads and reports; a repair carries the report out as far as it still holds. Damaged content is moved aside,
into ``partial``, where a prune takes it like any other remainder; an entry of the index goes when its manifest is gone.
What a model lacks then, only a pull brings back.
"""

import contextlib
import os
import stat
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from modelpack.atomic_file import write_atomically
from modelpack.errors import DigestMismatchError, InvalidContentError, MalformedReferenceError, NotFoundError
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import ACCEPTED_TYPES, MAX_MANIFEST_SIZE, Descriptor, Manifest
from modelpack.oci.reference import Reference
from modelpack.progress import SILENT, Progress
from modelpack.store.cleanup import Graph, is_leftover
from modelpack.store.index import Entry, Index
from modelpack.store.layout import INDEX_FILE, LAYOUT, LAYOUT_FILE
from modelpack.store.local import Store

_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


class Kind(StrEnum):
    """What can be wrong."""

    INDEX = "index"
    """index.json is missing or cannot be read. Repaired from the receipts, as far as they go."""
    OWNER = "owner"
    """A file belongs to another user, who can change it at any time. Not repaired."""
    MODE = "mode"
    """Others may write to a file or a folder. Repaired."""
    LINK = "link"
    """A symbolic link, or something else that is no file, where a file should be. Removed or moved aside."""
    STRAY = "stray"
    """A file among the blobs that is none. Moved aside."""
    DAMAGED = "damaged"
    """A blob whose content does not match its digest, or a manifest that is none. Moved aside."""
    MISSING = "missing"
    """A blob that a manifest or the index names and that is not there. Only a pull brings it back."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong: where (relative to the store), what, and which names of the index suffer from it."""

    kind: Kind
    path: str
    message: str
    models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Damage:
    """Why a blob is not what its name says, and which file that was."""

    reason: str
    file: os.stat_result


@dataclass(frozen=True, slots=True)
class Repair:
    """What a repair did: ``repaired`` is right now, ``remaining`` is not. ``incomplete`` are the names that cannot be
    used, or are gone, until they are pulled again; ``restored`` those that came back into a lost index.
    """

    repaired: tuple[Finding, ...]
    remaining: tuple[Finding, ...]
    incomplete: tuple[str, ...]
    restored: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Checkup:
    """What a check found. ``checked`` blobs of ``size`` bytes together were hashed."""

    findings: tuple[Finding, ...]
    checked: int
    size: int
    damage: Mapping[Digest, Damage]

    @property
    def outcome(self) -> Repair:
        """What is to be said when nothing is repaired."""
        return Repair((), self.findings, _names(self.findings), ())


def check(store: Store, *, fast: bool = False, progress: Progress = SILENT) -> Checkup:
    """Hash every blob and look at everything else; others may use the store meanwhile. Changes nothing.

    ``fast`` believes a blob that has the size that its manifests promise.
    """
    blobs = dict(store.blobs.all())
    if fast:
        blobs = {digest: blobs[digest] for digest in _of_wrong_size(store, blobs)}
    size = sum(status.st_size for status in blobs.values())
    damage: dict[Digest, Damage] = {}
    with progress.step("checking blobs", total=size) as step:
        for digest, status in blobs.items():
            try:
                store.blobs.check(Descriptor("", digest, status.st_size), on_bytes=step.advance)
            except NotFoundError:
                continue  # Removed meanwhile.
            except (DigestMismatchError, InvalidContentError) as error:
                damage[digest] = Damage(str(error), status)
            except OSError as error:
                damage[digest] = Damage(f"blob {digest} cannot be read: {error.strerror}", status)
    with store.locked(shared=True):
        findings = tuple(_diagnose(store, damage))
    return Checkup(findings, len(blobs), size, damage)


def repair(store: Store, checkup: Checkup) -> Repair:
    """Put right what a check found and what can be put right."""
    with store.locked():
        # Another repair or a pull may have been here since.
        damage = {digest: each for digest, each in checkup.damage.items() if _is_still(store, digest, each)}
        findings = tuple(_diagnose(store, damage))
        restored: tuple[str, ...] = ()
        for finding in findings:
            if finding.kind is Kind.INDEX:
                restored = _restore_index(store)
            elif finding.kind is not Kind.DAMAGED:
                _put_right(store, finding)
        for digest in damage:
            _set_aside(store, store.blobs.path(digest))
        dropped = _drop_lost(store)
        remaining = tuple(_diagnose(store, {}))
    paths = {(finding.kind, finding.path) for finding in remaining}
    return Repair(
        repaired=tuple(finding for finding in findings if (finding.kind, finding.path) not in paths),
        remaining=remaining,
        incomplete=tuple(sorted({*_names(remaining), *dropped})),
        restored=restored,
    )


def _of_wrong_size(store: Store, blobs: Mapping[Digest, os.stat_result]) -> Iterator[Digest]:
    with contextlib.suppress(NotFoundError, InvalidContentError):
        content = Graph(store.blobs).content(entry.descriptor for entry in store.read_index().entries)
        for digest, size in content.items():
            if digest in blobs and blobs[digest].st_size != size:
                yield digest


def _diagnose(store: Store, damage: Mapping[Digest, Damage]) -> Iterator[Finding]:
    """Everything that is wrong, given the blobs that are. The caller has the store's lock."""
    yield from _look_at_files(store)
    try:
        index = store.read_index()
    except (NotFoundError, InvalidContentError) as error:
        yield Finding(Kind.INDEX, INDEX_FILE, str(error))
        index = Index()
    broken: dict[Digest, tuple[Kind, str]] = {
        digest: (Kind.DAMAGED, each.reason) for digest, each in damage.items() if _is_still(store, digest, each)
    }
    sufferers: dict[Digest, list[str]] = {digest: [] for digest in broken}
    graph = Graph(store.blobs)
    for entry in index.entries:
        for descriptor in graph.closure([entry.descriptor]):
            digest = descriptor.digest
            if digest not in broken:
                trouble = _trouble(store, graph, descriptor)
                if trouble is None:
                    continue
                broken[digest] = trouble
            sufferers.setdefault(digest, []).append(entry.name or str(entry.descriptor.digest))
    for digest, (kind, message) in sorted(broken.items()):
        yield Finding(kind, _relative(store, store.blobs.path(digest)), message, tuple(sorted(sufferers[digest])))


def _trouble(store: Store, graph: Graph, descriptor: Descriptor) -> tuple[Kind, str] | None:
    size = store.blobs.size(descriptor.digest)
    if size is None:
        return Kind.MISSING, f"blob {descriptor.digest} is missing"
    if size != descriptor.size:
        return Kind.DAMAGED, f"blob {descriptor.digest} has {size} bytes where {descriptor.size} were promised"
    if descriptor.media_type in ACCEPTED_TYPES and graph.manifest(descriptor) is None:
        return Kind.DAMAGED, f"{descriptor.digest} is no manifest that can be read"
    return None


def _look_at_files(store: Store) -> Iterator[Finding]:
    for folder in (
        store.root,
        store.blobs.directory.parent,
        store.blobs.directory,
        store.partials,
        *store.note_folders,
    ):
        # A folder may lie elsewhere, on a larger disk: what counts is whose it is there.
        with contextlib.suppress(FileNotFoundError):
            yield from _look_at_rights(store, folder, folder.stat())
    for name in (LAYOUT_FILE, INDEX_FILE):
        yield from _look_at_file(store, store.root / name)
    for folder in (store.blobs.directory, *store.note_folders):
        with contextlib.suppress(FileNotFoundError):
            for path in sorted(folder.iterdir()):
                if not is_leftover(path):
                    yield from _look_at_file(store, path)


def _look_at_file(store: Store, path: Path) -> Iterator[Finding]:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISREG(status.st_mode):
        what = "a symbolic link" if path.is_symlink() else "not a regular file"
        yield Finding(Kind.LINK, _relative(store, path), f"{path.name} is {what}")
    elif path.parent == store.blobs.directory and not _is_digest(path.name):
        yield Finding(Kind.STRAY, _relative(store, path), f"{path.name} is no blob")
    else:
        yield from _look_at_rights(store, path, status)


def _look_at_rights(store: Store, path: Path, status: os.stat_result) -> Iterator[Finding]:
    if status.st_uid != os.geteuid():
        yield Finding(Kind.OWNER, _relative(store, path), f"{path.name} belongs to another user (uid {status.st_uid})")
    if status.st_mode & _OTHERS_MAY_WRITE:
        mode = stat.S_IMODE(status.st_mode)
        yield Finding(Kind.MODE, _relative(store, path), f"others may write to {path.name} (mode {mode:04o})")


def _put_right(store: Store, finding: Finding) -> None:
    path = store.root / finding.path
    # What cannot be put right is found again, and told of.
    with contextlib.suppress(FileNotFoundError, PermissionError):
        if finding.kind is Kind.MODE:
            path.chmod(stat.S_IMODE(path.stat().st_mode) & ~_OTHERS_MAY_WRITE)
        elif finding.kind is Kind.STRAY:
            _set_aside(store, path)
        elif finding.kind is Kind.LINK and finding.path == LAYOUT_FILE:
            write_atomically(path, LAYOUT)
        elif finding.kind is Kind.LINK and finding.path == INDEX_FILE:
            # Unreadable through the link, it is a finding of its own.
            with contextlib.suppress(NotFoundError, InvalidContentError):
                store.read_index().save(path)
        elif finding.kind is Kind.LINK and path.is_symlink():
            path.unlink()  # A link has no content to lose.
        elif finding.kind is Kind.LINK:
            _set_aside(store, path)


def _set_aside(store: Store, path: Path) -> None:
    aside = store.partials / f"aside-{path.name}-{uuid.uuid4().hex[:8]}"
    with contextlib.suppress(FileNotFoundError):
        path.rename(aside)
        os.utime(aside)  # A prune spares it for as long as a transfer that was interrupted now.


def _drop_lost(store: Store) -> list[str]:
    """Take the entries out of the index whose own manifest is not there; returns their names."""
    index, graph = store.read_index(), Graph(store.blobs)

    def is_lost(entry: Entry) -> bool:
        return _trouble(store, graph, entry.descriptor) is not None

    kept = index.without(is_lost)
    if len(kept.entries) < len(index.entries):
        kept.save(store.root / INDEX_FILE)
    return [entry.name or str(entry.descriptor.digest) for entry in index.entries if is_lost(entry)]


def _restore_index(store: Store) -> tuple[str, ...]:
    """A new index from what is known otherwise: the receipts say how a manifest was called, and a manifest with a
    subject belongs beside it. Names that were only in the index are lost.
    """
    _set_aside(store, store.root / INDEX_FILE)
    manifests = {manifest.digest: manifest for manifest in _find_manifests(store)}
    names: dict[Digest, Reference] = {}
    for digest in manifests:
        with contextlib.suppress(MalformedReferenceError):
            if receipt := store.receipt(digest):
                names[digest] = Reference.parse(str(receipt.get("reference")))
    index = Index()
    for digest, reference in sorted(names.items()):
        untagged = reference.digest and not reference.tag
        name = f"{reference.name}@{digest}" if untagged else reference.tagged
        index = index.with_entry(name, _entry(manifests[digest]))
    restored = tuple(entry.name for entry in index.entries)
    for digest, manifest in sorted(manifests.items()):
        subject = names.get(manifest.subject.digest) if manifest.subject else None
        if subject and digest not in names:
            index = index.with_entry(f"{subject.name}@{digest}", _entry(manifest))
    index.save(store.root / INDEX_FILE)
    return restored


def _find_manifests(store: Store) -> Iterator[Manifest]:
    for digest, status in store.blobs.all():
        if status.st_size <= MAX_MANIFEST_SIZE:
            with contextlib.suppress(NotFoundError, InvalidContentError, DigestMismatchError):
                yield Manifest.parse(store.blobs.read_small(Descriptor("", digest, status.st_size)))


def _names(findings: tuple[Finding, ...]) -> tuple[str, ...]:
    return tuple(sorted({name for finding in findings for name in finding.models}))


def _entry(manifest: Manifest) -> Descriptor:
    own = manifest.descriptor
    return Descriptor(own.media_type, own.digest, own.size, artifact_type=own.artifact_type)


def _is_still(store: Store, digest: Digest, damage: Damage) -> bool:
    try:
        return os.path.samestat(store.blobs.path(digest).lstat(), damage.file)
    except FileNotFoundError:
        return False


def _is_digest(name: str) -> bool:
    try:
        Digest.from_hex(name)
    except InvalidContentError:
        return False
    return True


def _relative(store: Store, path: Path) -> str:
    return str(path.relative_to(store.root))
