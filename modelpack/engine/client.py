"""The door to httpx2: HTTP to a worker over its unix domain socket."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx2

BASE_URL = "http://worker"
"""Names nobody: the socket decides who answers."""

CANCEL = "/cancel"
"""POST here ends the answer that the worker is working on. Streamed ones end by closing the connection, too."""


def connect(socket: Path) -> "httpx2.Client":
    import httpx2

    return httpx2.Client(transport=httpx2.HTTPTransport(uds=str(socket)), base_url=BASE_URL, trust_env=False)


def connect_async(socket: Path) -> "httpx2.AsyncClient":
    import httpx2

    return httpx2.AsyncClient(transport=httpx2.AsyncHTTPTransport(uds=str(socket)), base_url=BASE_URL, trust_env=False)
