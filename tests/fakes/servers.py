"""Servers of our own, run in a thread for the length of a test."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import uvicorn

from modelpack.embedded_registry import Account, create_app
from modelpack.registry.client import Registry
from modelpack.store import Store


class _Server(uvicorn.Server):
    """One that stops as soon as it is told to: uvicorn's own looks ten times a second."""

    async def main_loop(self) -> None:
        while not self.should_exit:
            await asyncio.sleep(0.005)


@contextlib.contextmanager
def running_registry(
    store: Store, *, read_only: bool = False, account: Account | None = None, upstream: Registry | None = None
) -> Iterator[str]:
    """The embedded registry over ``store`` on a free loopback port; yields ``127.0.0.1:PORT``."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as ``serve`` does
        app = create_app(store, read_only=read_only, loopback_only=True, account=account, upstream=upstream)
        config = uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=2)
        server = _Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive(), "the registry did not start"
                time.sleep(0.005)
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=10)
            assert not thread.is_alive(), "the registry did not stop"
