"""The Hugging Face hub's far end: a loopback HTTP server that answers the calls huggingface_hub makes for a model.

Repositories are dictionaries of files. Every request is recorded, so that a test can say what was asked and what not.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34
# The hub keeps files of these kinds in LFS and knows their sha256.
_LFS = (".safetensors", ".bin", ".model", ".gguf", ".pt")


@dataclass
class FakeHub:
    """``gated`` repositories answer 403 to everyone without ``token``; ``corrupt`` names files sent with one byte
    changed, each as often as its number says.
    """

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    token: str = "hf_secret"
    corrupt: dict[str, int] = field(default_factory=dict)
    status: int | None = None
    date: str = "2026-01-02T03:04:05.000Z"
    requests: list[tuple[str, str]] = field(default_factory=list)
    authorizations: set[str] = field(default_factory=set)
    endpoint: str = ""

    def downloaded(self) -> list[str]:
        """Paths of the files whose content was asked for."""
        return [
            path.split(f"/resolve/{COMMIT}/")[1]
            for method, path in self.requests
            if method == "GET" and "/resolve/" in path
        ]


@contextmanager
def serve_hub(hub: FakeHub) -> Iterator[FakeHub]:
    """Answer on a free loopback port until the context ends."""

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(send_body=False)

    def do_GET(self) -> None:
        self.answer(send_body=True)

    def answer(self, *, send_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        if "Authorization" in self.headers:
            self.hub.authorizations.add(self.headers["Authorization"])
        if self.hub.status:
            return self.send(self.hub.status, b"", {}, send_body)
        if path.startswith("/api/models/"):
            return self.answer_api(path.removeprefix("/api/models/"), send_body)
        repository, _, rest = path.removeprefix("/").partition("/resolve/")
        return self.answer_file(repository, *rest.split("/", 1), send_body)

    def answer_api(self, path: str, send_body: bool) -> None:
        owner, name, verb, revision = path.split("/", 3)
        repository = f"{owner}/{name}"
        if refusal := self.refusal(repository, revision):
            return self.send(*refusal, send_body)
        if verb == "commits":
            author = [{"user": "someone"}]
            commit = {"id": COMMIT, "authors": author, "date": self.hub.date, "title": "t", "message": ""}
            return self.send(200, json.dumps([commit]).encode(), {"Content-Type": "application/json"}, send_body)
        siblings = []
        for path_, content in self.hub.repositories[repository].items():
            entry: dict[str, object] = {"rfilename": path_, "size": len(content), "blobId": _git_blob(content)}
            if path_.endswith(_LFS):
                entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
            siblings.append(entry)
        info = {
            "id": repository,
            "modelId": repository,
            "sha": COMMIT,
            "siblings": siblings,
            "tags": [],
            "downloads": 0,
        }
        return self.send(200, json.dumps(info).encode(), {"Content-Type": "application/json"}, send_body)

    def answer_file(self, repository: str, revision: str, path: str, send_body: bool) -> None:
        if refusal := self.refusal(repository, revision):
            return self.send(*refusal, send_body)
        content = self.hub.repositories[repository].get(path)
        if content is None:
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound"}, send_body)
        etag = hashlib.sha256(content).hexdigest() if path.endswith(_LFS) else _git_blob(content)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if send_body and self.hub.corrupt.get(path, 0) > 0:
            self.hub.corrupt[path] -= 1
            content = bytes([content[0] ^ 1]) + content[1:]
        status = 200
        if send_body and (wanted := self.headers.get("Range")):
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            content, status = content[start:], 206
        return self.send(status, content, headers, send_body)

    def refusal(self, repository: str, revision: str) -> tuple[int, bytes, dict[str, str]] | None:
        if repository not in self.hub.repositories:
            return 404, b"", {"X-Error-Code": "RepoNotFound"}
        if repository in self.hub.gated and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return 403, b"", {"X-Error-Code": "GatedRepo"}
        if revision not in ("main", COMMIT):
            return 404, b"", {"X-Error-Code": "RevisionNotFound"}
        return None

    def send(self, status: int, body: bytes, headers: dict[str, str], send_body: bool) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if send_body:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def _git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
