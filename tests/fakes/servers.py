"""Servers of our own, run in a thread for the length of a test."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import uvicorn

from modelpack.embedded_registry import create_app
from modelpack.store import Store


@contextlib.contextmanager
def running_registry(store: Store, *, read_only: bool = False) -> Iterator[str]:
    """The embedded registry over ``store`` on a free loopback port; yields ``127.0.0.1:PORT``."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        app = create_app(store, read_only=read_only, loopback_only=True)
        config = uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=2)
        server = uvicorn.Server(config)
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
