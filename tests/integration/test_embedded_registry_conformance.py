"""The OCI distribution specification 1.1, sentence by sentence: what a registry MUST answer, as one table.

Each row stands for a sentence of spec.md; ``section`` is its heading there. It runs in a repository of its own that
holds a model (``v1``, ``v2``), an index of it (``all``), two referrers and an upload of which a first chunk is there.
"""

import itertools
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import pytest
from fakes.servers import running_registry
from fakes.wire import OCTETS, Answer, Client

from modelpack.embedded_registry.errors import RefusedError
from modelpack.embedded_registry.uploads import Uploads
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import (
    EMPTY_CONFIG,
    EMPTY_JSON,
    EMPTY_TYPE,
    IMAGE_INDEX,
    IMAGE_MANIFEST,
    Descriptor,
    image_index,
    image_manifest,
)
from modelpack.store import Store

BLOB = b"weights of a model" * 50
CHUNK = 400
NEW = b"a blob that nobody has pushed"
ABSENT = Descriptor.of(b"absent", OCTETS)
ABSENT_MANIFEST = Descriptor.of(b"{}{}", IMAGE_MANIFEST)

MODEL = image_manifest(
    config=EMPTY_CONFIG, layers=[Descriptor.of(BLOB, OCTETS)], artifact_type="test/model", annotations={"made": "here"}
)
INDEX = image_index([MODEL.descriptor])
SIGNATURE = image_manifest(
    config=EMPTY_CONFIG, layers=[EMPTY_CONFIG], artifact_type="test/signature", subject=MODEL.descriptor
)
REPORT = image_manifest(config=EMPTY_CONFIG, layers=[EMPTY_CONFIG], subject=MODEL.descriptor, annotations={"a": "b"})
OF_NOBODY = image_manifest(config=EMPTY_CONFIG, layers=[EMPTY_CONFIG], subject=ABSENT_MANIFEST)
NO_LAYERS = image_manifest(config=EMPTY_CONFIG, layers=[], artifact_type="test/empty")
INDEX_OF_SUBJECT = image_index([MODEL.descriptor], subject=MODEL.descriptor)
INCOMPLETE = image_manifest(config=EMPTY_CONFIG, layers=[ABSENT])
ELSEWHERE = image_manifest(
    config=EMPTY_CONFIG,
    layers=[Descriptor("application/vnd.oci.image.layer.nondistributable.v1.tar", ABSENT.digest, 1)],
    artifact_type="test/elsewhere",
)
SPACED = json.dumps(json.loads(MODEL.raw), indent=3).encode()

NAMES = {
    "blob": Digest.of(BLOB),
    "new": Digest.of(NEW),
    "absent": ABSENT.digest,
    "model": MODEL.digest,
    "index": INDEX.digest,
    "report": REPORT.digest,
    "config": EMPTY_CONFIG.digest,
    "spaced": Digest.of(SPACED),
    "nobody": ABSENT_MANIFEST.digest,
}
AS_MANIFEST = {"Content_Type": IMAGE_MANIFEST}
CHUNKED = {"Content_Type": OCTETS}


@dataclass(frozen=True)
class Row:
    """A request and its answer. In texts, ``{blob}`` and the other NAMES are digests, ``{upload}`` is the path of the
    open upload; a path that is not absolute is below the repository. ``has``: header -> value, "" for any value, None
    for none. ``then``: the path of a GET, the status that it has afterwards, and its body.
    """

    section: str
    says: str
    method: str
    path: str
    status: int
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    has: Mapping[str, str | None] = field(default_factory=dict)
    code: str | None = None
    content: bytes | None = None
    json: object = None
    then: tuple[str, int, bytes | None] | None = None


PULL = "Pulling manifests"
BLOBS = "Pulling blobs"
CHECK = "Checking if content exists in the registry"
PUT = "POST then PUT"
POST = "Single POST"
CHUNKS = "Pushing a blob in chunks"
MOUNT = "Mounting a blob from another repository"
PUSH = "Pushing Manifests"
SUBJECT = "Pushing Manifests with Subject"
TAGS = "Listing Tags"
REFERRERS = "Listing Referrers"
MANAGE = "Content Management"
ERRORS = "Error Codes"

TABLE = (
    Row("Endpoints", "end-1 answers 200", "GET", "/v2/", 200),
    # Pull
    Row(PULL, "by tag: 200, the expected manifest, its digest, its type", "GET", "manifests/v1", 200,
        content=MODEL.raw, has={"Docker-Content-Digest": "{model}", "Content-Type": IMAGE_MANIFEST}),
    Row(PULL, "by digest", "GET", "manifests/{model}", 200, content=MODEL.raw,
        has={"Docker-Content-Digest": "{model}"}),
    Row(PULL, "an index, with its own type", "GET", "manifests/all", 200, content=INDEX.raw,
        has={"Content-Type": IMAGE_INDEX}),
    Row(PULL, "not found by tag: 404", "GET", "manifests/v9", 404, code="MANIFEST_UNKNOWN"),
    Row(PULL, "not found by digest: 404", "GET", "manifests/{absent}", 404, code="MANIFEST_UNKNOWN"),
    Row(PULL, "what is neither a tag nor a digest is not found", "GET", "manifests/.INVALID_NAME", 404),
    Row(PULL, "a blob is no manifest", "GET", "manifests/{blob}", 404),
    Row(BLOBS, "200, the expected blob, its digest", "GET", "blobs/{blob}", 200, content=BLOB,
        has={"Docker-Content-Digest": "{blob}"}),
    Row(BLOBS, "not found: 404", "GET", "blobs/{absent}", 404, code="BLOB_UNKNOWN"),
    Row(BLOBS, "ranges as in RFC 9110", "GET", "blobs/{blob}", 206, headers={"Range": "bytes=5-9"},
        content=BLOB[5:10], has={"Content-Range": f"bytes 5-9/{len(BLOB)}", "Content-Length": "5"}),
    Row(BLOBS, "a range behind the end", "GET", "blobs/{blob}", 416, headers={"Range": "bytes=5000-"}),
    Row(CHECK, "a blob: 200, digest and size", "HEAD", "blobs/{blob}", 200, content=b"",
        has={"Docker-Content-Digest": "{blob}", "Content-Length": str(len(BLOB))}),
    Row(CHECK, "a manifest by tag: 200, digest and size", "HEAD", "manifests/v1", 200, content=b"",
        has={"Docker-Content-Digest": "{model}", "Content-Length": str(len(MODEL.raw))}),
    Row(CHECK, "a manifest by digest", "HEAD", "manifests/{model}", 200, content=b"",
        has={"Content-Length": str(len(MODEL.raw))}),
    Row(CHECK, "no blob: 404", "HEAD", "blobs/{absent}", 404),
    Row(CHECK, "no manifest: 404", "HEAD", "manifests/v9", 404),
    # Push
    Row(PUT, "POST: 202 and a location", "POST", "blobs/uploads/", 202, has={"Location": ""},
        headers={"Content_Length": "0"}),
    Row(PUT, "PUT: 201 and where the blob is", "PUT", "{upload}?digest={blob}", 201, body=BLOB[CHUNK:],
        headers=CHUNKED, has={"Location": ""}, then=("blobs/{blob}", 200, BLOB)),
    Row(PUT, "a digest that does not match is refused", "PUT", "{upload}?digest={absent}", 400, body=BLOB[CHUNK:],
        code="DIGEST_INVALID", then=("blobs/{absent}", 404, None)),
    Row(PUT, "a digest that is none: 400", "PUT", "{upload}?digest=nothing", 400, body=BLOB[CHUNK:],
        code="DIGEST_INVALID"),
    Row(PUT, "no digest: 400", "PUT", "{upload}", 400, body=BLOB[CHUNK:], code="DIGEST_INVALID"),
    Row(PUT, "a digest of an algorithm that we do not keep: 400", "PUT", "{upload}?digest=sha512:" + "a" * 128, 400,
        body=b"", code="DIGEST_INVALID"),
    Row(POST, "201 and where the blob is", "POST", "blobs/uploads/?digest={new}", 201, body=NEW, headers=CHUNKED,
        has={"Location": ""}, then=("blobs/{new}", 200, NEW)),
    Row(POST, "a digest that does not match", "POST", "blobs/uploads/?digest={absent}", 400, body=NEW,
        code="DIGEST_INVALID"),
    Row(CHUNKS, "the next chunk: 202, Location and Range", "PATCH", "{upload}", 202, body=BLOB[CHUNK:],
        headers={**CHUNKED, "Content_Range": f"{CHUNK}-{len(BLOB) - 1}"},
        has={"Location": "", "Range": f"0-{len(BLOB) - 1}"}),
    Row(CHUNKS, "a chunk out of order: 416", "PATCH", "{upload}", 416, body=BLOB[CHUNK + 5 :],
        headers={**CHUNKED, "Content_Range": f"{CHUNK + 5}-{len(BLOB) - 1}"}),
    Row(CHUNKS, "a chunk that is here already: 416", "PATCH", "{upload}", 416, body=BLOB[:CHUNK],
        headers={**CHUNKED, "Content_Range": f"0-{CHUNK - 1}"}),
    Row(CHUNKS, "the last chunk with the PUT: 201", "PUT", "{upload}?digest={blob}", 201, body=BLOB[CHUNK:],
        headers={**CHUNKED, "Content_Range": f"{CHUNK}-{len(BLOB) - 1}"}, has={"Location": ""}),
    Row(CHUNKS, "the last chunk out of order: 416", "PUT", "{upload}?digest={blob}", 416, body=BLOB[CHUNK + 5 :],
        headers={**CHUNKED, "Content_Range": f"{CHUNK + 5}-{len(BLOB) - 1}"}),
    Row(CHUNKS, "the status of an upload: 204, Location and Range", "GET", "{upload}", 204,
        has={"Location": "{upload}", "Range": f"0-{CHUNK - 1}"}),
    Row("Cancel a blob upload", "204, and it is gone", "DELETE", "{upload}", 204, then=("{upload}", 404, None)),
    Row("Cancel a blob upload", "no such upload", "DELETE", "blobs/uploads/" + "0" * 32, 404,
        code="BLOB_UPLOAD_UNKNOWN"),
    Row(MOUNT, "201 and where the blob is", "POST", "blobs/uploads/?mount={blob}&from=conformance/other", 201,
        has={"Location": ""}, then=("blobs/{blob}", 200, BLOB)),
    Row(MOUNT, "without from", "POST", "blobs/uploads/?mount={blob}", 201, has={"Location": ""}),
    Row(MOUNT, "what cannot be mounted becomes an upload: 202", "POST", "blobs/uploads/?mount={absent}&from=a/b", 202,
        has={"Location": ""}),
    Row(PUSH, "by tag: 201, Location and digest", "PUT", "manifests/v3", 201, body=MODEL.raw, headers=AS_MANIFEST,
        has={"Location": "", "Docker-Content-Digest": "{model}", "OCI-Subject": None},
        then=("manifests/v3", 200, MODEL.raw)),
    Row(PUSH, "by digest", "PUT", "manifests/{model}", 201, body=MODEL.raw, headers=AS_MANIFEST),
    Row(PUSH, "in the exact bytes of the client", "PUT", "manifests/v3", 201, body=SPACED, headers=AS_MANIFEST,
        has={"Docker-Content-Digest": "{spaced}"}, then=("manifests/v3", 200, SPACED)),
    Row(PUSH, "parameters of the Content-Type are ignored", "PUT", "manifests/v3", 201, body=MODEL.raw,
        headers={"Content_Type": f"{IMAGE_MANIFEST}; charset=utf-8"}),
    Row(PUSH, "without layers", "PUT", "manifests/v3", 201, body=NO_LAYERS.raw, headers=AS_MANIFEST),
    Row(PUSH, "a tag for each ?tag=", "PUT", "manifests/{model}?tag=v4&tag=v5", 201, body=MODEL.raw,
        headers=AS_MANIFEST, has={"OCI-Tag": "v4, v5"}, then=("manifests/v5", 200, MODEL.raw)),
    Row(PUSH, "layers that nobody may distribute need not be there", "PUT", "manifests/elsewhere", 201,
        body=ELSEWHERE.raw, headers=AS_MANIFEST, then=("manifests/elsewhere", 200, ELSEWHERE.raw)),
    Row(PUSH, "a manifest whose blobs are missing", "PUT", "manifests/v3", 400, body=INCOMPLETE.raw,
        headers=AS_MANIFEST, code="MANIFEST_BLOB_UNKNOWN"),
    Row(PUSH, "a digest that is not the manifest's", "PUT", "manifests/{absent}", 400, body=MODEL.raw,
        headers=AS_MANIFEST, code="DIGEST_INVALID"),
    Row(PUSH, "no manifest", "PUT", "manifests/v3", 400, body=b"blablabla", headers=AS_MANIFEST,
        code="MANIFEST_INVALID"),
    Row(PUSH, "more than four megabytes: 413", "PUT", "manifests/v3", 413, body=b" " * (4 << 20) + b"{}",
        headers=AS_MANIFEST, code="SIZE_INVALID"),
    Row(SUBJECT, "OCI-Subject", "PUT", "manifests/{report}", 201, body=REPORT.raw, headers=AS_MANIFEST,
        has={"OCI-Subject": "{model}"}),
    Row(SUBJECT, "of an index, too", "PUT", "manifests/v3", 201, body=INDEX_OF_SUBJECT.raw,
        headers={"Content_Type": IMAGE_INDEX}, has={"OCI-Subject": "{model}"}),
    Row(SUBJECT, "a subject that is not there (yet) is accepted", "PUT", "manifests/v3", 201, body=OF_NOBODY.raw,
        headers=AS_MANIFEST, has={"OCI-Subject": "{nobody}"}),
    # Content discovery
    Row(TAGS, "200, in order", "GET", "tags/list", 200, json={"name": "{name}", "tags": ["all", "v1", "v2"]}),
    Row(TAGS, "n of them, and a link to the rest", "GET", "tags/list?n=2", 200,
        json={"name": "{name}", "tags": ["all", "v1"]},
        has={"Link": '</v2/{name}/tags/list?n=2&last=v1>; rel="next"'}),
    Row(TAGS, "behind last, which need not be there", "GET", "tags/list?n=2&last=b", 200,
        json={"name": "{name}", "tags": ["v1", "v2"]}, has={"Link": None}),
    Row(TAGS, "none for n=0, and no link", "GET", "tags/list?n=0", 200, json={"name": "{name}", "tags": []},
        has={"Link": None}),
    Row(TAGS, "no such repository", "GET", "/v2/conformance/nobody/tags/list", 404, code="NAME_UNKNOWN"),
    Row(REFERRERS, "200, an index of all", "GET", "referrers/{model}", 200,
        has={"Content-Type": IMAGE_INDEX, "OCI-Filters-Applied": None}),
    Row(REFERRERS, "filtered, and that is said", "GET", "referrers/{model}?artifactType=test/signature", 200,
        has={"OCI-Filters-Applied": "artifactType"},
        json={"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": [SIGNATURE.descriptor.to_json()]}),
    Row(REFERRERS, "the type of the config stands for a missing artifactType; annotations are copied", "GET",
        f"referrers/{{model}}?artifactType={quote(EMPTY_TYPE)}", 200,
        json={
            "schemaVersion": 2,
            "mediaType": IMAGE_INDEX,
            "manifests": [{**REPORT.descriptor.to_json(), "artifactType": EMPTY_TYPE, "annotations": {"a": "b"}}],
        }),
    Row(REFERRERS, "an empty list, never 404", "GET", "referrers/{absent}", 200,
        json={"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": []}),
    Row(REFERRERS, "no digest: 400", "GET", "referrers/latest", 400, code="DIGEST_INVALID"),
    # Content management
    Row(MANAGE, "a tag: 202, and the others stay", "DELETE", "manifests/v1", 202, then=("manifests/v2", 200, None)),
    Row(MANAGE, "a tag that is deleted is not found", "DELETE", "manifests/v1", 202, then=("manifests/v1", 404, None)),
    Row(MANAGE, "a manifest: 202, and its tags go", "DELETE", "manifests/{model}", 202,
        then=("manifests/v2", 404, None)),
    Row(MANAGE, "a manifest that is not there: 404", "DELETE", "manifests/{absent}", 404, code="MANIFEST_UNKNOWN"),
    Row(MANAGE, "a manifest of a repository that is not there: 404", "DELETE",
        "/v2/conformance/nobody/manifests/{model}", 404),
    Row(MANAGE, "a blob that is not there: 404", "DELETE", "blobs/{absent}", 404, code="BLOB_UNKNOWN"),
    Row(MANAGE, "a blob in use may not be deleted", "DELETE", "blobs/{config}", 405, code="UNSUPPORTED"),
    Row(MANAGE, "a referrer that is deleted is listed no more", "DELETE", "manifests/{report}", 202,
        then=("manifests/{report}", 404, None)),
    # Errors
    Row(ERRORS, "a name outside the grammar", "GET", "/v2/Upper/tags/list", 400, code="NAME_INVALID"),
    Row(ERRORS, "a tag outside the grammar", "PUT", "manifests/-v1", 400, body=MODEL.raw, headers=AS_MANIFEST,
        code="MANIFEST_INVALID"),
)  # fmt: skip


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with running_registry(Store.open(tmp_path_factory.mktemp("registry") / "store")) as address:
        yield Client(address)


_NUMBERS = itertools.count()


def prepare(client: Client) -> dict[str, object]:
    """A repository as the table wants it; what ``{...}`` in a row stands for."""
    name = f"conformance/repository-{next(_NUMBERS)}"
    for blob in (BLOB, EMPTY_JSON):
        client.push_blob(blob, name)
    for manifest, selectors in ((MODEL, ("v1", "v2")), (INDEX, ("all",))):
        for selector in selectors:
            assert client.push_manifest(manifest, selector, name).status == 201
    for manifest in (SIGNATURE, REPORT):
        assert client.push_manifest(manifest, str(manifest.digest), name).status == 201
    upload = client("POST", f"/v2/{name}/blobs/uploads/").headers["Location"]
    assert client("PATCH", upload, BLOB[:CHUNK], Content_Range=f"0-{CHUNK - 1}").status == 202
    return {**NAMES, "name": name, "upload": upload}


@pytest.fixture(scope="module")
def unchanged(client: Client) -> dict[str, object]:
    """The repository of the rows that only read."""
    return prepare(client)


def send(client: Client, names: Mapping[str, object], method: str, path: str, *rest: object, **headers: str) -> Answer:
    path = path.format(**names)
    return client(method, path if path.startswith("/") else f"/v2/{names['name']}/{path}", *rest, **headers)


@pytest.mark.parametrize("row", [pytest.param(row, id=f"{row.section}: {row.says}") for row in TABLE])
def test_the_registry_does_as_the_specification_says(row: Row, client: Client, unchanged: dict[str, object]) -> None:
    names = unchanged if row.method in ("GET", "HEAD") else prepare(client)

    answer = send(client, names, row.method, row.path, row.body, **row.headers)

    assert answer.status == row.status, answer.body
    for header, expected in row.has.items():
        value = answer.headers.get(header)
        assert (value is None) == (expected is None), header
        if expected:
            assert value == expected.format(**names)
    if location := answer.headers.get("Location"):
        # "The <location> MUST be a pullable URL", or that of an upload which is open.
        assert send(client, names, "GET", location).status in (200, 204)
    if row.code:
        assert answer.code == row.code
    if row.content is not None:
        assert answer.body == row.content
    if row.json is not None:
        wanted = json.loads(json.dumps(row.json).replace("{name}", str(names["name"])))
        assert answer.json == wanted
    if row.then:
        path, status, body = row.then
        after = send(client, names, "GET", path)
        assert after.status == status
        assert body is None or after.body == body


def test_all_referrers_are_listed_however_they_came(client: Client) -> None:
    names = prepare(client)
    # "Registries MUST include preexisting image manifests that are listed in an image index tagged with the referrers
    # tag schema": a client that fell back to the tag pushed the manifest here, so it is listed already.
    fallback = image_index([SIGNATURE.descriptor, REPORT.descriptor])
    tag = f"sha256-{MODEL.digest.hex}"
    assert client.push_manifest(fallback, tag, str(names["name"])).status == 201

    listed = send(client, names, "GET", "referrers/{model}").json["manifests"]

    assert sorted(item["digest"] for item in listed) == sorted([str(SIGNATURE.digest), str(REPORT.digest)])


def test_repositories_come_in_pages(client: Client) -> None:
    for name in ("catalog/a", "catalog/b", "catalog/c"):
        client.push_blob(EMPTY_JSON, name)
        assert client.push_manifest(NO_LAYERS, "v1", name).status == 201
    first = client("GET", "/v2/_catalog?n=2&last=catalog")
    assert first.json == {"repositories": ["catalog/a", "catalog/b"]}
    link = first.headers["Link"]
    assert link == '</v2/_catalog?n=2&last=catalog%2Fb>; rel="next"'
    assert client("GET", link[1 : link.index(">")]).json["repositories"][0] == "catalog/c"


def test_a_blob_of_no_manifest_can_be_deleted(client: Client) -> None:
    # Blobs are shared by all repositories here, so the table's cannot be: other rows use them.
    lone = client.push_blob(b"nobody's", "conformance/lone")
    assert client("DELETE", f"/v2/conformance/lone/blobs/{lone.digest}").status == 202
    assert client("GET", f"/v2/conformance/lone/blobs/{lone.digest}").status == 404


def test_every_category_of_the_specification_has_rows() -> None:
    assert {row.section for row in TABLE} >= {PULL, BLOBS, CHECK, PUT, POST, CHUNKS, MOUNT, PUSH, SUBJECT, TAGS, MANAGE}
    assert len({(row.section, row.says) for row in TABLE}) == len(TABLE)


def test_an_upload_that_nobody_touched_for_a_day_is_gone(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    long_ago = time.time() - 25 * 3600
    of_an_earlier_server = store.partials / ("upload-" + "0" * 32)
    of_an_earlier_server.write_bytes(b"half")
    os.utime(of_an_earlier_server, (long_ago, long_ago))
    uploads = Uploads(store)
    stale, fresh = uploads.start(), uploads.start()
    os.utime(stale.path, (long_ago, long_ago))

    uploads.expire()

    assert [path.name for path in store.partials.iterdir()] == [f"upload-{fresh.id}"]
    with pytest.raises(RefusedError):
        uploads.find(stale.id)
    assert uploads.find(fresh.id) is fresh
