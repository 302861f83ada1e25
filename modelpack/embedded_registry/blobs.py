"""Blobs: whether they are there, their bytes or a range of them, and their end."""

from collections.abc import AsyncIterator
from functools import partial

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from modelpack.embedded_registry.errors import RefusedError
from modelpack.embedded_registry.requests import Call, parse_digest, parse_range
from modelpack.oci.digest import Digest
from modelpack.store import Cleanup, Store


async def head(call: Call) -> Response:
    # Whoever hears that it is there will not send it, so it has to stay until the manifest comes.
    wanted = parse_digest(call.item)
    size = await run_in_threadpool(partial(call.store.hold, wanted, if_present=True))
    if size is None and call.upstream:
        size = (await run_in_threadpool(call.upstream.describe, call.repository, wanted)).size
    if size is None:
        raise _unknown(call)
    return Response(headers=_headers(wanted, size))


async def get(call: Call) -> Response:
    wanted = parse_digest(call.item)
    size = await run_in_threadpool(call.store.blobs.size, wanted)
    fetch = None
    if size is None and call.upstream:
        fetch = await run_in_threadpool(call.upstream.fetch, call.repository, wanted)
        size = fetch.descriptor.size
    if size is None:
        raise _unknown(call)
    span = parse_range(call.request.headers.get("range"), size)
    start, end = span or (0, size)
    headers = _headers(wanted, end - start)
    if span:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    if fetch and call.upstream:
        content = call.upstream.follow(fetch, start, end)
    else:
        content = _stream(call.store, wanted, start, end)
    return StreamingResponse(content, 206 if span else 200, headers)


async def delete(call: Call) -> Response:
    """Only what no manifest of any repository names: blobs are shared by all."""
    wanted = parse_digest(call.item)
    size = await run_in_threadpool(call.store.blobs.size, wanted)
    if size is None:
        raise _unknown(call)
    call.store.release([wanted])
    gone = await run_in_threadpool(call.store.carry_out, Cleanup(blobs=((wanted, size),)))
    if not gone.blobs:
        raise RefusedError(405, "UNSUPPORTED", f"{wanted} is in use")
    return Response(status_code=202)


async def _stream(store: Store, digest: Digest, start: int, end: int) -> AsyncIterator[bytes]:
    with store.blobs.read(digest, offset=start) as chunks:
        left = end - start
        while left > 0 and (chunk := await run_in_threadpool(next, chunks, b"")):
            yield chunk[:left]
            left -= len(chunk)


def _headers(digest: Digest, size: int) -> dict[str, str]:
    return {
        "Content-Type": "application/octet-stream",
        "Content-Length": str(size),
        "Accept-Ranges": "bytes",
        "Docker-Content-Digest": str(digest),
    }


def _unknown(call: Call) -> RefusedError:
    return RefusedError(404, "BLOB_UNKNOWN", f"no blob {call.item} in {call.repository.name}")
