"""A registry in plain Python that speaks HTTP on a loopback port, remembers every request, and fails on demand."""

import re
import threading
from collections.abc import Callable
from http.server import ThreadingHTTPServer
from types import TracebackType
from typing import Self

from fakes.registry_api import handler
from fakes.registry_flavours import PLAIN, Quirks
from fakes.registry_wire import Fault, Recorded

from modelpack.oci.manifest import EMPTY_CONFIG, EMPTY_JSON, Descriptor, Manifest, image_manifest


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
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler(self))
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
