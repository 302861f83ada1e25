"""Running the registry until it is told to stop."""

import contextlib
import logging
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn

from modelpack.embedded_registry.access import Account
from modelpack.embedded_registry.app import create_app
from modelpack.errors import AccessDeniedError, InvalidInputError, MissingFileError
from modelpack.registry.client import Registry
from modelpack.store import Store

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve(
    store: Store,
    *,
    host: str = "127.0.0.1",
    port: int = 5000,
    read_only: bool = False,
    account: Account | None = None,
    certificate: tuple[Path, Path] | None = None,
    upstream: Registry | None = None,
    on_ready: Callable[[int], None] = lambda _: None,
) -> None:
    """Serve ``store`` on a TCP port, 0 for a free one, until SIGINT or SIGTERM; returns when all is closed.

    With a ``certificate`` (chain and unencrypted private key, PEM files) it speaks TLS. ``on_ready`` hears the port as
    soon as requests are answered. Requests in flight get a few seconds to end. Raises MissingFileError for a
    certificate that is not there, InvalidInputError when it or the address cannot be used, AccessDeniedError for a port
    that needs privileges. What is not in the store comes from ``upstream``.
    """
    app = create_app(store, read_only=read_only, loopback_only=host in _LOOPBACK, account=account, upstream=upstream)
    chain, key = _check_certificate(certificate) if certificate else (None, None)
    with _listen(host, port) as listener:
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level=logging.ERROR,  # many clients try TLS first on a loopback address, a warning each
            lifespan="off",
            timeout_keep_alive=75,
            timeout_graceful_shutdown=5,
            server_header=False,
            ssl_certfile=chain,
            ssl_keyfile=key,
        )
        _Server(config, on_ready).run(sockets=[listener])


def _check_certificate(certificate: tuple[Path, Path]) -> tuple[Path, Path]:
    chain, key = certificate
    for path in certificate:
        if not path.is_file():
            raise MissingFileError(f"there is no file {path}")
    try:
        # The empty password keeps OpenSSL from asking for one at the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(chain, key, password=b"")
    except (ssl.SSLError, OSError, ValueError) as error:
        raise InvalidInputError(f"cannot use the certificate {chain} with the key {key}: {error}") from error
    return chain, key


def _listen(host: str, port: int) -> socket.socket:
    try:
        listener = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, reuse_port=False, backlog=256
        )
        # asyncio does so only for sockets that it made itself; else every answer waits 40 ms for the client's ACK.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except PermissionError as error:
        raise AccessDeniedError(f"port {port} may not be used without privileges") from error
    except (OSError, OverflowError) as error:
        raise InvalidInputError(f"cannot listen on {host}:{port}: {error}") from error


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_ready: Callable[[int], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if sockets and not self.should_exit:
            self._on_ready(sockets[0].getsockname()[1])

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn raises the signal again when it has stopped; for us, being told to stop is no failure.
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        stopping = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, self.handle_exit) for number in stopping]
        try:
            yield
        finally:
            for number, handler in zip(stopping, before, strict=True):
                signal.signal(number, handler)
