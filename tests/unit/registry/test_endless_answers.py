"""Answers without an end: what nobody needs of them is not waited for."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.certificates import make_certificate

from modelpack.errors import InvalidContentError, ModelpackError, NotFoundError, RegistryUnavailableError
from modelpack.registry.client import connect
from modelpack.registry.network import NetworkSettings
from modelpack.registry.retry import Retries

CHUNK = b"10000\r\n" + bytes(1 << 16) + b"\r\n"


class Endless:
    """A server that answers every request with a head, and then with a part of a body again and again."""

    def __init__(self, head: bytes, part: bytes, pause: float, *, tls: ssl.SSLContext | None = None) -> None:
        self.head, self.part, self.pause, self.tls = head, part, pause, tls
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
            if self.tls:
                connection = self.tls.wrap_socket(connection, server_side=True)
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


def asked(address: str, network: NetworkSettings) -> BaseException | None:
    """What came of a question; None where it is still being asked after a while."""
    registry = connect(address, retries=Retries(attempts=1), network=network)
    outcome: list[BaseException] = []

    def ask() -> None:
        try:
            registry.repository("me/tiny").list_tags()
        except ModelpackError as error:
            outcome.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout=15)
    return outcome[0] if outcome else None


def test_a_refusal_without_an_end_is_a_refusal(endless: Endless) -> None:
    assert isinstance(asked(endless.address, NetworkSettings(stall_timeout=1.0)), NotFoundError)


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize(
    ("head", "part", "pause"),
    [
        (b"", b"H", 0.1),
        (b"HTTP/1.1 200 OK\r\n", b"X", 0.1),
        (b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n", 0.1),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.0),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.1),
    ],
    ids=["a status that trickles", "a header that trickles", "headers that trickle", "100 at once", "100 by and by"],
)
def test_a_head_without_an_end_is_not_waited_for(
    head: bytes, part: bytes, pause: float, encrypted: bool, tmp_path: Path
) -> None:
    network, context = NetworkSettings(read_timeout=1), None
    if encrypted:
        chain, key = make_certificate(tmp_path)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain, key)
        network = NetworkSettings(read_timeout=1, certificate_directories=(tmp_path / "certs.d",))
    with contextlib.closing(Endless(head, part, pause, tls=context)) as server:
        if encrypted:
            place = tmp_path / "certs.d" / server.address
            place.mkdir(parents=True)
            (place / "ca.crt").write_bytes(chain.read_bytes())
        outcome = asked(server.address, network)

    assert isinstance(outcome, RegistryUnavailableError)
    assert "fell silent" in str(outcome)


@pytest.mark.parametrize("digits", [11, 40])
def test_a_length_that_nobody_needs_is_not_waited_for(digits: int) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * digits + b"\r\n\r\n"
    with contextlib.closing(Endless(head, b"", 1.0)) as server:
        outcome = asked(server.address, NetworkSettings())

    assert isinstance(outcome, InvalidContentError)
    assert "more than" in str(outcome)


def test_a_small_body_that_trickles_for_ever_is_given_up() -> None:
    """It never falls silent, and is never too long."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n"
    with contextlib.closing(Endless(head, b" " * 50, 0.05)) as server:
        outcome = asked(server.address, NetworkSettings(whole_timeout=1.0))

    assert isinstance(outcome, RegistryUnavailableError)
    assert "the end of its answer" in str(outcome)
