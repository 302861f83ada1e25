"""A client of the distribution API that does one request at a time and believes nothing."""

import http.client
import json
from contextlib import closing
from typing import Any, NamedTuple

from modelpack.oci.digest import Digest
from modelpack.oci.manifest import EMPTY_CONFIG, EMPTY_JSON, Descriptor, Manifest, image_manifest

OCTETS = "application/octet-stream"


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return self.json["errors"][0]["code"]


class Client:
    def __init__(self, address: str) -> None:
        self.address = address

    def __call__(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        with closing(http.client.HTTPConnection(self.address, timeout=20)) as connection:
            connection.request(method, path, body, named)
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())

    def push_blob(self, content: bytes, name: str = "me/tiny") -> Descriptor:
        digest = Digest.of(content)
        answer = self("POST", f"/v2/{name}/blobs/uploads/?digest={digest}", content)
        assert answer.status == 201
        return Descriptor(OCTETS, digest, len(content))

    def push_manifest(self, manifest: Manifest, selector: str, name: str = "me/tiny") -> Answer:
        return self("PUT", f"/v2/{name}/manifests/{selector}", manifest.raw, Content_Type=manifest.media_type)

    def push_model(
        self, weights: bytes, tag: str, *, name: str = "me/tiny", subject: Descriptor | None = None, kind: str = "a/b"
    ) -> Manifest:
        self.push_blob(EMPTY_JSON, name)
        layer = self.push_blob(weights, name)
        manifest = image_manifest(
            config=EMPTY_CONFIG, layers=[layer], artifact_type=kind, subject=subject, annotations={"k": "v"}
        )
        answer = self.push_manifest(manifest, tag or str(manifest.digest), name)
        assert answer.status == 201, answer.body
        return manifest
