"""Which request is answered by whom, and under which name of the store."""

import asyncio
import ipaddress
import logging
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from modelpack.embedded_registry import blobs, listings, manifests, uploads
from modelpack.embedded_registry.access import Account, unauthorized
from modelpack.embedded_registry.errors import RefusedError, translate
from modelpack.embedded_registry.requests import Call
from modelpack.embedded_registry.upstream import Upstream
from modelpack.errors import MalformedReferenceError, ModelpackError
from modelpack.oci.reference import Reference
from modelpack.registry.client import Registry
from modelpack.store import Store, StoreRepository

_log = logging.getLogger(__name__)

_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
_READING = frozenset({"GET", "HEAD"})

_WRONG_PASSWORD_DELAY = 0.5  # seconds: whoever tries many has to wait

Handler = Callable[[Call], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class _Endpoint:
    path: re.Pattern[str]
    handlers: dict[str, Handler]


_ENDPOINTS = (
    _Endpoint(
        re.compile(r"/v2/(?P<name>.+)/blobs/uploads/?"),
        {"POST": uploads.start},
    ),
    _Endpoint(
        re.compile(r"/v2/(?P<name>.+)/blobs/uploads/(?P<item>[^/]+)"),
        {"GET": uploads.status, "PATCH": uploads.append, "PUT": uploads.finish, "DELETE": uploads.cancel},
    ),
    _Endpoint(
        re.compile(r"/v2/(?P<name>.+)/blobs/(?P<item>[^/]+)"),
        {"GET": blobs.get, "HEAD": blobs.head, "DELETE": blobs.delete},
    ),
    _Endpoint(
        re.compile(r"/v2/(?P<name>.+)/manifests/(?P<item>[^/]+)"),
        {"GET": manifests.get, "HEAD": manifests.get, "PUT": manifests.put, "DELETE": manifests.delete},
    ),
    _Endpoint(re.compile(r"/v2/(?P<name>.+)/tags/list"), {"GET": listings.tags, "HEAD": listings.tags}),
    _Endpoint(
        re.compile(r"/v2/(?P<name>.+)/referrers/(?P<item>[^/]+)"),
        {"GET": listings.referrers, "HEAD": listings.referrers},
    ),
)


def create_app(
    store: Store,
    *,
    read_only: bool = False,
    loopback_only: bool = False,
    account: Account | None = None,
    upstream: Registry | None = None,
) -> Starlette:
    """The distribution API over ``store``.

    A name in a path is the store's repository of that name. Where the store has none, but has one of the name with
    the request's Host in front, that one is meant: so a machine serves what it built as ``HOST:PORT/name``.

    With ``loopback_only`` a Host that is not this machine's is refused: a page in a browser, whose name was pointed at
    127.0.0.1, cannot read or write models then. A page of another site can never write. With an ``account`` every
    request has to name it.

    With ``upstream`` it is read-only, and a name is that of a repository there: what is asked for comes from there into
    the store, see ``upstream``.
    """
    sessions = uploads.Uploads(store)
    behind = Upstream(store, upstream) if upstream else None
    read_only = read_only or behind is not None

    async def answer(request: Request) -> Response:
        if loopback_only and not _is_loopback(request.url.hostname):
            raise RefusedError(421, "DENIED", f"this registry serves localhost, not {request.url.hostname}")
        if request.method not in _READING:
            _check_origin(request)
        if account:
            await _require(account, request.headers.get("authorization"))
        path = request.url.path
        if path in ("/v2", "/v2/"):
            return JSONResponse({})
        if path == "/v2/_catalog":
            return await listings.catalog(request, store)
        for endpoint in _ENDPOINTS:
            if match := endpoint.path.fullmatch(path):
                break
        else:
            raise RefusedError(404, "UNSUPPORTED", "no such endpoint")
        handler = endpoint.handlers.get(request.method)
        if handler is None or (read_only and request.method not in _READING):
            allowed = endpoint.handlers.keys() & _READING if read_only else endpoint.handlers.keys()
            why = "this registry is read-only" if read_only else f"{request.method} is not possible here"
            raise RefusedError(405, "UNSUPPORTED", why, {"Allow": ", ".join(sorted(allowed))})
        name, item = match["name"], match.groupdict().get("item", "")
        repository = await run_in_threadpool(_repository, store, name, request.headers.get("host"), behind)
        return await handler(Call(request, store, sessions, repository, item, behind))

    async def guarded(request: Request) -> Response:
        try:
            response = await answer(request)
        except RefusedError as error:
            response = error.response()
        except ModelpackError as error:
            refusal = translate(error)
            if refusal.status >= 500:
                _log.warning("%s %s: %s", request.method, request.url.path, error)
            response = refusal.response()
        except ClientDisconnect:
            response = Response(status_code=499)  # Nobody reads it.
        response.headers["Docker-Distribution-API-Version"] = "registry/2.0"
        return response

    return Starlette(routes=[Route("/{path:path}", guarded, methods=_METHODS)])


def _check_origin(request: Request) -> None:
    # A browser sends a page's POST to any site without asking, and says in Origin whose page it is (RFC 6454, 7).
    origin = request.headers.get("origin")
    if origin is None:
        return
    site = origin.partition("://")[2].lower()
    if not site or site != request.headers.get("host", "").lower():
        raise RefusedError(403, "DENIED", f"a page of {origin[:120]!r} may not write here")


async def _require(account: Account, authorization: str | None) -> None:
    if authorization is None:
        raise unauthorized("this registry asks for a user and a password")
    if not account.admits(authorization):
        await asyncio.sleep(_WRONG_PASSWORD_DELAY)
        raise unauthorized("wrong user or password")


def _repository(store: Store, name: str, host: str | None, upstream: Upstream | None) -> StoreRepository:
    try:
        if upstream:
            return upstream.repository(name)
        repository = store.repository(name)
        with_host = store.repository(Reference.parse(f"{host}/{name}").name) if host else repository
    except MalformedReferenceError as error:
        raise RefusedError(400, "NAME_INVALID", str(error)) from error
    if not repository.exists() and with_host.exists():
        return with_host
    return repository


def _is_loopback(host: str | None) -> bool:
    # host.docker.internal is how a container reaches its host's loopback.
    if host in ("localhost", "host.docker.internal"):
        return True
    try:
        return ipaddress.ip_address((host or "").strip("[]")).is_loopback
    except ValueError:
        return False
