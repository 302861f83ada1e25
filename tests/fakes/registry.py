"""A registry in plain Python that speaks HTTP on a loopback port, remembers every request, and fails on demand."""

import base64
import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, urlsplit

from modelpack.oci import strict_json
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import EMPTY_CONFIG, EMPTY_JSON, IMAGE_INDEX, Descriptor, Manifest, image_manifest

_PATH = re.compile(r"/v2/(?P<name>.+?)/(?P<kind>blobs/uploads|blobs|manifests|tags|referrers)/(?P<rest>.*)")


@dataclass
class Recorded:
    method: str
    path: str
    headers: dict[str, str]
    client: int = 0  # the port that it came from: one connection, one port
    body_size: int = 0

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


@dataclass(frozen=True)
class Quirks:
    """How a registry differs from the specification at its best. ``registry_flavours`` has those of real ones."""

    name: str = "plain"
    separate_repositories: bool = False  # a blob is in the repositories that it was pushed to or mounted in
    mounts: bool = True
    mount_status: int | None = None  # what every mount answers instead
    absolute_location: bool = False
    put_refusal: int | None = None  # a PUT with a body: only PATCH brings content
    patch_refusal: int | None = None
    largest_sized_patch: int | None = None  # more is a 416; in transfer chunks it passes
    patch_status: int = 202
    patch_keeps: str = "all"  # or "first", or "last"
    tells_status: bool = True  # GET of an upload says how far it is
    keeps_broken: bool = True  # bytes of a body whose connection broke stay in the session
    ends_broken: bool = False  # a broken body ends its session
    lying_416: bool = False  # distribution 2: the length of the blob and a short body
    resolves_digest_tags: bool = False  # GitLab: the tag sha256-<hex> is the manifest itself
    referrers_elsewhere: bool = False  # GHCR: the referrers API leads to a web page
    claims_referrers: bool = False  # ECR, once: OCI-Subject without the API
    ignores_ranges: bool = False
    cookies: bool = False
    warning: str = ""


PLAIN = Quirks()


class FakeRegistry:
    """``with FakeRegistry() as registry:``; what it holds and what it was asked are plain attributes."""

    def __init__(
        self,
        *,
        auth: str = "none",
        referrers_api: bool = True,
        subject_header: bool = True,
        page_size: int | None = None,
        realm: str | None = None,
        token_lifetime: float = 300,
        quirks: Quirks = PLAIN,
        content_host: "FakeRegistry | None" = None,
    ) -> None:
        self.quirks, self.content_host = quirks, content_host
        self.auth, self.referrers_api, self.subject_header = auth, referrers_api, subject_header
        self.page_size, self.realm, self.token_lifetime = page_size, realm, token_lifetime
        self.users = {"alice": "s3cret-canary"}
        self.refresh_tokens = {"refresh-canary": "alice"}
        self.anonymous_pull = False
        self.grant: Callable[[str], str] = lambda scope: scope  # what a token is really good for
        self.early_death: float | None = None  # how long tokens live in truth, in seconds
        self.tokens: dict[str, tuple[list[str], float]] = {}
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[tuple[str, str], tuple[str, bytes]] = {}
        self.tags: dict[tuple[str, str], str] = {}
        self.owners: dict[str, set[str]] = {}  # blob -> repositories, where these are separate
        self.signatures: set[str] = set()  # as a content host: the signed URLs that still work
        self.uploads: dict[str, bytearray] = {}
        self.location: Callable[[str], str] = lambda path: path
        self.requests: list[Recorded] = []
        self.before_answer: Callable[[int], None] = lambda client: None  # content begins to flow over a connection
        self.after_answer: Callable[[int], None] = lambda client: None
        self.after_request: Callable[[str, str], None] = lambda method, path: None
        self.faults: list[Fault] = []
        self.lock = threading.Lock()
        self.released = threading.Event()
        self._counter = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self.url = f"http://{self.address}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    # What tests put in and look at.

    def fail(self, method: str, pattern: str, **fault: object) -> None:
        self.faults.append(Fault(method, pattern, **fault))  # type: ignore[arg-type]  # a test's own keywords

    def add_blob(
        self, content: bytes, media_type: str = "application/octet-stream", *, repositories: tuple[str, ...] = ()
    ) -> Descriptor:
        descriptor = Descriptor.of(content, media_type)
        self.blobs[str(descriptor.digest)] = content
        self.owners.setdefault(str(descriptor.digest), set()).update(repositories)
        return descriptor

    def add_manifest(self, name: str, manifest: Manifest, *, tag: str | None = None) -> Descriptor:
        self.manifests[name, str(manifest.digest)] = (manifest.media_type, manifest.raw)
        if tag:
            self.tags[name, tag] = str(manifest.digest)
        return manifest.descriptor

    def add_artifact(
        self,
        name: str,
        *contents: bytes,
        tag: str | None = None,
        subject: Descriptor | None = None,
        artifact_type: str = "application/x.test",
    ) -> Manifest:
        self.add_blob(EMPTY_JSON, repositories=(name,))
        manifest = image_manifest(
            config=EMPTY_CONFIG,
            layers=[self.add_blob(content, repositories=(name,)) for content in contents],
            artifact_type=artifact_type,
            subject=subject,
        )
        self.add_manifest(name, manifest, tag=tag)
        return manifest

    def count(self, method: str, pattern: str = "") -> int:
        return sum(one.method == method and re.search(pattern, one.path) is not None for one in self.requests)

    # What the handler needs.

    def next_number(self) -> int:
        with self.lock:
            self._counter += 1
            return self._counter

    def take_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.method == method and re.search(fault.pattern, path):
                    if fault.skip:
                        fault.skip -= 1
                        return None
                    fault.times -= 1
                    return fault
        return None

    def referrers(self, name: str, subject: str) -> list[dict[str, object]]:
        found = []
        for (repository, _), (media_type, raw) in sorted(self.manifests.items()):
            if repository == name:
                manifest = Manifest.parse(raw, media_type=media_type)
                if manifest.subject and str(manifest.subject.digest) == subject:
                    found.append(manifest.descriptor.to_json())
        return found


def _handler(registry: FakeRegistry) -> type[BaseHTTPRequestHandler]:
    class Handler(_Handler):
        fake = registry

    return Handler


class _Handler(BaseHTTPRequestHandler):
    fake: FakeRegistry
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

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def _serve(self) -> None:
        headers = {key.lower(): value for key, value in self.headers.items()}
        recorded = Recorded(self.command, self.path, headers, self.client_address[1])
        with self.fake.lock:
            self.fake.requests.append(recorded)
        self._arrived = time.monotonic()
        self.fault = self.fake.take_fault(self.command, self.path)
        fault = self.fault
        if fault and fault.status is not None:
            # As real servers do when they refuse early: answer, and hang up on the body.
            if int(self.headers.get("Content-Length", 0)):
                self.close_connection = True
            self._answer(fault.status, fault.body, fault.headers)
            return
        length = int(self.headers.get("Content-Length", 0))
        if fault and fault.stall_reading:
            self.fake.released.wait()
            self._reset()
            return
        if fault and fault.reset_after is not None and length:
            part = self.rfile.read(min(fault.reset_after, length))
            recorded.body_size = len(part)
            self._keep_broken(part)
            self._reset()
            return
        chunked = self.headers.get("Transfer-Encoding", "") == "chunked"
        self.body = self._read_chunks() if chunked else self.rfile.read(length)
        recorded.body_size = len(self.body)
        path = urlsplit(self.path)
        self.query = parse_qs(path.query)
        if path.path == "/token":
            self._token()
        elif path.path.startswith("/content/"):
            self._signed_content(path.path.removeprefix("/content/"))
        elif self._is_authorised(path.path):
            self._route(path.path)
        self.fake.after_request(self.command, self.path)

    def _route(self, path: str) -> None:
        if path == "/v2/":
            self._answer(200, b"{}")
            return
        match = _PATH.fullmatch(path)
        if not match:
            self._refuse(404, "NAME_UNKNOWN", "nothing here")
            return
        name, rest = match["name"], match["rest"]
        match match["kind"]:
            case "blobs/uploads":
                self._upload(name, rest)
            case "blobs":
                self._blob(name, rest)
            case "manifests":
                self._manifest(name, rest)
            case "tags":
                self._tags(name)
            case "referrers":
                self._referrers(name, rest)

    # Blobs

    def _blob(self, name: str, digest: str) -> None:
        content = self.fake.blobs.get(digest)
        if content is None or (self.fake.quirks.separate_repositories and name not in self.fake.owners.get(digest, ())):
            self._refuse(404, "BLOB_UNKNOWN", "blob unknown to registry")
            return
        host = self.fake.content_host
        if host is not None and self.command == "GET":
            signature = f"signature-{self.fake.next_number()}"
            host.blobs[digest] = content
            host.signatures.add(signature)
            self._answer(307, b"", {"Location": f"{host.url}/content/{digest}?signature={signature}"})
            return
        self._content(digest, content)

    def _signed_content(self, digest: str) -> None:
        if self.query.get("signature", [""])[0] not in self.fake.signatures:
            self._answer(403, b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>")
            return
        self._content(digest, self.fake.blobs[digest])

    def _content(self, digest: str, content: bytes) -> None:
        headers = {"Content-Type": "application/octet-stream", "Docker-Content-Digest": digest}
        requested = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if requested and not self.fake.quirks.ignores_ranges and not (self.fault and self.fault.ignore_range):
            start, end = int(requested[1]), min(int(requested[2]), len(content) - 1)
            if start >= len(content):
                length = {"Content-Length": str(len(content))} if self.fake.quirks.lying_416 else {}
                self._answer(416, b'{"errors":[{"code":"RANGE_INVALID"}]}', length)
                return
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            status, content = 206, content[start : end + 1]
        else:
            status = 200
        self.fake.before_answer(self.client_address[1])
        self._answer(status, content, headers)
        self.fake.after_answer(self.client_address[1])

    def _upload(self, name: str, session: str) -> None:
        fake, quirks = self.fake, self.fake.quirks
        if self.command == "POST":
            self._begin_upload(name)
        elif session not in fake.uploads or (self.command == "GET" and not quirks.tells_status):
            self._refuse(404, "BLOB_UPLOAD_UNKNOWN", "no such upload")
        elif self.command == "GET":
            self._answer(204, b"", self._progress(name, session))
        elif self.command == "PATCH":
            self._patch(name, session)
        else:
            self._finish_upload(name, session)

    def _begin_upload(self, name: str) -> None:
        fake, quirks = self.fake, self.fake.quirks
        mounted, origin = self.query.get("mount", [""])[0], self.query.get("from", [""])[0]
        if mounted and quirks.mount_status:
            self._refuse(quirks.mount_status, "UNKNOWN", "mounts are broken today")
            return
        if mounted and quirks.mounts and origin in fake.owners.get(mounted, ()):
            fake.owners[mounted].add(name)
            self._answer(201, b"", {"Location": f"/v2/{name}/blobs/{mounted}", "Docker-Content-Digest": mounted})
            return
        session = str(fake.next_number())
        fake.uploads[session] = bytearray()
        self._answer(202, b"", {"Location": self._upload_location(name, session)})

    def _patch(self, name: str, session: str) -> None:
        quirks, kept = self.fake.quirks, self.fake.uploads[session]
        limit = quirks.largest_sized_patch
        if quirks.patch_refusal:
            self._refuse(quirks.patch_refusal, "UNSUPPORTED", "chunked uploads are not supported")
        elif limit is not None and "Content-Length" in self.headers and len(self.body) > limit:
            self._refuse(416, "BLOB_UPLOAD_INVALID", "range not satisfiable")
        else:
            if quirks.patch_keeps == "last":
                kept[:] = self.body
            elif quirks.patch_keeps == "all" or not kept:
                kept += self.body
            self._answer(quirks.patch_status, b"", self._progress(name, session))

    def _finish_upload(self, name: str, session: str) -> None:
        fake = self.fake
        digest = self.query.get("digest", [""])[0]
        if self.body and fake.quirks.put_refusal:
            self._answer(fake.quirks.put_refusal, b"", {})
            return
        begun = fake.uploads[session]
        start = re.fullmatch(r"(\d+)-(\d+)", self.headers.get("Content-Range", ""))
        if begun and self.body and (not start or int(start[1]) != len(begun)):
            self._refuse(416, "RANGE_INVALID", "out of order")
            return
        content = bytes(begun) + self.body
        if "sha256:" + hashlib.sha256(content).hexdigest() != digest:
            self._refuse(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
            return
        del fake.uploads[session]
        fake.blobs[digest] = content
        fake.owners.setdefault(digest, set()).add(name)
        self._answer(201, b"", {"Location": f"/v2/{name}/blobs/{digest}", "Docker-Content-Digest": digest})

    def _progress(self, name: str, session: str) -> dict[str, str]:
        last = max(0, len(self.fake.uploads[session]) - 1)
        return {"Location": self._upload_location(name, session), "Range": f"0-{last}"}

    def _upload_location(self, name: str, session: str) -> str:
        location = self.fake.location(f"/v2/{name}/blobs/uploads/{session}?state=a%2Fb")
        return f"{self.fake.url}{location}" if self.fake.quirks.absolute_location else location

    def _keep_broken(self, part: bytes) -> None:
        match = _PATH.fullmatch(urlsplit(self.path).path)
        if match and match["kind"] == "blobs/uploads":
            if self.fake.quirks.ends_broken:
                self.fake.uploads.pop(match["rest"], None)
            elif self.fake.quirks.keeps_broken and match["rest"] in self.fake.uploads:
                self.fake.uploads[match["rest"]] += part

    def _read_chunks(self) -> bytes:
        # RFC 9112, section 7.1.
        content = bytearray()
        while size := int(self.rfile.readline().split(b";")[0], 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return bytes(content)

    # Manifests

    def _manifest(self, name: str, selector: str) -> None:
        fake = self.fake
        if self.command == "PUT":
            self._put_manifest(name, selector)
            return
        with fake.lock:
            digest = selector if ":" in selector else fake.tags.get((name, selector), "")
            if fake.quirks.resolves_digest_tags and re.fullmatch(r"sha256-[0-9a-f]{64}", selector):
                digest = selector.replace("-", ":")
            found = fake.manifests.get((name, digest))
        if not found:
            self._refuse(404, "MANIFEST_UNKNOWN", "manifest unknown")
        elif self.command == "DELETE":
            with fake.lock:
                if ":" in selector:
                    fake.manifests.pop((name, digest))
                else:
                    fake.tags.pop((name, selector))
            self._answer(202, b"")
        else:
            self._answer(200, found[1], {"Content-Type": found[0], "Docker-Content-Digest": digest})

    def _put_manifest(self, name: str, selector: str) -> None:
        fake = self.fake
        manifest = Manifest.parse(self.body, media_type=self.headers["Content-Type"])
        missing = [blob for blob in manifest.blobs if str(blob.digest) not in fake.blobs]
        if missing:
            self._refuse(400, "MANIFEST_BLOB_UNKNOWN", f"blob unknown: {missing[0].digest}")
            return
        with fake.lock:
            fake.manifests[name, str(manifest.digest)] = (manifest.media_type, self.body)
            if ":" not in selector:
                fake.tags[name, selector] = str(manifest.digest)
        headers = {"Docker-Content-Digest": str(manifest.digest)}
        if manifest.subject and fake.subject_header and (fake.referrers_api or fake.quirks.claims_referrers):
            headers["OCI-Subject"] = str(manifest.subject.digest)
        self._answer(201, b"", headers)

    def _tags(self, name: str) -> None:
        tags = sorted(tag for repository, tag in self.fake.tags if repository == name)
        headers = {"Content-Type": "application/json"}
        if self.fake.page_size:
            after = self.query.get("last", [""])[0]
            tags = [tag for tag in tags if tag > after]
            if len(tags) > self.fake.page_size:
                tags = tags[: self.fake.page_size]
                headers["Link"] = f'</v2/{name}/tags/list?n={self.fake.page_size}&last={tags[-1]}>; rel="next"'
        self._answer(200, json.dumps({"name": name, "tags": tags}).encode(), headers)

    def _referrers(self, name: str, digest: str) -> None:
        if self.fake.quirks.referrers_elsewhere:
            self._answer(303, b"", {"Location": "https://web.invalid/packages"})
            return
        if not self.fake.referrers_api:
            self._answer(404, b"404 page not found\n", {"Content-Type": "text/plain"})
            return
        Digest(digest)
        index = {"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": self.fake.referrers(name, digest)}
        self._answer(200, strict_json.canonical(index), {"Content-Type": IMAGE_INDEX})

    # Auth

    def _is_authorised(self, path: str) -> bool:
        fake = self.fake
        header = self.headers.get("Authorization", "")
        if fake.auth == "none":
            return True
        if fake.auth == "basic":
            if self._user_of(header):
                return True
            self._refuse(401, "UNAUTHORIZED", "who are you", {"WWW-Authenticate": 'Basic realm="Registry"'})
            return False
        match = _PATH.fullmatch(path)
        needed = ""
        if match:
            action = {"GET": "pull", "HEAD": "pull", "DELETE": "delete"}.get(self.command, "push")
            needed = f"repository:{match['name']}:{action}"
        scopes, expires = fake.tokens.get(header.removeprefix("Bearer "), ([], 0.0))
        if self._arrived < expires and (not needed or _covers(scopes, needed)):
            return True
        scope = f',scope="{needed}"' if needed else ""
        realm = fake.realm or f"{fake.url}/token"
        challenge = f'Bearer realm="{realm}",service="fake"{scope}'
        self._refuse(401, "UNAUTHORIZED", "authentication required", {"WWW-Authenticate": challenge})
        return False

    def _user_of(self, header: str) -> str | None:
        try:
            user, _, password = base64.b64decode(header.removeprefix("Basic ")).decode().partition(":")
        except ValueError:
            return None
        return user if self.fake.users.get(user) == password else None

    def _token(self) -> None:
        fake = self.fake
        form = parse_qs(self.body.decode()) if self.command == "POST" else self.query
        header = self.headers.get("Authorization", "")
        if self.command == "POST":
            user = fake.refresh_tokens.get(form.get("refresh_token", [""])[0])
        else:
            user = self._user_of(header)
        if not user and (header or self.command == "POST" or not fake.anonymous_pull):
            self._answer(401, b'{"details": "incorrect username or password"}')
            return
        scopes = [fake.grant(scope) for text in form.get("scope", []) for scope in text.split(" ")]
        if not user:
            scopes = [scope.replace(",push", "") for scope in scopes]
        token = f"token-{fake.next_number()}"
        fake.tokens[token] = (scopes, time.monotonic() + (fake.early_death or fake.token_lifetime))
        self._answer(200, json.dumps({"token": token, "expires_in": fake.token_lifetime}).encode())

    # Answers

    def _refuse(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        body = json.dumps({"errors": [{"code": code, "message": message}]}).encode()
        self._answer(status, body, {"Content-Type": "application/json", **(headers or {})})

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
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
            self.wfile.write(body[: fault.reset_after])
            self._reset()
        elif fault and fault.cut_after is not None:
            self.wfile.write(body[: fault.cut_after])
            self.close_connection = True
        elif fault and fault.stall_after is not None:
            self.wfile.write(body[: fault.stall_after])
            self.wfile.flush()
            self.fake.released.wait()
            self._reset()
        elif fault and fault.trickle is not None:
            for byte in body:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                if self.fake.released.wait(fault.trickle):
                    return
        else:
            self.wfile.write(body)

    def _reset(self) -> None:
        self.wfile.flush()
        # Linger of zero seconds: a RST instead of an orderly end.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()


def _covers(scopes: list[str], needed: str) -> bool:
    repository, _, action = needed.rpartition(":")
    return any(
        scope.rpartition(":")[0] == repository and action in scope.rpartition(":")[2].split(",") for scope in scopes
    )
