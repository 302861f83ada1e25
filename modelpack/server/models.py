"""The models of a server: which there are, which are loaded, and who waits for one.

A model is loaded by its first request, answers one request at a time (llama-cpp-python has one context), and is
unloaded when it was idle for long enough or when another model needs its place.
"""

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import anyio
import anyio.to_thread

from modelpack.engine.worker import Purpose, Worker, WorkerOptions
from modelpack.server.errors import RequestRefusedError

_log = logging.getLogger(__name__)

_IDLE_CHECK = 5.0


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model that the server offers."""

    name: str
    created: int = 0
    """Seconds since 1970."""
    digest: str | None = None


class Catalog(Protocol):
    """The models that may be served. Called from threads."""

    def list(self) -> list[ModelEntry]:
        """All of them, sorted as a person wants to see them."""

    def path(self, name: str) -> Path:
        """The GGUF file of a model. Asked for each request, so what is revoked or replaced is noticed.

        Raises NotFoundError for a name that is not there and UntrustedError for one that must not run.
        """


@dataclass(slots=True, eq=False)
class Slot:
    """A place for one loaded model."""

    worker: Worker | None = None
    users: int = 0
    """Requests that hold or await this slot; one with users is never unloaded."""
    last_used: float = 0.0
    turn: anyio.Lock = field(default_factory=anyio.Lock)


class Pool:
    """At most ``max_loaded`` workers; the least recently used idle one makes room."""

    def __init__(
        self, options: WorkerOptions, *, max_loaded: int = 1, max_requests: int = 64, idle_timeout: float = 300.0
    ) -> None:
        self._options = options
        self._max_loaded = max_loaded
        self._max_requests = max_requests
        self._idle_timeout = idle_timeout
        self._slots: dict[tuple[Path, Purpose], Slot] = {}
        self._requests = 0
        self._changed = anyio.Event()

    @asynccontextmanager
    async def lease(self, name: str, path: Path, purpose: Purpose) -> AsyncIterator[Worker]:
        """A loaded model for one request alone; waits for its turn, and loads the model if need be.

        Raises RequestRefusedError (429) when too many requests wait, and what ``Worker.start`` raises.
        """
        if self._requests >= self._max_requests:
            raise RequestRefusedError(429, f"{self._requests} requests are waiting already", code="queue_full")
        self._requests += 1
        try:
            slot = await self._reserve((path, purpose))
            try:
                async with slot.turn:
                    if slot.worker is None or not slot.worker.is_running:
                        await anyio.to_thread.run_sync(self._load, slot, name, path, purpose)
                    assert slot.worker is not None  # noqa: S101  (just loaded)
                    yield slot.worker
            finally:
                slot.users -= 1
                slot.last_used = time.monotonic()
                if slot.users == 0 and slot.worker is None:
                    self._slots = {key: other for key, other in self._slots.items() if other is not slot}
                self._notify()
        finally:
            self._requests -= 1

    async def unload_idle(self) -> None:
        """Unload what was idle for too long, for as long as this runs."""
        while True:
            await anyio.sleep(min(_IDLE_CHECK, max(self._idle_timeout / 2, 0.05)))
            now = time.monotonic()
            for key, slot in list(self._slots.items()):
                if slot.users == 0 and now - slot.last_used >= self._idle_timeout:
                    await self._unload(key)

    def close(self) -> None:
        """Kill all workers at once."""
        for slot in self._slots.values():
            if slot.worker is not None:
                slot.worker.close()
        self._slots.clear()

    async def _reserve(self, key: tuple[Path, Purpose]) -> Slot:
        # No await between a look at the slots and the change that follows from it.
        while (slot := self._slots.get(key)) is None:
            if len(self._slots) < self._max_loaded:
                slot = self._slots[key] = Slot()
                break
            idle = [other for other, candidate in self._slots.items() if candidate.users == 0]
            if idle:
                await self._unload(min(idle, key=lambda other: self._slots[other].last_used))
            else:
                await self._changed.wait()
        slot.users += 1
        return slot

    async def _unload(self, key: tuple[Path, Purpose]) -> None:
        worker = self._slots.pop(key).worker
        if worker is not None:
            _log.info("unloading %s", worker.name)
            await anyio.to_thread.run_sync(worker.close)
        self._notify()

    def _load(self, slot: Slot, name: str, path: Path, purpose: Purpose) -> None:
        # Assigned in the thread: a request that is cancelled meanwhile must not lose a worker.
        if slot.worker is not None:
            slot.worker.close()
            slot.worker = None
        slot.worker = Worker.start(path, replace(self._options, purpose=purpose), name=name)
        _log.info("loaded %s in %.1f s on %s", name, slot.worker.load_seconds, slot.worker.device)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()
