"""What can go wrong between a store and a registry, row by row.

Each row ends in success or in an error of the right kind, in its time, and never with a wrong file or a tag that names
something incomplete. When the fault is gone, the same command ends well.
"""

import email.utils
import hashlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from fakes.registry import FakeRegistry
from fakes.registry_flavours import FLAVOURS, Quirks

from modelpack.errors import (
    AccessDeniedError,
    DigestMismatchError,
    InvalidContentError,
    NotFoundError,
    RegistryRefusedError,
    RegistryUnavailableError,
)
from modelpack.oci.manifest import EMPTY_CONFIG, EMPTY_JSON, Descriptor, Manifest, image_manifest
from modelpack.registry.client import Repository, connect
from modelpack.registry.credentials import Credential, FixedCredentials
from modelpack.registry.network import NetworkSettings
from modelpack.registry.retry import Retries
from modelpack.store import Store
from modelpack.store.journal import SEGMENT_SIZE
from modelpack.transfer import copy

# Three segments on as many connections; and what comes in one stream.
LARGE = random.Random(1).randbytes(2 * SEGMENT_SIZE + 500_000)
SMALL = random.Random(2).randbytes(200_000)
LARGE_BLOB, SMALL_BLOB = (f"blobs/sha256:{hashlib.sha256(content).hexdigest()}" for content in (LARGE, SMALL))
ALICE = FixedCredentials(Credential("alice", "s3cret-canary"))
BUDGET = 10.0
NETWORK = NetworkSettings(connect_timeout=2, read_timeout=3, send_timeout=1, stall_timeout=0.5)

Prepare = Callable[[FakeRegistry], None]


@dataclass(frozen=True)
class Row:
    """A fault by its name: how it is brought about, and how the command then ends (None: well)."""

    name: str
    prepare: Prepare
    error: type[Exception] | tuple[type[Exception], ...] | None = None


def fault(method: str, pattern: str, **settings: object) -> Prepare:
    return lambda fake: fake.fail(method, pattern, **settings)


def quirk(**settings: object) -> Prepare:
    def prepare(fake: FakeRegistry) -> None:
        fake.quirks = Quirks(**settings)  # type: ignore[arg-type]  # a row's own keywords

    return prepare


def flip_one_bit(body: bytes) -> bytes:
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]


def lengthen(body: bytes) -> bytes:
    return body + b"!"


def tokens_die_early(fake: FakeRegistry) -> None:
    """Tokens live much shorter than their server says."""
    fake.auth, fake.early_death = "token", 0.1


def content_elsewhere(fake: FakeRegistry) -> None:
    fake.content_host = fake


def signed_urls_expire(fake: FakeRegistry) -> None:
    """Each signed URL works for one request."""
    fake.content_host = fake

    def after(method: str, path: str) -> None:
        if path.startswith("/content/"):
            fake.signatures.discard(path.partition("signature=")[2])

    fake.after_request = after


def foreign_realm(fake: FakeRegistry) -> None:
    fake.auth, fake.realm = "token", "https://tokens.example.net/token"


def pull_only(fake: FakeRegistry) -> None:
    fake.auth = "token"
    fake.grant = lambda scope: scope.replace("push", "")


def foreign_location(fake: FakeRegistry) -> None:
    fake.location = lambda path: f"https://uploads.example.net{path}"


def soon() -> str:
    return email.utils.formatdate(time.time() + 1, usegmt=True)


def lose_uploads(fake: FakeRegistry) -> None:
    """What the first POST began is gone by the time of the PUT."""
    done: list[bool] = []

    def after(method: str, path: str) -> None:
        if method == "POST" and not done:
            fake.uploads.clear()
            done.append(True)

    fake.after_request = after


def all_of(*parts: Prepare) -> Prepare:
    def prepare(fake: FakeRegistry) -> None:
        for part in parts:
            part(fake)

    return prepare


TOMORROW = {"Retry-After": "86400"}
NOTHING_KEPT = {"status": 202, "headers": {"Range": "0-0", "Location": "/v2/me/tiny/blobs/uploads/1"}}
ANOTHER = {"Docker-Content-Digest": "sha256:" + 64 * "0"}
LOOP = {"status": 307, "times": 999, "headers": {"Location": f"/v2/me/tiny/{LARGE_BLOB}"}}

PULLS = (
    Row("reset before the first byte", fault("GET", LARGE_BLOB, reset_after=0)),
    Row("reset inside a segment", fault("GET", LARGE_BLOB, times=3, reset_after=5_000_001)),
    Row("reset inside a stream", fault("GET", SMALL_BLOB, reset_after=70_001)),
    Row("reset for ever", fault("GET", LARGE_BLOB, times=999, reset_after=0), RegistryUnavailableError),
    Row("reset of the manifest", fault("GET", "manifests", times=3, reset_after=10)),
    Row("hung up with bytes to come", fault("GET", LARGE_BLOB, times=4, cut_after=9_999_999)),
    Row("transfer chunks cut short", fault("GET", SMALL_BLOB, chunked=True, cut_after=50_000)),
    Row("more bytes than promised", fault("GET", SMALL_BLOB, change_body=lengthen), DigestMismatchError),
    Row("one bit of a stream", fault("GET", SMALL_BLOB, change_body=flip_one_bit), DigestMismatchError),
    Row("one bit of a segment", fault("GET", LARGE_BLOB, change_body=flip_one_bit), DigestMismatchError),
    Row("one bit of a manifest", fault("GET", "manifests/sha256", change_body=flip_one_bit), DigestMismatchError),
    Row(
        "another range than asked for",
        fault("GET", LARGE_BLOB, headers={"Content-Range": "bytes 7-16777222/34054432"}),
        InvalidContentError,
    ),
    Row(
        "a range of a blob of another size",
        fault("GET", LARGE_BLOB, headers={"Content-Range": "bytes 0-16777215/99"}, times=3),
        (DigestMismatchError, InvalidContentError),
    ),
    Row("ranges are ignored", quirk(ignores_ranges=True)),
    Row("one range is ignored", fault("GET", LARGE_BLOB, skip=1, ignore_range=True)),
    Row("the blob is gone", fault("GET", LARGE_BLOB, times=999, status=404), NotFoundError),
    Row("416", fault("GET", LARGE_BLOB, status=416), DigestMismatchError),
    Row("five times 503", fault("GET", LARGE_BLOB, times=5, status=503)),
    Row("503 for ever", fault("GET", "", times=9999, status=503), RegistryUnavailableError),
    Row("429 with seconds", fault("GET", LARGE_BLOB, status=429, headers={"Retry-After": "1"})),
    Row("429 with a date", fault("GET", LARGE_BLOB, status=429, headers={"Retry-After": soon()})),
    Row("429 for a day", fault("GET", LARGE_BLOB, status=429, headers=TOMORROW), RegistryUnavailableError),
    Row("tokens die early", tokens_die_early),
    Row("a token server of a stranger", foreign_realm, AccessDeniedError),
    Row("content elsewhere", content_elsewhere),
    Row("signed URLs expire", signed_urls_expire),
    Row("redirects in a circle", fault("GET", LARGE_BLOB, **LOOP), RegistryRefusedError),
    Row("one connection of several falls silent", fault("GET", LARGE_BLOB, stall_after=1_000_000)),
    Row("silence from the first byte on", fault("GET", LARGE_BLOB, stall_after=0)),
    Row("a trickle", fault("GET", LARGE_BLOB, trickle=0.02)),
    Row("cookies and warnings", quirk(cookies=True, warning="the end is near")),
)

PUSHES = (
    Row("reset at the first byte", fault("PUT", "uploads", reset_after=0)),
    Row("reset inside a body", fault("PUT", "uploads", times=2, reset_after=7_000_001)),
    Row(
        "reset where no session survives",
        all_of(quirk(ends_broken=True), fault("PUT", "uploads", reset_after=99)),
    ),
    Row(
        "reset for ever without advance",
        all_of(quirk(keeps_broken=False), fault("PUT", "uploads", times=999, reset_after=99)),
        RegistryUnavailableError,
    ),
    Row("the session is gone", lose_uploads),
    Row("three times 503", fault("PUT", "uploads", times=3, status=503)),
    Row("429 at the start", fault("POST", "uploads", status=429, headers={"Retry-After": "1"})),
    Row("a quota", fault("PUT", "uploads", times=99, status=413), RegistryRefusedError),
    Row("the registry takes no byte", fault("PUT", "uploads", stall_reading=True)),
    Row("tokens die early", tokens_die_early),
    Row("a token for reading only", pull_only, AccessDeniedError),
    Row("a token server of a stranger", foreign_realm, AccessDeniedError),
    Row("an upload to another host", foreign_location, RegistryRefusedError),
    Row("PUT refused", quirk(put_refusal=405)),
    Row(
        "PUT refused, and PATCH keeps nothing",
        all_of(quirk(put_refusal=405), fault("PATCH", "uploads", times=99, **NOTHING_KEPT)),
        RegistryRefusedError,
    ),
    Row("503 for the manifest", fault("PUT", "manifests", times=3, status=503)),
    Row("reset of the manifest", fault("PUT", "manifests", times=2, reset_after=10)),
    Row("a manifest too large for it", fault("PUT", "manifests", times=99, status=413), RegistryRefusedError),
    Row("a manifest stored as another", fault("PUT", "manifests", times=99, headers=ANOTHER), DigestMismatchError),
)


@pytest.fixture
def fake() -> Iterator[FakeRegistry]:
    with FakeRegistry() as registry:
        yield registry


def remote(fake: FakeRegistry, name: str = "me/tiny") -> Repository:
    quick = Retries(sleep=lambda seconds: time.sleep(min(seconds, 0.05)))
    return connect(fake.address, credentials=ALICE, network=NETWORK, retries=quick).repository(name)


def fill(store: Store, tag: str) -> Manifest:
    layers = []
    for content in (LARGE, SMALL):
        layers.append(store.write_small(content, "application/octet-stream"))
    store.write_small(EMPTY_JSON, EMPTY_CONFIG.media_type)
    manifest = image_manifest(config=EMPTY_CONFIG, layers=layers, artifact_type="application/x.test")
    store.repository("tiny").put_manifest(manifest, tag=tag)
    return manifest


def check_store(store: Store) -> None:
    """Every blob that is visible has the content of its name."""
    for digest, status in store.blobs.all():
        store.rehash(Descriptor("application/octet-stream", digest, status.st_size))


def check_registry(fake: FakeRegistry) -> None:
    for digest, content in fake.blobs.items():
        assert digest == "sha256:" + hashlib.sha256(content).hexdigest()


def calm(fake: FakeRegistry) -> None:
    fake.faults.clear()
    fake.quirks, fake.auth, fake.realm, fake.content_host = Quirks(), "none", None, None
    fake.early_death = None
    fake.grant, fake.location = lambda scope: scope, lambda path: path
    fake.after_request = lambda method, path: None


def attempt(action: Callable[[], object], row: Row) -> None:
    begun = time.monotonic()
    if row.error:
        with pytest.raises(row.error):
            action()
    else:
        action()
    assert time.monotonic() - begun < BUDGET


@pytest.mark.parametrize("row", PULLS, ids=lambda row: row.name)
def test_pull(fake: FakeRegistry, tmp_path: Path, row: Row) -> None:
    manifest = fake.add_artifact("me/tiny", LARGE, SMALL, tag="v1")
    store = Store.open(tmp_path / "store")
    local = store.repository("tiny")

    def pull() -> None:
        source = remote(fake)
        copy(source, local, source.resolve("v1"), tag="v1")

    row.prepare(fake)
    attempt(pull, row)
    check_store(store)
    assert local.list_tags() == ([] if row.error else ["v1"])

    calm(fake)
    pull()
    check_store(store)
    assert local.resolve("v1").digest == manifest.digest
    assert list(store.partials.iterdir()) == []


@pytest.mark.parametrize("row", PUSHES, ids=lambda row: row.name)
def test_push(fake: FakeRegistry, tmp_path: Path, row: Row) -> None:
    store = Store.open(tmp_path / "store")
    manifest = fill(store, "v1")
    local = store.repository("tiny")

    def push() -> None:
        copy(local, remote(fake), manifest.descriptor, tag="v1")

    row.prepare(fake)
    attempt(push, row)
    check_registry(fake)
    if not row.error:
        assert fake.tags["me/tiny", "v1"] == str(manifest.digest)

    calm(fake)
    push()
    check_registry(fake)
    assert fake.tags["me/tiny", "v1"] == str(manifest.digest)
    assert fake.blobs[str(manifest.layers[0].digest)] == LARGE


@pytest.mark.parametrize("jobs", [1, 4])
def test_bodies_that_are_wanted_once_more_wait_for_no_connection_but_their_own(
    fake: FakeRegistry, tmp_path: Path, jobs: int
) -> None:
    """Each token ends between the POST and the PUT, so that all bodies are sent twice."""
    store = Store.open(tmp_path / "store")
    contents = [bytes([number]) * 300_000 for number in range(8)]
    layers = [store.write_small(content, "application/octet-stream") for content in contents]
    store.write_small(EMPTY_JSON, EMPTY_CONFIG.media_type)
    manifest = image_manifest(config=EMPTY_CONFIG, layers=layers, artifact_type="application/x.test")
    store.repository("tiny").put_manifest(manifest, tag="v1")
    fake.auth = "token"
    challenge = f'Bearer realm="{fake.url}/token",service="fake",scope="repository:me/tiny:pull,push"'
    for begun in range(30):
        fake.fail("PUT", f"uploads/{begun}[?]", status=401, headers={"WWW-Authenticate": challenge})
    done: list[bool] = []

    def push() -> None:
        copy(store.repository("tiny"), remote(fake), manifest.descriptor, tag="v1", jobs=jobs)
        done.append(True)

    thread = threading.Thread(target=push, daemon=True)
    thread.start()
    thread.join(timeout=BUDGET)

    assert done
    check_registry(fake)
    assert fake.tags["me/tiny", "v1"] == str(manifest.digest)


@pytest.mark.parametrize("quirks", FLAVOURS, ids=lambda quirks: quirks.name)
def test_signed_models_go_to_and_come_from_every_kind_of_registry(
    fake: FakeRegistry, tmp_path: Path, quirks: Quirks
) -> None:
    fake.quirks = quirks
    fake.referrers_api = quirks.name in ("Harbor",)
    here, there = Store.open(tmp_path / "here"), Store.open(tmp_path / "there")
    manifest = fill(here, "v1")
    signature = image_manifest(
        config=EMPTY_CONFIG,
        layers=[here.write_small(b"signature", "text/plain")],
        artifact_type="application/x.signature",
        subject=manifest.descriptor,
    )
    here.repository("tiny").put_manifest(signature)
    # A broken line in the middle of it, which each kind survives in its own way.
    fake.fail("PUT" if not quirks.put_refusal else "PATCH", "uploads", reset_after=5_000_000)
    fake.fail("GET", LARGE_BLOB, reset_after=5_000_000)

    copy(here.repository("tiny"), remote(fake), manifest.descriptor, tag="v1")
    check_registry(fake)
    source = remote(fake)
    copy(source, there.repository("tiny"), source.resolve("v1"), tag="v1")

    check_store(there)
    assert not any("cookie-canary" in one.headers.get("cookie", "") for one in fake.requests)
    found = [one.digest for one in there.repository("tiny").list_referrers(manifest.digest)]
    # ECR would need its profile, which goes by the name; GitLab has no place for a list of referrers.
    assert found == ([] if quirks.claims_referrers or quirks.resolves_digest_tags else [signature.digest])
