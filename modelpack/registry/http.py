"""One HTTP exchange: pools, TLS, proxies, time limits, and urllib3's errors as ours. No auth, redirect or retry."""

import math
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit

import urllib3
from urllib3 import exceptions

from modelpack import __version__
from modelpack.errors import InvalidContentError, InvalidInputError, RegistryUnavailableError, UntrustedError
from modelpack.registry import connections
from modelpack.registry.address import Origin, without_query
from modelpack.registry.network import NetworkSettings
from modelpack.registry.refusal import printable
from modelpack.registry.retry import TransientError
from modelpack.registry.traffic import Traffic

Body = bytes | Callable[[], Iterable[bytes]]
"""What to send: bytes, or a function that starts the body's chunks afresh for every try (with a Content-Length)."""

CHUNK_SIZE = 1 << 20
_STALLED_BELOW = 1 << 10
_WORTH_DRAINING = 1 << 16
_DRAINING_TIME = 1.0  # seconds
_EXCERPT_TIME = 10.0


class Response:
    """Status, headers and a body that streams. A context manager: leaving it gives the connection back or up."""

    def __init__(
        self, raw: urllib3.BaseHTTPResponse, method: str, url: str, *, network: NetworkSettings, traffic: Traffic
    ) -> None:
        self._raw = raw
        self._method = method
        self._stall_timeout, self._whole_timeout = network.stall_timeout, network.whole_timeout
        self._traffic = traffic
        self._body: bytes | None = None
        self.status = raw.status
        self.headers: Mapping[str, str] = raw.headers
        self.url = url

    @property
    def content_type(self) -> str:
        """The media type without parameters, in lower case; empty when there is none."""
        return self.headers.get("Content-Type", "").partition(";")[0].strip().lower()

    @property
    def content_length(self) -> int | None:
        text = self.headers.get("Content-Length", "")
        if not (text.isascii() and text.isdigit()):
            return None
        return int(text) if len(text) < 19 else sys.maxsize

    def header_lines(self, name: str) -> list[str]:
        """Every line of a header that may be repeated."""
        return self._raw.headers.getlist(name)

    def chunks(self) -> Iterator[bytes]:
        """The body as it arrives, in pieces of at most 1 MiB.

        Raises TransientError when the connection breaks, falls silent, or trickles.
        """
        window, received = time.monotonic(), 0
        self._watch(self._stall_timeout)
        while True:
            try:
                chunk = self._raw.read1(self._traffic.piece)
            except (exceptions.HTTPError, OSError) as error:
                raise _translate(error, self.url) from error
            if not chunk:
                return
            self._traffic.received(len(chunk))
            received += len(chunk)
            now = time.monotonic()
            if now - window > self._stall_timeout:
                if received < _STALLED_BELOW:
                    raise TransientError(f"{Origin.of(self.url)} sends almost nothing any more")
                window, received = now, 0
            yield chunk

    def _watch(self, silence: float) -> None:
        """From here on the connection may be silent for less time than a registry may take to begin its answer."""
        connection = getattr(self._raw, "connection", None)
        if connection is not None and connection.sock is not None:
            connection.sock.settimeout(min(silence, connection.sock.gettimeout() or silence))

    def load(self, limit: int) -> None:
        """Receive the body while a broken connection can still be tried again; ``read`` then has it."""
        try:
            self._body = self.read(limit)
        except BaseException:
            self._raw.close()
            raise

    def read(self, limit: int) -> bytes:
        """The whole body. Raises InvalidContentError when it is longer than ``limit`` bytes, and
        RegistryUnavailableError when it takes too long, but where a rate was asked for.
        """
        if self._body is not None:
            return self._body
        if (self.content_length or 0) > limit:
            raise self._too_long(limit)
        content = bytearray()
        deadline = math.inf if self._traffic.is_limited else time.monotonic() + self._whole_timeout
        for chunk in self.chunks():
            content += chunk
            if len(content) > limit:
                raise self._too_long(limit)
            if time.monotonic() > deadline:
                raise RegistryUnavailableError(f"{Origin.of(self.url)} does not come to the end of its answer")
        return bytes(content)

    def _too_long(self, limit: int) -> InvalidContentError:
        return InvalidContentError(f"{Origin.of(self.url)} answers with more than {limit} bytes")

    def excerpt(self, limit: int = 1 << 16) -> bytes:
        """The beginning of a body that only serves a message: never raises."""
        content, deadline = bytearray(), time.monotonic() + _EXCERPT_TIME
        try:
            for chunk in self.chunks():
                content += chunk
                if len(content) >= limit or time.monotonic() > deadline:
                    break
        except RegistryUnavailableError:
            pass
        return bytes(content[:limit])

    def close(self) -> None:
        """Read a short rest, so that the connection serves the next request; give up a connection with more to come."""
        if self._method == "HEAD":
            self._raw.drain_conn()
        elif (self.content_length or 0) <= _WORTH_DRAINING:
            self._drain()
        self._raw.close()

    def _drain(self) -> None:
        # What has no length may have no end, and what is short may never come: a new connection costs less.
        left, deadline = _WORTH_DRAINING, time.monotonic() + _DRAINING_TIME
        self._watch(_DRAINING_TIME)
        try:
            while left > 0 and time.monotonic() < deadline and (chunk := self._raw.read1(left)):
                left -= len(chunk)
        except (exceptions.HTTPError, OSError):
            pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._raw.close()


class Transport:
    """Connections for one registry and for the hosts it sends us to. Safe to use from several threads."""

    def __init__(self, network: NetworkSettings, registry: str) -> None:
        self.traffic = Traffic(network.rate_limit)
        self._network = network
        self._registry = registry
        self._pools: dict[tuple[str | None, bool], urllib3.PoolManager] = {}

    def send(self, method: str, url: str, *, headers: Mapping[str, str], body: Body | None = None) -> Response:
        """Send one request and read the head of the answer.

        Raises TransientError, RegistryUnavailableError when trying again cannot help, UntrustedError when the
        certificate is not trusted.
        """
        network = self._network
        origin = _checked_origin(url)
        timeout = urllib3.Timeout(connect=network.connect_timeout, read=network.read_timeout)
        if callable(body):
            # After the last byte the registry hashes and commits the whole blob before it answers.
            size = int(headers.get("Content-Length", 0))
            timeout = urllib3.Timeout(connect=network.send_timeout, read=network.read_timeout + size / (20 << 20))
        try:
            raw = self._pool(origin).urlopen(
                method,
                url,
                body=self.traffic.sending(body()) if callable(body) else body,
                headers={"User-Agent": f"modelpack/{__version__}", "Accept-Encoding": "identity", **headers},
                redirect=False,
                retries=False,
                preload_content=False,
                decode_content=False,
                timeout=timeout,
            )
        except exceptions.HTTPError as error:
            raise _translate(error, url) from error
        return Response(raw, method, url, network=network, traffic=self.traffic)

    def speaks_tls(self, origin: Origin) -> bool:
        """Whether TLS is known to be spoken there; False behind a proxy, past which nothing may be asked."""
        return self._network.proxy_for(origin) is None and speaks_tls(origin)

    def _pool(self, origin: Origin) -> urllib3.PoolManager:
        proxy = self._network.proxy_for(origin)
        key = proxy, origin.is_encrypted
        # Two threads may both make one: the second wins, the first serves its one request.
        if key not in self._pools:
            pool = self._make_pool(proxy, is_encrypted=origin.is_encrypted)
            pool.pool_classes_by_scheme = connections.POOLS
            self._pools[key] = pool
        return self._pools[key]

    def _make_pool(self, proxy: str | None, *, is_encrypted: bool) -> urllib3.PoolManager:
        # Reading the authorities takes some 30 ms, which the loopback interface does without.
        context = self._tls_context() if is_encrypted or (proxy or "").startswith("https:") else None
        if proxy is None:
            return urllib3.PoolManager(maxsize=16, blocksize=CHUNK_SIZE, ssl_context=context)
        parts = urlsplit(proxy)
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username else None
        try:
            return urllib3.ProxyManager(
                f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}",
                proxy_headers=urllib3.make_headers(proxy_basic_auth=user) if user else None,
                maxsize=16,
                blocksize=CHUNK_SIZE,
                ssl_context=context,
                proxy_ssl_context=context,
            )
        except exceptions.HTTPError as error:
            raise InvalidInputError(f"not a proxy that can be used: {parts.scheme}://{parts.hostname}") from error

    def _tls_context(self) -> ssl.SSLContext:
        certificates = self._network.certificates(self._registry)
        context = ssl.create_default_context()
        bundle = self._network.ca_bundle
        try:
            if bundle:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.load_verify_locations(**{"capath" if bundle.is_dir() else "cafile": str(bundle)})
            for authority in certificates.authorities:
                context.load_verify_locations(cafile=authority)
            if certificates.client_certificate:
                context.load_cert_chain(certificates.client_certificate, certificates.client_key)
        except (OSError, ssl.SSLError) as error:
            raise InvalidInputError(f"certificates for {self._registry} cannot be read: {error}") from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context


def _checked_origin(url: str) -> Origin:
    """Where ``url`` leads, which is what was asked before a secret was put beside it.

    Raises InvalidContentError where urllib3, which reads URLs in its own way, would go somewhere else.
    """
    origin = Origin.of(url)
    try:
        there = urllib3.util.parse_url(url)
    except exceptions.LocationParseError as error:
        raise InvalidContentError(f"not an address: {without_query(url)}") from error
    host = (there.host or "").strip("[]").lower()
    if (there.scheme, host, there.port or origin.port) != (origin.scheme, origin.host, origin.port):
        raise InvalidContentError(f"not an address that all read alike: {without_query(url)}")
    return origin


def speaks_tls(origin: Origin, *, timeout: float = 2.0) -> bool:
    """Whether a TLS handshake succeeds there, with whoever that may be: nothing is said after it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection((origin.host, origin.port), timeout=timeout) as plain,
            context.wrap_socket(plain, server_hostname=origin.host),
        ):
            return True
    except OSError:
        return False


def _translate(error: exceptions.HTTPError | OSError, url: str) -> Exception:  # noqa: PLR0911 - one per failure
    # Never str(error) of urllib3 alone: it may quote a URL with a signed query.
    place = str(Origin.of(url))
    cause: BaseException = error
    if isinstance(error, exceptions.ProxyError):
        place, cause = f"the proxy for {place}", error.original_error
    reason = cause.args[0] if isinstance(cause, exceptions.SSLError) and cause.args else cause
    match reason:
        case ssl.SSLCertVerificationError():
            return UntrustedError(f"the certificate of {place} is not trusted: {printable(reason.verify_message)}")
        case ssl.SSLError() if reason.reason == "WRONG_VERSION_NUMBER":
            return RegistryUnavailableError(f"{place} does not speak TLS")
        case exceptions.NameResolutionError():
            return TransientError(f"{place} cannot be found: its host name does not resolve")
        case exceptions.NewConnectionError():
            said = reason.__cause__ or reason.__context__
            return TransientError(f"{place} cannot be reached: {getattr(said, 'strerror', None) or 'no connection'}")
        case exceptions.ConnectTimeoutError():
            return TransientError(f"{place} does not answer: the connection timed out")
        case exceptions.ReadTimeoutError() | TimeoutError():
            return TransientError(f"{place} fell silent")
        case exceptions.LocationParseError() | exceptions.URLSchemeUnknown():
            return InvalidInputError(f"{place} is not an address")
        case _:
            return TransientError(f"the connection to {place} broke ({type(reason).__name__})")
