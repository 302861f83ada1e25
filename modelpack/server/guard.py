"""Who may talk to the server: checks of Host, Origin and the key before anything else sees a request."""

import hmac
import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from modelpack.server.errors import RequestRefusedError, refuse

_DEFAULT_PORTS = {"http": 80, "https": 443}
_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


def is_loopback(host: str) -> bool:
    """True for an address, or ``localhost``, that only this machine reaches."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """ASGI middleware.

    On loopback, where ``host`` is that address, a web page could reach the server through a name of its own that
    resolves to 127.0.0.1; its Host header gives it away. Pages of other origins may not ask at all (no CORS).
    ``/health`` needs no key.
    """

    def __init__(self, app: ASGIApp, *, host: str | None, api_key: str | None) -> None:
        self._app = app
        self._hosts = _LOOPBACK_NAMES | {host} if host is not None and is_loopback(host) else None
        self._key = None if api_key is None else api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refused := self._check(scope["path"], Headers(scope=scope))):
            await refuse(refused)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _check(self, path: str, headers: Headers) -> RequestRefusedError | None:
        host = _hostname(f"//{headers.get('host', '')}")
        if self._hosts is not None and host not in self._hosts:
            return RequestRefusedError(403, "this Host is not served here", code="host_refused")
        origin = headers.get("origin")
        if origin is not None and not _is_same_place(origin, headers.get("host", "")):
            return RequestRefusedError(403, "web pages of other origins are not served", code="origin_refused")
        if self._key is not None and path != "/health":
            scheme, _, credentials = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(credentials.strip().encode(), self._key):
                return RequestRefusedError(401, "a valid API key is required", code="invalid_api_key")
        return None


def _hostname(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _is_same_place(origin: str, host: str) -> bool:
    """Whether an Origin has the host name and the port of a Host header; each may leave its scheme's port out."""
    try:
        page = urlsplit(origin)
        here = urlsplit(f"{page.scheme}://{host}")
        default = _DEFAULT_PORTS[page.scheme]
        return bool(page.hostname) and (page.hostname, page.port or default) == (here.hostname, here.port or default)
    except (KeyError, ValueError):
        return False
