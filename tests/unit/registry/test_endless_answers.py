"""Answers without an end: what nobody needs of them is not waited for."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from modelpack.errors import NotFoundError
from modelpack.registry.client import connect
from modelpack.registry.retry import Retries

CHUNK = b"10000\r\n" + bytes(1 << 16) + b"\r\n"


class Endless:
    """A server that answers every request with a head, and then with a part of a body again and again."""

    def __init__(self, head: bytes, part: bytes, pause: float) -> None:
        self.head, self.part, self.pause = head, part, pause
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.stopped = threading.Event()
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                threading.Thread(target=self.answer, args=(connection,), daemon=True).start()

    def answer(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            received = b""
            while b"\r\n\r\n" not in received:
                received += connection.recv(1 << 16)
            connection.sendall(self.head)
            while not self.stopped.wait(self.pause):
                connection.sendall(self.part)

    def close(self) -> None:
        self.stopped.set()
        self.listener.close()


@pytest.fixture(
    params=[
        (b"Transfer-Encoding: chunked", CHUNK, 0.0),
        (b"Connection: close", bytes(1 << 16), 0.0),
        (b"Content-Length: 65536", b" ", 0.2),
        (b"Transfer-Encoding: chunked", b"1\r\n \r\n", 0.2),
    ],
    ids=["chunks", "until it closes", "a short one that trickles", "chunks that trickle"],
)
def endless(request: pytest.FixtureRequest) -> Iterator[Endless]:
    header, part, pause = request.param
    server = Endless(b"HTTP/1.1 404 Not Found\r\n" + header + b"\r\n\r\n", part, pause)
    yield server
    server.close()


def test_a_refusal_without_an_end_is_a_refusal(endless: Endless) -> None:
    from modelpack.registry.network import NetworkSettings

    network = NetworkSettings(stall_timeout=1.0)
    registry = connect(endless.address, retries=Retries(sleep=lambda _: None), network=network)
    begun = time.monotonic()
    outcome: list[BaseException] = []

    def ask() -> None:
        try:
            registry.repository("me/tiny").list_tags()
        except NotFoundError as error:
            outcome.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout=15)
    assert outcome, f"no answer after {time.monotonic() - begun:.0f} s"
