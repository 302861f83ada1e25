"""Uploads: in one request or in chunks, resumable, on disk from the first byte (distribution specification 1.1,
"Pushing Blobs").
"""

import asyncio
import contextlib
import hashlib
import math
import os
import re
import time
import uuid
import weakref
from collections import OrderedDict
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from modelpack.embedded_registry.errors import RefusedError
from modelpack.embedded_registry.requests import Call, parse_digest
from modelpack.oci.digest import Digest
from modelpack.store import Store, check_space, disk_errors, locks
from modelpack.store.cleanup import discard_partial, idle_partials

_BLOCK = 1 << 20
_MAX_OPEN = 64

# How long a session may lie idle, and how often we look, in seconds ("Cancel a blob upload": "the server SHOULD
# eventually timeout unfinished uploads").
MAX_IDLE = 24 * 3600
_LOOK_EVERY = 600

_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)
_CONTENT_RANGE = re.compile(r"(\d{1,19})-(\d{1,19})", re.ASCII)


class Upload:
    """One session. Its file is open and locked as long as this object lives, so no clean-up takes it away."""

    def __init__(self, path: Path, file: int) -> None:
        self.path = path
        self.id = path.name.removeprefix("upload-")
        self.mutex = asyncio.Lock()
        self.size = os.fstat(file).st_size
        self.file = file
        # Known as long as we saw every byte; a session of an earlier server is hashed when it ends.
        self._hasher = None if self.size else hashlib.sha256()
        weakref.finalize(self, os.close, file)

    @property
    def ended(self) -> bool:
        """Whether the file is a blob now, or gone. It is open nevertheless, and must not be written any more."""
        return not self.path.exists()

    async def receive(self, request: Request) -> None:
        """Append the body, writing and hashing one block while the next arrives. What came before a break stays."""
        block = bytearray()
        writing: asyncio.Task[None] | None = None
        try:
            async for chunk in request.stream():
                block += chunk
                if len(block) >= _BLOCK:
                    if writing:
                        await writing
                    writing = asyncio.create_task(run_in_threadpool(self._append, bytes(block)))
                    block.clear()
        finally:
            if writing:
                await writing
            await run_in_threadpool(self._append, bytes(block))

    def digest(self) -> Digest:
        if self._hasher is None:
            os.lseek(self.file, 0, os.SEEK_SET)
            self._hasher = hashlib.sha256()
            while block := os.read(self.file, _BLOCK):
                self._hasher.update(block)
        return Digest.from_hex(self._hasher.hexdigest())

    def _append(self, block: bytes) -> None:
        view = memoryview(block)
        with disk_errors(self.path):
            while view:
                written = os.pwrite(self.file, view, self.size)
                if self._hasher:
                    self._hasher.update(view[:written])
                self.size += written
                view = view[written:]


class Uploads:
    """The sessions of a store. The last few are kept open; the others, once no request uses them, are found again on
    disk.
    """

    def __init__(self, store: Store) -> None:
        self._folder = store.partials
        self._open: OrderedDict[str, Upload] = OrderedDict()
        # One that a request uses is locked by us, however many came after it.
        self._alive: weakref.WeakValueDictionary[str, Upload] = weakref.WeakValueDictionary()
        self._looked = -math.inf

    def start(self) -> Upload:
        if time.monotonic() - self._looked > _LOOK_EVERY:
            self._looked = time.monotonic()
            self.expire()
        path = self._folder / f"upload-{uuid.uuid4().hex}"
        return self._keep(Upload(path, locks.open_locked(path)))

    def find(self, name: str) -> Upload:
        """Raises RefusedError (404)."""
        upload = self._alive.get(name)
        if upload is None:
            file = locks.reopen_locked(self._folder / f"upload-{name}") if _ID.fullmatch(name) else None
            if file is None:
                raise _unknown()
            upload = Upload(self._folder / f"upload-{name}", file)
        return self._keep(upload)

    def forget(self, upload: Upload) -> None:
        self._open.pop(upload.id, None)
        self._alive.pop(upload.id, None)
        upload.path.unlink(missing_ok=True)

    def expire(self) -> None:
        """Forget the sessions that nobody has touched for a day, ours and those of earlier servers."""
        then = time.time() - MAX_IDLE
        for upload in list(self._open.values()):
            if not upload.mutex.locked() and os.fstat(upload.file).st_mtime < then:
                self.forget(upload)
        for path, _ in idle_partials(self._folder.glob("upload-*"), older_than=then):
            discard_partial(path)

    def _keep(self, upload: Upload) -> Upload:
        self._alive[upload.id] = self._open[upload.id] = upload
        self._open.move_to_end(upload.id)
        while len(self._open) > _MAX_OPEN:
            self._open.popitem(last=False)
        return upload

    @contextlib.asynccontextmanager
    async def alone(self, upload: Upload) -> AsyncIterator[None]:
        """No other request writes or ends the session meanwhile. Raises RefusedError (404) when one has ended it."""
        async with upload.mutex:
            if upload.ended:
                raise _unknown()
            yield


async def start(call: Call) -> Response:
    """Begin an upload; or end it at once, where the blob is here already or comes with the request."""
    query = call.request.query_params
    if mount := query.get("mount"):
        # Blobs are shared by all repositories, so where a blob is mounted from is of no interest.
        digest = parse_digest(mount)
        if await run_in_threadpool(partial(call.store.hold, digest, if_present=True)) is not None:
            return _created(call, digest)
    upload = call.uploads.start()
    if "digest" in query:
        return await _finish(call, upload)
    return _accepted(call, upload, 202)


async def status(call: Call) -> Response:
    return _accepted(call, call.uploads.find(call.item), 204)


async def append(call: Call) -> Response:
    upload = call.uploads.find(call.item)
    async with call.uploads.alone(upload):
        await _receive(call, upload)
    return _accepted(call, upload, 202)


async def finish(call: Call) -> Response:
    return await _finish(call, call.uploads.find(call.item))


async def cancel(call: Call) -> Response:
    upload = call.uploads.find(call.item)
    async with call.uploads.alone(upload):
        call.uploads.forget(upload)
    return Response(status_code=204)


async def _receive(call: Call, upload: Upload) -> None:
    headers = call.request.headers
    length = headers.get("content-length", "")
    announced = int(length) if length.isdecimal() and len(length) < 20 else None
    if content_range := headers.get("content-range"):
        match = _CONTENT_RANGE.fullmatch(content_range)
        first, last = (int(match.group(1)), int(match.group(2))) if match else (-1, -1)
        if first != upload.size or (announced is not None and announced != last - first + 1):
            # "If a chunk is uploaded out of order, the registry MUST respond with a 416".
            message = f"{upload.size} bytes are here, and the range {content_range[:50]!r} does not follow"
            raise RefusedError(416, "BLOB_UPLOAD_INVALID", message, _headers(call, upload))
    if announced:
        check_space(call.store.partials, announced)
    await upload.receive(call.request)


async def _finish(call: Call, upload: Upload) -> Response:
    expected = parse_digest(call.request.query_params.get("digest"))
    async with call.uploads.alone(upload):
        await _receive(call, upload)
        actual = await run_in_threadpool(upload.digest)
        if actual != expected:
            call.uploads.forget(upload)
            raise RefusedError(400, "DIGEST_INVALID", f"the content has the digest {actual}, not {expected}")

        def publish() -> None:
            call.store.hold(expected)
            if call.store.blobs.size(expected) != upload.size:
                call.store.ingest.publish(upload.file, upload.path, expected)

        await run_in_threadpool(publish)
        call.uploads.forget(upload)
    return _created(call, expected)


def _created(call: Call, digest: Digest) -> Response:
    location = f"{_prefix(call)}/blobs/{digest}"
    return Response(status_code=201, headers={"Location": location, "Docker-Content-Digest": str(digest)})


def _accepted(call: Call, upload: Upload, status_code: int) -> Response:
    return Response(status_code=status_code, headers=_headers(call, upload))


def _headers(call: Call, upload: Upload) -> dict[str, str]:
    return {
        "Location": f"{_prefix(call)}/blobs/uploads/{upload.id}",
        "Range": f"0-{max(0, upload.size - 1)}",
        "Docker-Upload-UUID": upload.id,
    }


def _prefix(call: Call) -> str:
    return call.request.url.path.rpartition("/blobs/uploads")[0]


def _unknown() -> RefusedError:
    return RefusedError(404, "BLOB_UPLOAD_UNKNOWN", "no such upload")
