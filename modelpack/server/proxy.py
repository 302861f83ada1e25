"""Hands a request to a worker and its answer back, whole or as server-sent events."""

import base64
import json
import logging
import re
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from modelpack.engine.client import CANCEL, connect_async
from modelpack.engine.worker import Worker
from modelpack.errors import ModelpackError, WorkerTimeoutError
from modelpack.server.errors import RequestRefusedError, describe, translate
from modelpack.server.requests import prepare, wants_usage

if TYPE_CHECKING:
    import httpx2

_log = logging.getLogger(__name__)

_DONE = b"data: [DONE]"
_VALIDATION = re.compile(r"'loc': \('body', ([^)]*)\), 'msg': (?:'([^']*)'|\"([^\"]*)\")")


async def forward(
    worker: Worker, endpoint: str, body: dict[str, Any], lease: AsyncExitStack, receive: Receive
) -> Response:
    """The worker's answer to ``body``; it is cut short when ``receive`` tells that the client went away.

    The response takes ``lease`` over and ends it when it needs no worker anymore.

    Raises RequestRefusedError, WorkerCrashedError and WorkerTimeoutError.
    """
    forwarded, ignored = prepare(body, worker.parameters[endpoint])
    headers = {"x-modelpack-device": str(worker.device).encode("ascii", "replace").decode()}
    if ignored:
        headers["x-modelpack-ignored"] = ", ".join(ignored)
    client = await lease.enter_async_context(connect_async(worker.socket))
    request = client.build_request("POST", endpoint, json=forwarded, timeout=worker.options.answer_timeout)
    try:
        response = await _send(client, request, receive)
        lease.push_async_callback(response.aclose)
        if response.status_code == 200 and response.headers["content-type"].startswith("text/event-stream"):
            events = _events(response)
            first = await anext(events, b"")
            _refuse_error_event(first)
            return _Relay(_relay(worker, first, events, usage=wants_usage(body)), headers, lease.pop_all())
        content = await response.aread()
    except Exception as error:
        explained = await _explain(worker, error)
        if explained is error:
            raise
        raise explained from error
    if response.status_code != 200:
        raise _refusal(response.status_code, content)
    answer = json.loads(content)
    if body.get("encoding_format") == "base64":
        for item in answer["data"]:
            item["embedding"] = _to_base64(item["embedding"])
    return _Answer(answer, headers, lease.pop_all())


async def _send(client: "httpx2.AsyncClient", request: "httpx2.Request", receive: Receive) -> "httpx2.Response":
    """Send, and tell the worker to stop if our own client goes away: others may wait for it."""
    import httpx2

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        with suppress(httpx2.HTTPError):
            await client.post(CANCEL)

    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        try:
            response = await client.send(request, stream=True)
        except Exception as error:  # as it is, not as a group
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return response


class _Answer(JSONResponse):
    """A JSON answer that ends the lease before it is sent: a slow client does not hold up the model."""

    def __init__(self, content: Any, headers: Mapping[str, str], lease: AsyncExitStack) -> None:
        super().__init__(content, headers=headers)
        self._lease = lease

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _close(self._lease)
        await super().__call__(scope, receive, send)


class _Relay(StreamingResponse):
    """Server-sent events that end the lease when they were sent or the client went away, even before the first."""

    def __init__(self, events: AsyncIterator[bytes], headers: Mapping[str, str], lease: AsyncExitStack) -> None:
        super().__init__(events, headers={"cache-control": "no-store", **headers}, media_type="text/event-stream")
        self._lease = lease

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await _close(self._lease)


async def _close(lease: AsyncExitStack) -> None:
    with anyio.CancelScope(shield=True):
        await lease.aclose()


async def _relay(worker: Worker, first: bytes, events: AsyncIterator[bytes], *, usage: bool) -> AsyncIterator[bytes]:
    """The events up to ``[DONE]``; one with an error, as OpenAI sends it, if the worker breaks off."""
    event = first
    try:
        while event:
            if usage or not _is_usage(event):
                yield event + b"\n\n"
            if event == _DONE:
                return
            event = await anext(events, b"")
        raise EOFError("the answer ended early")
    except Exception as error:
        explained = await _explain(worker, error)
        refused = translate(explained) if isinstance(explained, ModelpackError) else RequestRefusedError(500, "failed")
        problem = {"error": describe(str(refused), refused.status, code=refused.code)}
        yield b"data: " + json.dumps(problem).encode() + b"\n\n"


async def _events(response: "httpx2.Response") -> AsyncIterator[bytes]:
    buffer = b""
    async for piece in response.aiter_bytes():
        *complete, buffer = (buffer + piece).split(b"\n\n")
        for event in complete:
            if event:
                yield event


def _refuse_error_event(event: bytes) -> None:
    """Turn an error that comes before any text into a status: nothing has been sent yet."""
    if event.startswith(b'data: {"error"'):
        error = json.loads(event.removeprefix(b"data: "))["error"]
        raise RequestRefusedError(error["status"], error["message"], code=error["code"], param=error["param"])


def _is_usage(event: bytes) -> bool:
    """True for the last chunk, which the worker always sends. The bytes cannot occur inside of a JSON string."""
    return b'"usage":' in event and b'"choices": []' in event


async def _explain(worker: Worker, error: Exception) -> Exception:
    """What happened to the child, if that is why its socket failed."""
    import httpx2

    if isinstance(error, httpx2.TimeoutException):
        await anyio.to_thread.run_sync(worker.close)
        return WorkerTimeoutError(f"{worker.name} did not answer within {worker.options.answer_timeout:.0f} s")
    if isinstance(error, httpx2.TransportError | EOFError):
        crash = await anyio.to_thread.run_sync(worker.crash, f"answering with {worker.name}")
        _log.error("%s", crash)
        return crash
    return error


def _refusal(status: int, content: bytes) -> RequestRefusedError:
    """llama-cpp-python's error, in one shape and with the status that it should have had."""
    try:
        document = json.loads(content)
        error = document.get("error") or document["detail"]
        message = str(error["message"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return RequestRefusedError(500, "llama-cpp-python failed")
    if found := _VALIDATION.search(message):
        # It answers 500 to a malformed request, with a path of this machine in the message.
        where = found[1].replace("'", "").replace(", ", ".").strip(".,")
        return RequestRefusedError(400, f"{where}: {found[2] or found[3]}", param=where)
    return RequestRefusedError(status, message, code=error.get("code"), param=error.get("param"))


def _to_base64(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
