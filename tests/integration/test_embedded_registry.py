"""The embedded registry as a client on the wire sees it (OCI distribution specification 1.1)."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from fakes.servers import running_registry
from fakes.wire import OCTETS, Client

from modelpack.oci.digest import Digest
from modelpack.oci.manifest import (
    EMPTY_CONFIG,
    EMPTY_JSON,
    IMAGE_INDEX,
    IMAGE_MANIFEST,
    MAX_MANIFEST_SIZE,
    Descriptor,
    image_index,
    image_manifest,
)
from modelpack.store import Store
from modelpack.store.leases import held_digests

ROOT = Path(__file__).parents[2]
CONTENT = bytes(range(256)) * 16
DIGEST = str(Digest.of(CONTENT))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


@pytest.fixture
def client(store: Store) -> Iterator[Client]:
    with running_registry(store) as address:
        yield Client(address)


def test_the_registry_says_that_it_is_one(client: Client) -> None:
    answer = client("GET", "/v2/")
    assert (answer.status, answer.json) == (200, {})
    assert answer.headers["Docker-Distribution-API-Version"] == "registry/2.0"
    assert client("GET", "/v3/").code == "UNSUPPORTED"


def test_what_is_pushed_can_be_pulled(client: Client, store: Store) -> None:
    manifest = client.push_model(CONTENT, "v1")

    for selector in ("v1", str(manifest.digest)):
        answer = client("GET", f"/v2/me/tiny/manifests/{selector}")
        assert answer.body == manifest.raw
        assert answer.headers["Content-Type"] == IMAGE_MANIFEST
        assert answer.headers["Docker-Content-Digest"] == str(manifest.digest)
        head = client("HEAD", f"/v2/me/tiny/manifests/{selector}")
        assert (head.status, head.body) == (200, b"")
        assert head.headers["Content-Length"] == str(len(manifest.raw))
    blob = client("GET", f"/v2/me/tiny/blobs/{DIGEST}")
    assert blob.body == CONTENT
    assert blob.headers["Docker-Content-Digest"] == DIGEST
    head = client("HEAD", f"/v2/me/tiny/blobs/{DIGEST}")
    assert (head.status, head.headers["Content-Length"]) == (200, str(len(CONTENT)))
    assert [str(stored.reference) for stored in store.list()] == ["me/tiny:v1"]


def test_what_is_missing_is_named(client: Client) -> None:
    absent = Digest.of(b"absent")
    assert client("HEAD", f"/v2/me/tiny/blobs/{absent}").status == 404
    assert client("GET", f"/v2/me/tiny/blobs/{absent}").code == "BLOB_UNKNOWN"
    assert client("GET", "/v2/me/tiny/manifests/v1").code == "MANIFEST_UNKNOWN"
    assert client("GET", f"/v2/me/tiny/manifests/{absent}").code == "MANIFEST_UNKNOWN"
    assert client("GET", "/v2/me/tiny/tags/list").code == "NAME_UNKNOWN"
    assert client("DELETE", "/v2/me/tiny/manifests/v1").status == 404


@pytest.mark.parametrize("name", ["UPPER/case", "a/../b", "a//b", "%2e%2e/etc", "a/./b", "x" * 300, "a\u00e9", "a%00b"])
def test_a_name_outside_the_grammar_is_refused(client: Client, name: str) -> None:
    answer = client("GET", f"/v2/{name.replace(chr(0xE9), '%C3%A9')}/manifests/v1")
    assert (answer.status, answer.code) == (400, "NAME_INVALID")


@pytest.mark.parametrize("digest", ["sha256:zz", "sha512:" + "a" * 128, "sha256:" + "A" * 64, "sha256:..%2f..%2fetc"])
def test_a_digest_outside_the_grammar_is_refused(client: Client, digest: str) -> None:
    assert client("GET", f"/v2/me/tiny/blobs/{digest}").status in (400, 404)
    assert client("POST", f"/v2/me/tiny/blobs/uploads/?digest={digest}", b"x").code == "DIGEST_INVALID"


@pytest.mark.parametrize(
    ("asked", "status", "start", "end"),
    [
        ("bytes=0-99", 206, 0, 100),
        ("bytes=100-", 206, 100, 4096),
        ("bytes=-10", 206, 4086, 4096),
        ("bytes=-9999", 206, 0, 4096),
        ("bytes=4000-9999", 206, 4000, 4096),
        ("bytes=4095-4095", 206, 4095, 4096),
        ("bytes=0-1,5-6", 200, 0, 4096),
        ("bytes=9-3", 200, 0, 4096),
        ("bytes=-", 200, 0, 4096),
        ("lines=1-2", 200, 0, 4096),
    ],
)
def test_a_range_gives_its_part(client: Client, asked: str, status: int, start: int, end: int) -> None:
    client.push_blob(CONTENT)
    answer = client("GET", f"/v2/me/tiny/blobs/{DIGEST}", Range=asked)
    assert (answer.status, answer.body) == (status, CONTENT[start:end])
    assert answer.headers.get("Content-Range") == (f"bytes {start}-{end - 1}/4096" if status == 206 else None)


@pytest.mark.parametrize("asked", ["bytes=4096-", "bytes=5000-6000", "bytes=-0"])
def test_a_range_beyond_the_end_is_refused(client: Client, asked: str) -> None:
    client.push_blob(CONTENT)
    answer = client("GET", f"/v2/me/tiny/blobs/{DIGEST}", Range=asked)
    assert (answer.status, answer.headers["Content-Range"]) == (416, "bytes */4096")
    assert answer.headers["Content-Length"] == str(len(answer.body))


def test_a_blob_goes_up_in_one_piece_after_post(client: Client) -> None:
    session = client("POST", "/v2/me/tiny/blobs/uploads/")
    assert session.status == 202
    location = session.headers["Location"]
    answer = client("PUT", f"{location}?digest={DIGEST}", CONTENT)
    assert answer.status == 201
    assert client("GET", answer.headers["Location"]).body == CONTENT
    assert client("GET", location).code == "BLOB_UPLOAD_UNKNOWN"


def test_a_blob_goes_up_in_chunks_in_order(client: Client, store: Store) -> None:
    location = client("POST", "/v2/me/tiny/blobs/uploads/").headers["Location"]
    first = client("PATCH", location, CONTENT[:1000], Content_Range="0-999")
    assert (first.status, first.headers["Range"]) == (202, "0-999")

    for out_of_order in ("0-999", "1500-1999", "bytes 1000-1999/4096", "1000-1500"):
        answer = client("PATCH", location, CONTENT[1000:2000], Content_Range=out_of_order)
        assert (answer.status, answer.headers["Range"]) == (416, "0-999")
        assert answer.headers["Location"] == location

    status = client("GET", location)
    assert (status.status, status.headers["Range"]) == (204, "0-999")
    assert client("PATCH", location, CONTENT[1000:3000]).headers["Range"] == "0-2999"
    assert client("PUT", f"{location}?digest={DIGEST}", CONTENT[3000:], Content_Range="3000-4095").status == 201
    assert client("GET", f"/v2/me/tiny/blobs/{DIGEST}").body == CONTENT
    assert list(store.partials.iterdir()) == []


def test_an_upload_of_the_wrong_content_is_refused_and_gone(client: Client, store: Store) -> None:
    location = client("POST", "/v2/me/tiny/blobs/uploads/").headers["Location"]
    answer = client("PUT", f"{location}?digest={DIGEST}", CONTENT[:-1] + b"x")
    assert (answer.status, answer.code) == (400, "DIGEST_INVALID")
    assert client("HEAD", f"/v2/me/tiny/blobs/{DIGEST}").status == 404
    assert client("PUT", f"{location}?digest={DIGEST}", CONTENT).status == 404
    assert list(store.partials.iterdir()) == []


def test_a_cancelled_upload_is_gone(client: Client, store: Store) -> None:
    location = client("POST", "/v2/me/tiny/blobs/uploads/").headers["Location"]
    client("PATCH", location, CONTENT[:1000])
    assert client("DELETE", location).status == 204
    assert client("GET", location).status == 404
    assert client("DELETE", "/v2/me/tiny/blobs/uploads/..%2f..%2findex.json").status == 404
    assert list(store.partials.iterdir()) == []


def test_an_upload_on_its_way_is_known_however_many_came_after_it(client: Client, store: Store) -> None:
    begun = [client("POST", "/v2/me/tiny/blobs/uploads/").headers["Location"] for _ in range(3)]
    bodies = []
    for location in begun:
        # It has sent half of its body when seventy others begin.
        connection = http.client.HTTPConnection(client.address, timeout=20)
        connection.putrequest("PATCH", location)
        connection.putheader("Content-Length", str(len(CONTENT)))
        connection.endheaders(CONTENT[:1000])
        bodies.append(connection)
    others = [client("POST", "/v2/me/tiny/blobs/uploads/").headers["Location"] for _ in range(70)]

    assert {client("GET", location).status for location in (*begun, *others)} == {204}

    for connection, location in zip(bodies, begun, strict=True):
        with closing(connection):
            connection.send(CONTENT[1000:])
            assert connection.getresponse().status == 202
        assert client("PUT", f"{location}?digest={DIGEST}").status == 201
    assert {client("PUT", f"{location}?digest={DIGEST}", CONTENT).status for location in others} == {201}
    store.rehash(Descriptor(OCTETS, Digest(DIGEST), len(CONTENT)))
    assert list(store.partials.iterdir()) == []


@pytest.mark.parametrize("method", ["PATCH", "PUT", "DELETE"])
def test_who_waited_for_an_upload_to_end_finds_none(client: Client, store: Store, method: str) -> None:
    location = client("POST", "/v2/me/tiny/blobs/uploads/").headers["Location"]
    host, port = client.address.split(":")
    with socket.create_connection((host, int(port))) as finishing, ThreadPoolExecutor() as threads:
        head = f"PUT {location}?digest={DIGEST} HTTP/1.1\r\nHost: {client.address}\r\nContent-Length: 4096\r\n\r\n"
        finishing.sendall(head.encode() + CONTENT[:1500])
        time.sleep(0.2)
        path = f"{location}?digest={DIGEST}" if method == "PUT" else location
        late = threads.submit(client, method, path, b"more" if method != "DELETE" else None)
        time.sleep(0.2)
        assert not late.done(), "it has to wait"
        finishing.sendall(CONTENT[1500:])
        assert finishing.recv(100).startswith(b"HTTP/1.1 201")
        assert (late.result().status, late.result().code) == (404, "BLOB_UPLOAD_UNKNOWN")
    store.rehash(Descriptor.of(CONTENT, OCTETS))
    assert list(store.partials.iterdir()) == []


def test_a_connection_that_breaks_loses_nothing_that_arrived(client: Client) -> None:
    location = client("POST", "/v2/me/tiny/blobs/uploads/").headers["Location"]
    host, port = client.address.split(":")
    with socket.create_connection((host, int(port))) as wire:
        wire.sendall(f"PATCH {location} HTTP/1.1\r\nHost: {client.address}\r\nContent-Length: 4096\r\n\r\n".encode())
        wire.sendall(CONTENT[:1500])
        time.sleep(0.2)

    deadline = time.monotonic() + 5
    while (status := client("GET", location)).headers["Range"] != "0-1499":
        assert time.monotonic() < deadline, status.headers["Range"]
        time.sleep(0.02)
    assert client("PATCH", location, CONTENT[1500:], Content_Range="1500-4095").status == 202
    assert client("PUT", f"{location}?digest={DIGEST}").status == 201


def test_a_body_in_chunked_transfer_encoding_is_taken(client: Client) -> None:
    location = client("POST", "/v2/me/tiny/blobs/uploads/").headers["Location"]
    with closing(http.client.HTTPConnection(client.address)) as connection:
        connection.request("PATCH", location, iter([CONTENT[:100], CONTENT[100:]]), encode_chunked=True)
        assert connection.getresponse().status == 202
    assert client("PUT", f"{location}?digest={DIGEST}").status == 201


def test_a_blob_can_be_mounted_from_another_repository(client: Client) -> None:
    client.push_blob(CONTENT, "me/tiny")
    answer = client("POST", f"/v2/you/copy/blobs/uploads/?mount={DIGEST}&from=me/tiny")
    assert (answer.status, answer.headers["Location"]) == (201, f"/v2/you/copy/blobs/{DIGEST}")
    absent = client("POST", f"/v2/you/copy/blobs/uploads/?mount={Digest.of(b'absent')}&from=me/tiny")
    assert absent.status == 202
    assert "/v2/you/copy/blobs/uploads/" in absent.headers["Location"]


def test_asking_for_what_is_missing_holds_nothing(client: Client, store: Store) -> None:
    absent = Digest.of(b"absent")
    client.push_blob(CONTENT)
    assert client("HEAD", f"/v2/me/tiny/blobs/{absent}").status == 404
    assert client("POST", f"/v2/you/copy/blobs/uploads/?mount={absent}&from=me/tiny").status == 202
    assert client("HEAD", f"/v2/me/tiny/blobs/{DIGEST}").status == 200
    assert held_digests(store.root / "locks") == {Digest(DIGEST)}


def test_a_manifest_needs_its_blobs(client: Client) -> None:
    layer = Descriptor.of(b"never pushed", OCTETS)
    client.push_blob(EMPTY_JSON)
    answer = client.push_manifest(image_manifest(config=EMPTY_CONFIG, layers=[layer]), "v1")
    assert (answer.status, answer.code) == (400, "MANIFEST_BLOB_UNKNOWN")
    assert client("GET", "/v2/me/tiny/manifests/v1").status == 404


def test_a_manifest_that_is_none_is_refused(client: Client) -> None:
    model = client.push_model(CONTENT, "v1")
    for raw, content_type, status, code in (
        (b"not json", IMAGE_MANIFEST, 400, "MANIFEST_INVALID"),
        (model.raw, IMAGE_INDEX, 400, "MANIFEST_INVALID"),
        (b" " * (MAX_MANIFEST_SIZE + 1), IMAGE_MANIFEST, 413, "SIZE_INVALID"),
    ):
        answer = client("PUT", "/v2/me/tiny/manifests/v2", raw, Content_Type=content_type)
        assert (answer.status, answer.code) == (status, code)
    wrong = client.push_manifest(model, str(Digest.of(b"other")))
    assert (wrong.status, wrong.code) == (400, "DIGEST_INVALID")
    assert client.push_manifest(model, "not%20a%20tag").status == 400
    assert client("GET", "/v2/me/tiny/tags/list").json["tags"] == ["v1"]


def test_a_manifest_of_three_mebibytes_is_taken(client: Client) -> None:
    client.push_blob(EMPTY_JSON)
    large = image_manifest(config=EMPTY_CONFIG, layers=[EMPTY_CONFIG], annotations={"a": "x" * (3 << 20)})
    assert client.push_manifest(large, "large").status == 201
    assert client("GET", "/v2/me/tiny/manifests/large").body == large.raw


def test_one_push_by_digest_can_set_several_tags(client: Client) -> None:
    model = client.push_model(CONTENT, "")
    answer = client.push_manifest(model, f"{model.digest}?tag=v1&tag=latest")
    assert (answer.status, answer.headers["OCI-Tag"]) == (201, "v1, latest")
    assert client("GET", "/v2/me/tiny/tags/list").json == {"name": "me/tiny", "tags": ["latest", "v1"]}


def test_an_index_and_its_children_are_served(client: Client) -> None:
    child = client.push_model(CONTENT, "")
    index = image_index([child.descriptor])
    assert client.push_manifest(index, "all").status == 201
    assert client("GET", "/v2/me/tiny/manifests/all").headers["Content-Type"] == IMAGE_INDEX
    assert client("GET", f"/v2/me/tiny/manifests/{child.digest}").status == 200
    lost = image_index([Descriptor.of(b"{}{}", IMAGE_MANIFEST)])
    assert client.push_manifest(lost, "lost").code == "MANIFEST_BLOB_UNKNOWN"


def test_tags_come_in_pages(client: Client) -> None:
    for tag in ("c", "a", "B", "d", "b"):
        client.push_model(CONTENT, tag)
    assert client("GET", "/v2/me/tiny/tags/list").json["tags"] == ["B", "a", "b", "c", "d"]

    seen: list[str] = []
    path: str | None = "/v2/me/tiny/tags/list?n=2"
    while path:
        answer = client("GET", path)
        assert len(answer.json["tags"]) <= 2
        seen += answer.json["tags"]
        link = answer.headers.get("Link")
        assert link is None or link.endswith('>; rel="next"')
        path = link[1 : link.index(">")] if link else None
    assert seen == ["B", "a", "b", "c", "d"]
    assert client("GET", "/v2/me/tiny/tags/list?n=0").json["tags"] == []
    assert client("GET", "/v2/me/tiny/tags/list?n=many").status == 400


def test_referrers_are_listed_and_filtered(client: Client) -> None:
    model = client.push_model(CONTENT, "v1")
    subject = Descriptor(model.media_type, model.digest, len(model.raw))
    path = f"/v2/me/tiny/referrers/{model.digest}"
    empty = client("GET", path)
    assert (empty.status, empty.headers["Content-Type"]) == (200, IMAGE_INDEX)
    assert empty.json == {"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": []}

    report = client.push_model(b"report", "", subject=subject, kind="test/report")
    signature = client.push_model(b"signature", "", subject=subject, kind="test/signature")
    answer = client.push_manifest(report, str(report.digest))
    assert answer.headers["OCI-Subject"] == str(model.digest)

    everything = client("GET", path).json["manifests"]
    assert {item["digest"] for item in everything} == {str(report.digest), str(signature.digest)}
    filtered = client("GET", f"{path}?artifactType=test/report")
    assert filtered.headers["OCI-Filters-Applied"] == "artifactType"
    assert filtered.json["manifests"] == [
        {
            "mediaType": IMAGE_MANIFEST,
            "digest": str(report.digest),
            "size": len(report.raw),
            "artifactType": "test/report",
            "annotations": {"k": "v"},
        }
    ]
    assert client("GET", "/v2/me/tiny/referrers/not-a-digest").status == 400


def test_a_referrer_may_come_before_its_subject(client: Client) -> None:
    subject = Descriptor.of(b"later", IMAGE_MANIFEST)
    early = client.push_model(b"early", "", subject=subject)
    listed = client("GET", f"/v2/me/tiny/referrers/{subject.digest}").json["manifests"]
    assert [item["digest"] for item in listed] == [str(early.digest)]


def test_a_tag_a_manifest_and_a_blob_can_be_deleted(client: Client) -> None:
    model = client.push_model(CONTENT, "v1")
    client.push_manifest(model, "v2")

    assert client("DELETE", "/v2/me/tiny/manifests/v1").status == 202
    assert client("GET", "/v2/me/tiny/tags/list").json["tags"] == ["v2"]
    assert client("DELETE", "/v2/me/tiny/manifests/v2").status == 202
    assert client("GET", f"/v2/me/tiny/manifests/{model.digest}").status == 200, "its last tag is gone, it is not"
    in_use = client("DELETE", f"/v2/me/tiny/blobs/{DIGEST}")
    assert (in_use.status, in_use.code) == (405, "UNSUPPORTED")
    assert client("DELETE", f"/v2/me/tiny/manifests/{model.digest}").status == 202
    assert client("GET", f"/v2/me/tiny/manifests/{model.digest}").status == 404
    assert client("DELETE", f"/v2/me/tiny/blobs/{DIGEST}").status == 202
    assert client("GET", f"/v2/me/tiny/blobs/{DIGEST}").status == 404


def test_a_read_only_registry_takes_nothing(store: Store) -> None:
    with running_registry(store) as address:
        Client(address).push_model(CONTENT, "v1")
    with running_registry(store, read_only=True) as address:
        client = Client(address)
        assert client("GET", "/v2/me/tiny/manifests/v1").status == 200
        for method, path in (
            ("POST", "blobs/uploads/"),
            ("PUT", "manifests/v2"),
            ("DELETE", "manifests/v1"),
            ("DELETE", f"blobs/{DIGEST}"),
        ):
            answer = client(method, f"/v2/me/tiny/{path}", b"{}" if method != "DELETE" else None)
            assert (answer.status, answer.code) == (405, "UNSUPPORTED")
    assert [str(stored.reference) for stored in store.list()] == ["me/tiny:v1"]


def test_what_was_built_under_this_hosts_name_is_served_without_it(store: Store, client: Client) -> None:
    repository = store.repository(f"{client.address}/me/built")
    layer = store.write_small(CONTENT, OCTETS)
    store.write_small(EMPTY_JSON, EMPTY_CONFIG.media_type)
    manifest = image_manifest(config=EMPTY_CONFIG, layers=[layer], artifact_type="a/b")
    repository.put_manifest(manifest, tag="v1")

    assert client("GET", "/v2/me/built/manifests/v1").body == manifest.raw
    assert client("GET", "/v2/me/built/tags/list").json == {"name": "me/built", "tags": ["v1"]}
    assert client("GET", "/v2/_catalog").json == {"repositories": ["me/built"]}
    client.push_manifest(manifest, "v2", "me/built")
    assert repository.list_tags() == ["v1", "v2"]


def test_a_web_page_whose_name_points_here_is_refused(client: Client) -> None:
    for method, path in (("GET", "/v2/"), ("GET", "/v2/me/tiny/tags/list"), ("POST", "/v2/me/tiny/blobs/uploads/")):
        assert client(method, path, Host="evil.example:5000").status == 421
    assert client("GET", "/v2/", Host="localhost:5000").status == 200
    assert client("GET", "/v2/", Host="[::1]:5000").status == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "http://localhost:1", "null", "", "http://"])
def test_a_page_of_another_site_writes_nothing(client: Client, store: Store, origin: str) -> None:
    client.push_model(CONTENT, "v1")
    for method, path in (
        ("POST", f"blobs/uploads/?digest={Digest.of(b'x')}"),
        ("PUT", "manifests/v2"),
        ("PATCH", "blobs/uploads/1"),
        ("DELETE", "manifests/v1"),
    ):
        answer = client(method, f"/v2/me/tiny/{path}", b"x", Origin=origin)
        assert (answer.status, answer.code) == (403, "DENIED")
    assert client("GET", "/v2/me/tiny/tags/list", Origin=origin).json["tags"] == ["v1"]
    own = client("POST", "/v2/me/tiny/blobs/uploads/", Origin=f"http://{client.address}")
    assert own.status == 202


SERVER = """
import sys
from pathlib import Path
from modelpack.embedded_registry import serve
from modelpack.store import Store
serve(Store.open(Path(sys.argv[1])), port=0, on_ready=lambda port: print(port, flush=True))
import re
# Not ru_maxrss: that of a child begins with what its parent had.
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024, flush=True)
"""


def start_server(store: Store) -> tuple[subprocess.Popen[str], Client]:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(store.root)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    return process, Client(f"127.0.0.1:{int(process.stdout.readline())}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_server_cleanly(store: Store, number: signal.Signals) -> None:
    process, client = start_server(store)
    assert client("GET", "/v2/").status == 200
    process.send_signal(number)
    process.communicate(timeout=10)
    assert process.returncode == 0


def test_an_upload_survives_a_killed_registry(store: Store) -> None:
    process, client = start_server(store)
    location = client("POST", "/v2/me/tiny/blobs/uploads/").headers["Location"]
    client("PATCH", location, CONTENT[:3000])
    process.kill()
    process.communicate()

    process, client = start_server(store)
    assert client("GET", location).headers["Range"] == "0-2999"
    assert client("PUT", f"{location}?digest={DIGEST}", CONTENT[3000:]).status == 201
    assert client("GET", f"/v2/me/tiny/blobs/{DIGEST}").body == CONTENT
    process.terminate()
    process.communicate(timeout=10)


def test_memory_stays_flat_for_a_large_blob(store: Store) -> None:
    size, block = 160 << 20, bytes(1 << 20)
    import hashlib

    hasher = hashlib.sha256()
    for _ in range(size >> 20):
        hasher.update(block)
    digest = f"sha256:{hasher.hexdigest()}"
    process, client = start_server(store)
    location = client("POST", "/v2/me/big/blobs/uploads/").headers["Location"]
    with closing(http.client.HTTPConnection(client.address)) as connection:
        body = (block for _ in range(size >> 20))
        connection.request("PUT", f"{location}?digest={digest}", body, {"Content-Length": str(size)})
        assert connection.getresponse().status == 201
    with closing(http.client.HTTPConnection(client.address)) as connection:
        connection.request("GET", f"/v2/me/big/blobs/{digest}")
        response = connection.getresponse()
        received = 0
        while chunk := response.read(1 << 20):
            received += len(chunk)
    assert received == size

    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=10)
    assert int(output) < 110, f"{output.strip()} MiB"


def test_a_port_in_use_is_an_error(store: Store) -> None:
    from modelpack.embedded_registry import serve
    from modelpack.errors import InvalidInputError

    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(InvalidInputError, match="cannot listen"):
        serve(store, port=taken.getsockname()[1])


def test_the_oras_client_pushes_and_pulls(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from oras.client import OrasClient

    monkeypatch.chdir(tmp_path)
    Path("weights.gguf").write_bytes(CONTENT)
    oras = OrasClient(insecure=True)
    for name, chunked in (("whole", False), ("chunked", True)):
        target = f"{client.address}/me/{name}:v1"
        answer = oras.push(target=target, files=["weights.gguf:test/weights"], do_chunked=chunked, chunk_size=1000)
        assert answer.status_code == 201
        pulled = oras.pull(target=target, outdir=str(tmp_path / name))
        assert [Path(path).read_bytes() for path in pulled] == [CONTENT]
        assert oras.get_tags(target) == ["v1"]
