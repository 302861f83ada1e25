"""How requests and answers go over the wire of a fake registry: recorded, broken, cut, stalled and trickled."""

import contextlib
import json
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fakes.registry import FakeRegistry

_PIECE = 256 << 10


@dataclass
class Recorded:
    method: str
    path: str
    headers: dict[str, str]
    client: int = 0  # the port that it came from: one connection, one port
    body_size: int = 0
    sent: int = 0  # bytes of the answer's body

    @property
    def authorization(self) -> str | None:
        return self.headers.get("authorization")


@dataclass
class Fault:
    """What happens to the next ``times`` requests that match. Unset parts leave the request alone."""

    method: str
    pattern: str
    times: int = 1
    skip: int = 0  # let this many pass first
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    reset_after: int | None = None  # reset the connection after so many bytes of the body, sent or received
    cut_after: int | None = None  # hang up politely after so many bytes of the body
    stall_after: int | None = None  # send so many bytes of the body, then nothing
    stall_reading: bool = False  # take nothing of the request's body
    chunked: bool = False  # in transfer chunks, the last of which never comes
    trickle: float | None = None  # one byte of the body every so many seconds
    change_body: Callable[[bytes], bytes] | None = None
    ignore_range: bool = False


class Exchange(BaseHTTPRequestHandler):
    """One request after another, with whatever fault is due; what is asked is for ``handle_request``."""

    fake: "FakeRegistry"
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16

    def log_message(self, *args: object) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            self.close_connection = True

    def finish(self) -> None:
        # What a client that hung up has not read is nobody's trouble.
        with contextlib.suppress(OSError):
            super().finish()

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def _serve(self) -> None:
        headers = {key.lower(): value for key, value in self.headers.items()}
        recorded = self._recorded = Recorded(self.command, self.path, headers, self.client_address[1])
        with self.fake.lock:
            self.fake.requests.append(recorded)
        self.arrived = time.monotonic()
        self.fault = self.fake.take_fault(self.command, self.path)
        fault = self.fault
        if fault and fault.status is not None:
            # As real servers do when they refuse early: answer, and hang up on the body.
            if int(self.headers.get("Content-Length", 0)):
                self.close_connection = True
            self.answer(fault.status, fault.body, fault.headers)
            return
        length = int(self.headers.get("Content-Length", 0))
        limit = self.fake.quirks.largest_body
        if limit is not None and length > limit:
            self.close_connection = True
            self.answer(413, b"<html>Request Entity Too Large</html>", {})
            return
        if fault and fault.stall_reading:
            self.fake.released.wait()
            self._reset()
            return
        if fault and fault.reset_after is not None and length:
            part = self.rfile.read(min(fault.reset_after, length))
            recorded.body_size = len(part)
            self.keep_broken(part)
            self._reset()
            return
        chunked = self.headers.get("Transfer-Encoding", "") == "chunked"
        self.body = self._read_chunks() if chunked else self.rfile.read(length)
        recorded.body_size = len(self.body)
        if not chunked and len(self.body) < length:
            self.keep_broken(self.body)
            self.close_connection = True
            return
        self.handle_request()
        self.fake.after_request(self.command, self.path)

    def handle_request(self) -> None:
        """Answer what was asked; ``body`` has been read."""
        raise NotImplementedError

    def keep_broken(self, part: bytes) -> None:
        """So much of a body has come, and no more will."""

    def _read_chunks(self) -> bytes:
        # RFC 9112, section 7.1.
        content = bytearray()
        while size := int(self.rfile.readline().split(b";")[0], 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return bytes(content)

    # Answers

    def refuse(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        body = json.dumps({"errors": [{"code": code, "message": message}]}).encode()
        self.answer(status, body, {"Content-Type": "application/json", **(headers or {})})

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        fault = self.fault
        if fault and fault.change_body and self.command == "GET" and status < 300:
            body = fault.change_body(body)
        headers = {"Content-Length": str(len(body)), **(headers or {})}
        if fault and fault.chunked:
            headers = {**headers, "Transfer-Encoding": "chunked"}
            del headers["Content-Length"]
            body = b"%x\r\n%b" % (len(body), body)
            self.close_connection = True
        if fault and status < 300:
            headers |= fault.headers
        if self.fake.quirks.cookies:
            headers["Set-Cookie"] = "sid=cookie-canary; Path=/"
        if self.fake.quirks.warning:
            headers["Warning"] = f'299 - "{self.fake.quirks.warning}"'
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command == "HEAD" or status == 204:
            return
        if fault and fault.reset_after is not None:
            self._write(body[: fault.reset_after])
            self._reset()
        elif fault and fault.cut_after is not None:
            self._write(body[: fault.cut_after])
            self.close_connection = True
        elif fault and fault.stall_after is not None:
            self._write(body[: fault.stall_after])
            self.wfile.flush()
            self.fake.released.wait()
            self._reset()
        elif fault and fault.trickle is not None:
            for byte in body:
                self._write(bytes([byte]))
                self.wfile.flush()
                if self.fake.released.wait(fault.trickle):
                    return
        else:
            self._write(body)

    def _write(self, content: bytes) -> None:
        for start in range(0, len(content), _PIECE):
            piece = content[start : start + _PIECE]
            self.wfile.write(piece)
            self._recorded.sent += len(piece)

    def _reset(self) -> None:
        self.wfile.flush()
        # Linger of zero seconds: a RST instead of an orderly end.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()
