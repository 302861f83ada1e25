"""Connections that wait for the head of an answer no longer than they were told to, however it comes.

A socket's own limit is on the silence between two bytes: a head that trickles, or ``100 Continue`` again and again,
would keep a client for ever.
"""

import contextlib
import http.client
import socket
import threading
from collections.abc import Iterator

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection


class _PlainConnection(HTTPConnection):
    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]  # as urllib3 has it
        with _deadline(self.sock, self.timeout):
            return super().getresponse()


class _TLSConnection(HTTPSConnection):
    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]
        with _deadline(self.sock, self.timeout):
            return super().getresponse()


class _PlainPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _PlainConnection


class _TLSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


POOLS = {"http": _PlainPool, "https": _TLSPool}
"""For ``PoolManager.pool_classes_by_scheme``."""


@contextlib.contextmanager
def _deadline(connection: socket.socket | None, seconds: object) -> Iterator[None]:
    """Raises TimeoutError once what is read from the connection takes longer."""
    if connection is None or not isinstance(seconds, int | float):
        yield
        return
    is_over = threading.Event()

    def end() -> None:
        is_over.set()
        # The plain socket's: TLS's own would have what follows read as if it were not encrypted.
        with contextlib.suppress(OSError):
            socket.socket.shutdown(connection, socket.SHUT_RDWR)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        if is_over.is_set():
            raise TimeoutError("the head of an answer did not come in time") from error
        raise
    finally:
        timer.cancel()
    # A head that is cut short may look like a whole one.
    if is_over.is_set():
        raise TimeoutError("the head of an answer did not come in time")
