"""The distribution API of a fake registry, with the token server that guards it."""

import base64
import hashlib
import json
import re
import time
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from fakes.registry_wire import Exchange

from modelpack.oci import strict_json
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import IMAGE_INDEX, Manifest

if TYPE_CHECKING:
    from fakes.registry import FakeRegistry

_PATH = re.compile(r"/v2/(?P<name>.+?)/(?P<kind>blobs/uploads|blobs|manifests|tags|referrers)/(?P<rest>.*)")


def handler(registry: "FakeRegistry") -> type[Exchange]:
    class Handler(_Api):
        fake = registry

    return Handler


class _Api(Exchange):
    def handle_request(self) -> None:
        path = urlsplit(self.path)
        self.query = parse_qs(path.query)
        if path.path == "/token":
            self._token()
        elif path.path.startswith("/content/"):
            self._signed_content(path.path.removeprefix("/content/"))
        elif self._is_authorised(path.path):
            self._route(path.path)

    def _route(self, path: str) -> None:
        if path == "/v2/":
            self.answer(200, b"{}")
            return
        match = _PATH.fullmatch(path)
        if not match:
            self.refuse(404, "NAME_UNKNOWN", "nothing here")
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
            self.refuse(404, "BLOB_UNKNOWN", "blob unknown to registry")
            return
        host = self.fake.content_host
        if host is not None and self.command == "GET":
            signature = f"signature-{self.fake.next_number()}"
            host.blobs[digest] = content
            host.signatures.add(signature)
            self.answer(307, b"", {"Location": f"{host.url}/content/{digest}?signature={signature}"})
            return
        self._content(digest, content)

    def _signed_content(self, digest: str) -> None:
        if self.query.get("signature", [""])[0] not in self.fake.signatures:
            self.answer(403, b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>")
            return
        self._content(digest, self.fake.blobs[digest])

    def _content(self, digest: str, content: bytes) -> None:
        headers = {"Content-Type": "application/octet-stream", "Docker-Content-Digest": digest}
        requested = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if requested and not self.fake.quirks.ignores_ranges and not (self.fault and self.fault.ignore_range):
            start, end = int(requested[1]), min(int(requested[2]), len(content) - 1)
            if start >= len(content):
                length = {"Content-Length": str(len(content))} if self.fake.quirks.lying_416 else {}
                self.answer(416, b'{"errors":[{"code":"RANGE_INVALID"}]}', length)
                return
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            status, content = 206, content[start : end + 1]
        else:
            status = 200
        self.fake.before_answer(self.client_address[1])
        self.answer(status, content, headers)
        self.fake.after_answer(self.client_address[1])

    def _upload(self, name: str, session: str) -> None:
        fake, quirks = self.fake, self.fake.quirks
        if self.command == "POST":
            self._begin_upload(name)
        elif session not in fake.uploads or (self.command == "GET" and not quirks.tells_status):
            self.refuse(404, "BLOB_UPLOAD_UNKNOWN", "no such upload")
        elif self.command == "GET":
            self.answer(204, b"", self._progress(name, session))
        elif self.command == "PATCH":
            self._patch(name, session)
        else:
            self._finish_upload(name, session)

    def _begin_upload(self, name: str) -> None:
        fake, quirks = self.fake, self.fake.quirks
        mounted, origin = self.query.get("mount", [""])[0], self.query.get("from", [""])[0]
        if mounted and quirks.mount_status:
            self.refuse(quirks.mount_status, "UNKNOWN", "mounts are broken today")
            return
        if mounted and quirks.mounts and origin in fake.owners.get(mounted, ()):
            fake.owners[mounted].add(name)
            self.answer(201, b"", {"Location": f"/v2/{name}/blobs/{mounted}", "Docker-Content-Digest": mounted})
            return
        session = str(fake.next_number())
        fake.uploads[session] = bytearray()
        self.answer(202, b"", {"Location": self._upload_location(name, session)})

    def _patch(self, name: str, session: str) -> None:
        quirks, kept = self.fake.quirks, self.fake.uploads[session]
        limit = quirks.largest_sized_patch
        if quirks.patch_refusal:
            self.refuse(quirks.patch_refusal, "UNSUPPORTED", "chunked uploads are not supported")
        elif limit is not None and "Content-Length" in self.headers and len(self.body) > limit:
            self.refuse(416, "BLOB_UPLOAD_INVALID", "range not satisfiable")
        else:
            if quirks.patch_keeps == "last":
                kept[:] = self.body
            elif quirks.patch_keeps == "all" or not kept:
                kept += self.body
            self.answer(quirks.patch_status, b"", self._progress(name, session))

    def _finish_upload(self, name: str, session: str) -> None:
        fake = self.fake
        digest = self.query.get("digest", [""])[0]
        if self.body and fake.quirks.put_refusal:
            self.answer(fake.quirks.put_refusal, b"", {})
            return
        begun = fake.uploads[session]
        start = re.fullmatch(r"(\d+)-(\d+)", self.headers.get("Content-Range", ""))
        if begun and self.body and (not start or int(start[1]) != len(begun)):
            self.refuse(416, "RANGE_INVALID", "out of order")
            return
        content = bytes(begun) + self.body
        if "sha256:" + hashlib.sha256(content).hexdigest() != digest:
            self.refuse(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
            return
        del fake.uploads[session]
        fake.blobs[digest] = content
        fake.owners.setdefault(digest, set()).add(name)
        self.answer(201, b"", {"Location": f"/v2/{name}/blobs/{digest}", "Docker-Content-Digest": digest})

    def _progress(self, name: str, session: str) -> dict[str, str]:
        last = max(0, len(self.fake.uploads[session]) - 1)
        return {"Location": self._upload_location(name, session), "Range": f"0-{last}"}

    def _upload_location(self, name: str, session: str) -> str:
        location = self.fake.location(f"/v2/{name}/blobs/uploads/{session}?state=a%2Fb")
        return f"{self.fake.url}{location}" if self.fake.quirks.absolute_location else location

    def keep_broken(self, part: bytes) -> None:
        match = _PATH.fullmatch(urlsplit(self.path).path)
        if match and match["kind"] == "blobs/uploads":
            if self.fake.quirks.ends_broken:
                self.fake.uploads.pop(match["rest"], None)
            elif self.fake.quirks.keeps_broken and match["rest"] in self.fake.uploads:
                self.fake.uploads[match["rest"]] += part

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
            self.refuse(404, "MANIFEST_UNKNOWN", "manifest unknown")
        elif self.command == "DELETE":
            with fake.lock:
                if ":" in selector:
                    fake.manifests.pop((name, digest))
                else:
                    fake.tags.pop((name, selector))
            self.answer(202, b"")
        else:
            self.answer(200, found[1], {"Content-Type": found[0], "Docker-Content-Digest": digest})

    def _put_manifest(self, name: str, selector: str) -> None:
        fake = self.fake
        manifest = Manifest.parse(self.body, media_type=self.headers["Content-Type"])
        missing = [blob for blob in manifest.blobs if str(blob.digest) not in fake.blobs]
        if missing:
            self.refuse(400, "MANIFEST_BLOB_UNKNOWN", f"blob unknown: {missing[0].digest}")
            return
        with fake.lock:
            fake.manifests[name, str(manifest.digest)] = (manifest.media_type, self.body)
            if ":" not in selector:
                fake.tags[name, selector] = str(manifest.digest)
        headers = {"Docker-Content-Digest": str(manifest.digest)}
        if manifest.subject and fake.subject_header and (fake.referrers_api or fake.quirks.claims_referrers):
            headers["OCI-Subject"] = str(manifest.subject.digest)
        self.answer(201, b"", headers)

    def _tags(self, name: str) -> None:
        tags = sorted(tag for repository, tag in self.fake.tags if repository == name)
        headers = {"Content-Type": "application/json"}
        if self.fake.page_size:
            after = self.query.get("last", [""])[0]
            tags = [tag for tag in tags if tag > after]
            if len(tags) > self.fake.page_size:
                tags = tags[: self.fake.page_size]
                headers["Link"] = f'</v2/{name}/tags/list?n={self.fake.page_size}&last={tags[-1]}>; rel="next"'
        self.answer(200, json.dumps({"name": name, "tags": tags}).encode(), headers)

    def _referrers(self, name: str, digest: str) -> None:
        if self.fake.quirks.referrers_elsewhere:
            self.answer(303, b"", {"Location": "https://web.invalid/packages"})
            return
        if not self.fake.referrers_api:
            self.answer(404, b"404 page not found\n", {"Content-Type": "text/plain"})
            return
        Digest(digest)
        index = {"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": self.fake.referrers(name, digest)}
        self.answer(200, strict_json.canonical(index), {"Content-Type": IMAGE_INDEX})

    # Auth

    def _is_authorised(self, path: str) -> bool:
        fake = self.fake
        header = self.headers.get("Authorization", "")
        if fake.auth == "none":
            return True
        if fake.auth == "basic":
            if self._user_of(header):
                return True
            self.refuse(401, "UNAUTHORIZED", "who are you", {"WWW-Authenticate": 'Basic realm="Registry"'})
            return False
        match = _PATH.fullmatch(path)
        needed = ""
        if match:
            action = {"GET": "pull", "HEAD": "pull", "DELETE": "delete"}.get(self.command, "push")
            needed = f"repository:{match['name']}:{action}"
        scopes, expires = fake.tokens.get(header.removeprefix("Bearer "), ([], 0.0))
        if self.arrived < expires and (not needed or _covers(scopes, needed)):
            return True
        scope = f',scope="{needed}"' if needed else ""
        realm = fake.realm or f"{fake.url}/token"
        challenge = f'Bearer realm="{realm}",service="fake"{scope}'
        self.refuse(401, "UNAUTHORIZED", "authentication required", {"WWW-Authenticate": challenge})
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
            self.answer(401, b'{"details": "incorrect username or password"}')
            return
        scopes = [fake.grant(scope) for text in form.get("scope", []) for scope in text.split(" ")]
        if not user:
            scopes = [scope.replace(",push", "") for scope in scopes]
        token = f"token-{fake.next_number()}"
        fake.tokens[token] = (scopes, time.monotonic() + (fake.early_death or fake.token_lifetime))
        self.answer(200, json.dumps({"token": token, "expires_in": fake.token_lifetime}).encode())


def _covers(scopes: list[str], needed: str) -> bool:
    repository, _, action = needed.rpartition(":")
    return any(
        scope.rpartition(":")[0] == repository and action in scope.rpartition(":")[2].split(",") for scope in scopes
    )
