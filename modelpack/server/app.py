"""The service: routes, limits, and a server that runs them on TCP or on a unix domain socket."""

import json
import math
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import anyio
import anyio.to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from modelpack.engine.worker import Purpose, WorkerOptions
from modelpack.errors import InvalidInputError, ModelpackError
from modelpack.server.errors import RequestRefusedError, refuse, translate
from modelpack.server.guard import Guard, is_loopback
from modelpack.server.models import Catalog, ModelEntry, Pool
from modelpack.server.proxy import forward

_PURPOSES: dict[str, Purpose] = {
    "/v1/chat/completions": "generate",
    "/v1/completions": "generate",
    "/v1/embeddings": "embed",
}


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Where and how to serve."""

    host: str = "127.0.0.1"
    port: int = 0
    """0 takes a free one."""
    unix_socket: Path | None = None
    """Serve here, for this user alone, instead of on ``host`` and ``port``."""
    api_key: str | None = None
    """What clients must send as bearer token; required beyond loopback."""
    idle_timeout: float = 300.0
    """Seconds without a request after which a model is unloaded."""
    max_loaded: int = 1
    max_requests: int = 64
    """Requests that are served or wait; more are answered 429."""
    max_body: int = 16 << 20
    """Bytes of one request."""
    worker: WorkerOptions = field(default_factory=WorkerOptions)

    def __post_init__(self) -> None:
        if self.unix_socket is None and self.api_key is None and not is_loopback(self.host):
            raise InvalidInputError(f"serving on {self.host}, beyond this machine, needs an API key")


def create_app(catalog: Catalog, options: ServerOptions) -> Starlette:
    """The ASGI app. Its lifespan must run: it unloads idle models, and all of them at the end."""
    pool = Pool(
        options.worker,
        max_loaded=options.max_loaded,
        max_requests=options.max_requests,
        idle_timeout=options.idle_timeout,
    )

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(pool.unload_idle)
                yield
                tasks.cancel_scope.cancel()
        finally:
            pool.close()

    async def generate(request: Request) -> Response:
        body = await _read_json(request, options.max_body)
        name = body.get("model")
        if not isinstance(name, str) or not name:
            raise RequestRefusedError(400, "the request must name a model", param="model")
        path = await anyio.to_thread.run_sync(catalog.path, name)
        endpoint = request.url.path
        async with AsyncExitStack() as stack:
            worker = await stack.enter_async_context(pool.lease(name, path, _PURPOSES[endpoint]))
            return await forward(worker, endpoint, body, stack, request.receive)

    async def list_models(_: Request) -> Response:
        entries = await anyio.to_thread.run_sync(catalog.list)
        return JSONResponse({"object": "list", "data": [_model(entry) for entry in entries]})

    async def show_model(request: Request) -> Response:
        name = request.path_params["name"]
        entries = await anyio.to_thread.run_sync(catalog.list)
        for entry in entries:
            if entry.name == name:
                return JSONResponse(_model(entry))
        raise RequestRefusedError(404, f"there is no model {name!r}", code="model_not_found")

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    return Starlette(
        routes=[
            Route("/health", health),
            Route("/v1/models", list_models),
            Route("/v1/models/{name:path}", show_model),
            *(Route(path, generate, methods=["POST"]) for path in _PURPOSES),
        ],
        middleware=[Middleware(Guard, host=None if options.unix_socket else options.host, api_key=options.api_key)],
        exception_handlers={
            RequestRefusedError: lambda _, error: refuse(error),
            ModelpackError: lambda _, error: refuse(translate(error)),
            HTTPException: lambda _, error: refuse(RequestRefusedError(error.status_code, error.detail)),
        },
        lifespan=lifespan,
    )


def serve(catalog: Catalog, options: ServerOptions, *, on_ready: Callable[[str], None] = lambda _: None) -> None:
    """Serve until SIGINT or SIGTERM; ``on_ready`` gets the URL, or the path of the socket, once clients may connect.

    Raises KeyboardInterrupt at the end if it was SIGINT, and InvalidInputError if the address cannot be used. No worker
    survives.
    """
    import uvicorn

    app = create_app(catalog, options)
    # Streams that still run at the end are cut off: they belong to models that are about to be killed.
    server = uvicorn.Server(
        uvicorn.Config(app, log_config=None, access_log=False, lifespan="on", timeout_graceful_shutdown=1)
    )
    listener = _listen(options)
    try:
        on_ready(_address(listener, options))
        server.run(sockets=[listener])
    finally:
        listener.close()
        if options.unix_socket is not None:
            options.unix_socket.unlink(missing_ok=True)


def _listen(options: ServerOptions) -> socket.socket:
    where = str(options.unix_socket) if options.unix_socket else f"{options.host}:{options.port}"
    try:
        if options.unix_socket is not None:
            return _listen_unix(options.unix_socket)
        family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        listener = socket.create_server((options.host, options.port), family=family)
        # asyncio does so only for sockets that it made itself; else tokens wait up to 40 ms for the client's ACK.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        raise InvalidInputError(f"cannot serve on {where}: {error.strerror or error}") from error


def _listen_unix(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    try:
        with suppress(FileNotFoundError, ConnectionRefusedError), socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(path))
            raise OSError(0, "another server is listening there")
        if path.is_socket():  # left behind by a server that was killed
            path.unlink()
        # Nobody else can connect between bind and chmod: a socket that does not listen refuses.
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen()
    except BaseException:
        listener.close()
        raise
    return listener


def _address(listener: socket.socket, options: ServerOptions) -> str:
    if options.unix_socket is not None:
        return str(options.unix_socket)
    host = f"[{options.host}]" if ":" in options.host else options.host
    return f"http://{host}:{listener.getsockname()[1]}"


async def _read_json(request: Request, limit: int) -> dict[str, Any]:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit:
            raise RequestRefusedError(413, f"the request is larger than {limit} bytes", code="request_too_large")
    try:
        document = json.loads(body.decode("utf-8-sig"), parse_constant=_refuse_constant, parse_float=_finite)
        json.dumps(document, ensure_ascii=False).encode()  # "\ud800" is JSON, but no text that anybody could send on
    except (ValueError, RecursionError) as error:
        raise RequestRefusedError(400, "the request is not JSON") from error
    if not isinstance(document, dict):
        raise RequestRefusedError(400, "the request is not a JSON object")
    return document


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is too large")
    return number


def _model(entry: ModelEntry) -> dict[str, Any]:
    return {
        "id": entry.name,
        "object": "model",
        "created": entry.created,
        "owned_by": "modelpack",
        "digest": entry.digest,
    }
