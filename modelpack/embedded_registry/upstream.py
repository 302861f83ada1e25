"""Another registry behind this one: what is asked for and is not in the store is fetched, verified, and stays.

It lies in the store under its own name, ``REGISTRY/repository:tag``, and the store knows that only a proxy put it
there, so that it may be pruned when nobody asks for it any more. A tag is asked for upstream each time; only where
nobody answers there, the store says what it was.
"""

import asyncio
import contextlib
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from modelpack.errors import ModelpackError, NotFoundError, UnavailableError
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import Descriptor, Manifest
from modelpack.oci.target import RangedBlob
from modelpack.registry.client import Registry, Repository
from modelpack.store import Store, StoreRepository
from modelpack.store.index import attached_to
from modelpack.store.journal import arrived

_log = logging.getLogger(__name__)

_MAX_INCOMPLETE = 1000
_BLOCK = 1 << 20
_LOOK_EVERY = 0.05  # seconds, for what has come of a blob


@dataclass(eq=False, slots=True)
class Fetch:
    """A blob on its way into the store. ``error`` says why it did not get there, once it is ``over``."""

    descriptor: Descriptor
    over: threading.Event = field(default_factory=threading.Event)
    error: ModelpackError | OSError | None = None


class Upstream:
    """A registry, asked as whoever runs this one. Safe to use from several threads."""

    def __init__(self, store: Store, registry: Registry) -> None:
        self._store, self._registry = store, registry
        self._lock = threading.Lock()
        self._fetches: dict[Digest, Fetch] = {}
        # Manifests whose blobs are not all here, by repository and tag or digest: until then the store takes none.
        self._incomplete: OrderedDict[tuple[str, str], tuple[Manifest, str | None]] = OrderedDict()

    def repository(self, name: str) -> StoreRepository:
        """Where the store keeps what comes from a repository. Raises MalformedReferenceError."""
        self._store.repository(f"{self._registry.name}/{name}")
        return self._store.repository(self._registry.repository(name).name)

    def manifest(self, here: StoreRepository, selector: str) -> Manifest:
        """What a tag names upstream now, or a digest. Raises what the registry's client does, NotFoundError."""
        is_digest = ":" in selector
        if is_digest:
            with contextlib.suppress(NotFoundError):
                return self._known(here, selector) or here.fetch_manifest(here.resolve(selector))
        remote = self._remote(here)
        try:
            descriptor = remote.resolve(selector)
            try:
                manifest = here.fetch_manifest(here.resolve(str(descriptor.digest)))
            except NotFoundError:
                manifest = remote.fetch_manifest(descriptor)
        except UnavailableError as error:
            try:
                manifest = here.fetch_manifest(here.resolve(selector))
            except NotFoundError:
                # What may hang on something that is here: nothing that is known. Whoever asks for a signature refuses.
                if attached_to(selector):
                    raise
                raise error from None
            _log.warning("%s cannot be asked for %s, which is served as it was: %s", remote.name, selector, error)
            if not is_digest:
                self._store.cached.asked(f"{here.name}:{selector}", manifest.digest, is_new=False)
            return manifest
        with self._lock:
            self._incomplete[here.name, selector] = manifest, None if is_digest else selector
            while len(self._incomplete) > _MAX_INCOMPLETE:
                self._incomplete.popitem(last=False)
        self._keep_complete(here)
        return manifest

    def referrers(self, here: StoreRepository, subject: Digest) -> list[Descriptor]:
        try:
            return self._remote(here).list_referrers(subject)
        except UnavailableError as error:
            _log.warning("%s cannot be asked for referrers: %s", here.name, error)
            return here.list_referrers(subject)

    def tags(self, here: StoreRepository) -> list[str]:
        try:
            return self._remote(here).list_tags()
        except UnavailableError as error:
            _log.warning("%s cannot be asked for tags: %s", here.name, error)
            return here.list_tags()

    def describe(self, here: StoreRepository, digest: Digest) -> Descriptor:
        """A blob that is not in the store. Raises NotFoundError, and what the registry's client does."""
        return self._remote(here).describe_blob(digest)

    def fetch(self, here: StoreRepository, digest: Digest) -> Fetch:
        """Begin to bring a blob into the store, unless somebody has begun. Raises what ``describe`` does."""
        with self._lock:
            fetch = self._fetches.get(digest)
        if fetch is not None:
            return fetch
        descriptor = self.describe(here, digest)
        with self._lock:
            fetch = self._fetches.get(digest)
            if fetch is None:
                fetch = self._fetches[digest] = Fetch(descriptor)
                work = threading.Thread(target=self._bring, args=(here, fetch), name="modelpack-upstream", daemon=True)
                work.start()
        return fetch

    async def follow(self, fetch: Fetch, start: int, stop: int) -> AsyncIterator[bytes]:
        """The bytes of a blob as they come, in order and not yet verified. The last one waits until all of it is right:
        else the stream ends before.
        """
        digest = fetch.descriptor.digest
        partial = self._store.partials / digest.hex
        position, file = start, None
        try:
            while position < stop:
                is_over = fetch.over.is_set()
                if is_over and fetch.error is not None:
                    return
                if file is None:
                    with contextlib.suppress(FileNotFoundError):
                        # The same file under its last name or under this one.
                        path = self._store.blobs.path(digest) if is_over else partial
                        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                there = stop
                if not is_over:
                    come = arrived(partial.with_suffix(".journal"), fetch.descriptor)
                    there = min(stop, come, fetch.descriptor.size - 1)
                if file is None or there <= position:
                    await asyncio.to_thread(fetch.over.wait, _LOOK_EVERY)
                    continue
                chunk = await asyncio.to_thread(os.pread, file, min(_BLOCK, there - position), position)
                if not chunk:
                    return
                position += len(chunk)
                yield chunk
        finally:
            if file is not None:
                os.close(file)

    def _known(self, here: StoreRepository, digest: str) -> Manifest | None:
        with self._lock:
            known = [manifest for (name, _), (manifest, _) in self._incomplete.items() if name == here.name]
        return next((manifest for manifest in known if str(manifest.digest) == digest), None)

    def _remote(self, here: StoreRepository) -> Repository:
        return self._registry.repository(here.name.removeprefix(f"{self._registry.name}/"))

    def _bring(self, here: StoreRepository, fetch: Fetch) -> None:
        remote, descriptor = self._remote(here), fetch.descriptor
        try:
            here.write_blob(
                descriptor,
                RangedBlob(
                    lambda offset: remote.read_blob(descriptor, offset=offset),
                    lambda start, stop: remote.open_range(descriptor, start, stop),
                    connections=remote.connections,
                ),
            )
            self._keep_complete(here)
        except (ModelpackError, OSError) as error:
            _log.warning("%s could not be fetched from %s: %s", descriptor.digest, remote.name, error)
            fetch.error = error
        finally:
            with self._lock:
                self._fetches.pop(descriptor.digest, None)
            fetch.over.set()

    def _keep_complete(self, here: StoreRepository) -> None:
        """Enter the manifests of which all is here, those that an index lists before the index."""
        entered = True
        while entered:
            entered = False
            with self._lock:
                waiting = [(key, *known) for key, known in self._incomplete.items() if key[0] == here.name]
            for key, manifest, tag in waiting:
                if not here.missing(manifest):
                    self._enter(here, manifest, tag)
                    entered = True
                    with self._lock:
                        if self._incomplete.get(key) == (manifest, tag):
                            del self._incomplete[key]

    def _enter(self, here: StoreRepository, manifest: Manifest, tag: str | None) -> None:
        before = None
        if tag:
            with contextlib.suppress(NotFoundError):
                before = here.resolve(tag).digest
        here.put_manifest(manifest, tag=tag)
        if tag and not attached_to(tag):
            self._store.cached.asked(f"{here.name}:{tag}", manifest.digest, is_new=before != manifest.digest)
