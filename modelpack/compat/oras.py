"""An oras-py ``Registry`` on our engine, for code that was written against oras-py.

``push`` and ``pull`` are oras-py's own; what they call is replaced: content streams, every byte is checked against its
digest, transfers are tried again and resumed, and no secret leaves for another host. Written for oras 0.2.43.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema
import oras.auth.base
import oras.container
import oras.defaults
import oras.oci
import oras.provider
import oras.schemas
import requests

from modelpack.atomic_file import sync_directory
from modelpack.errors import DigestMismatchError, NotFoundError, UnsupportedError
from modelpack.oci import strict_json
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import IMAGE_MANIFEST, Descriptor, Manifest
from modelpack.oci.reference import DEFAULT_TAG, Reference
from modelpack.registry.client import Repository, connect
from modelpack.registry.credentials import ANONYMOUS, Credential, CredentialSource
from modelpack.registry.network import NetworkSettings
from modelpack.registry.retry import Retries

_CHUNK = 1 << 20


class _Login(oras.auth.base.AuthBackend):  # type: ignore[misc]  # oras has no types
    """What ``login`` and ``set_basic_auth`` were told, as a source for our engine; reads no file by itself."""

    def __init__(self, credentials: CredentialSource, **settings: Any) -> None:
        super().__init__(**settings)
        self._credentials = credentials

    def set_basic_auth(self, username: str, password: str) -> None:
        self._told = Credential(username, password)

    _told: Credential | None = None

    def load_configs(self, container: object, configs: object = None) -> None:
        """Credentials come from ``credentials``."""

    def lookup(self, registry: str, repository: str = "") -> Credential | None:
        return self._told or self._credentials.lookup(registry, repository)


class Registry(oras.provider.Registry):  # type: ignore[misc]  # oras has no types
    """As ``oras.provider.Registry``; credentials and network settings are arguments, not files found on the way."""

    def __init__(
        self,
        hostname: str | None = None,
        insecure: bool = False,
        tls_verify: bool | str = True,
        *,
        credentials: CredentialSource = ANONYMOUS,
        network: NetworkSettings | None = None,
        retries: Retries | None = None,
    ) -> None:
        if tls_verify is False:
            raise UnsupportedError("certificates are always verified: name the authority's file as tls_verify")
        super().__init__(hostname, insecure, tls_verify)
        self.auth = _Login(credentials, session=self.session, insecure=insecure, tls_verify=tls_verify)
        self._network = network or NetworkSettings(ca_file=Path(tls_verify) if isinstance(tls_verify, str) else None)
        self._retries = retries
        self._repositories: dict[str, Repository] = {}

    def get_container(self, name: Any) -> Any:
        """As oras-py's, by the specification's grammar. Raises MalformedReferenceError."""
        if isinstance(name, oras.container.Container):
            return name
        reference = Reference.parse(name)
        container = oras.container.Container(reference.repository, registry=reference.registry or self.hostname)
        container.tag = reference.tag or DEFAULT_TAG
        container.digest = str(reference.digest) if reference.digest else None
        return container

    def upload_blob(self, blob: str, container: Any, layer: dict[str, Any], *_: Any, **__: Any) -> requests.Response:
        """One streamed upload, whatever chunking is asked for: see ``modelpack.registry.blobs``."""
        repository = self._repository(container)
        descriptor = Descriptor.parse(layer, what="layer")
        if repository.has_blob(descriptor):
            return _response(200)

        @contextmanager
        def open_blob(offset: int) -> Iterator[Iterator[bytes]]:
            with Path(blob).open("rb") as file:
                file.seek(offset)
                yield iter(lambda: file.read(_CHUNK), b"")

        repository.write_blob(descriptor, open_blob)
        return _response(201)

    def blob_exists(self, layer: dict[str, Any], container: Any) -> bool:
        return self._repository(container).has_blob(Descriptor.parse(layer, what="layer"))

    def download_blob(self, container: Any, digest: str, outfile: str) -> str:
        """Write a blob to a file, which appears when all of it is there and right. Raises DigestMismatchError."""
        repository = self._repository(container)
        try:
            descriptor = repository.describe_blob(Digest(digest))
        except NotFoundError:
            # As oras-py: some registries do not keep the empty blob.
            if digest == oras.defaults.blank_hash:
                return os.devnull
            raise
        path = Path(outfile)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
        try:
            hasher = hashlib.sha256()
            with os.fdopen(handle, "wb") as file, repository.read_blob(descriptor) as chunks:
                for chunk in chunks:
                    hasher.update(chunk)
                    file.write(chunk)
                file.flush()
                os.fchmod(file.fileno(), 0o644)
                os.fsync(file.fileno())
            if hasher.hexdigest() != descriptor.digest.hex:
                raise DigestMismatchError(f"content of {digest} has the digest sha256:{hasher.hexdigest()}")
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        sync_directory(path.parent)
        return outfile

    def upload_manifest(self, manifest: dict[str, Any], container: Any) -> requests.Response:
        """Store a manifest under the container's tag."""
        jsonschema.validate(manifest, schema=oras.schemas.manifest)
        container = self.get_container(container)
        parsed = Manifest.parse(strict_json.canonical(manifest), media_type=manifest.get("mediaType", IMAGE_MANIFEST))
        stored = self._repository(container).put_manifest(parsed, tag=container.tag)
        return _response(201, {"Docker-Content-Digest": str(stored.digest)})

    def get_manifest(
        self,
        container: Any,
        allowed_media_type: list[str] | None = None,
        validation_schema: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The manifest as JSON, its bytes checked. Raises UnsupportedError for a type that is not allowed."""
        container = self.get_container(container)
        repository = self._repository(container)
        descriptor = repository.resolve(container.digest or container.tag)
        if allowed_media_type and descriptor.media_type not in allowed_media_type:
            raise UnsupportedError(f"{container} is of the type {descriptor.media_type}, which is not allowed here")
        manifest: dict[str, Any] = json.loads(repository.fetch_manifest(descriptor).raw)
        if validation_schema:
            jsonschema.validate(manifest, schema=validation_schema)
        return manifest

    def get_tags(self, container: Any, N: int | None = None) -> list[str]:  # noqa: N803 - oras-py's own name
        return self._repository(container).list_tags()[:N]

    def delete_tag(self, container: Any, tag: str) -> bool:
        """As oras-py: the manifest behind the tag goes. False when there is no such tag."""
        repository = self._repository(container)
        try:
            repository.delete(str(repository.resolve(tag).digest))
        except NotFoundError:
            return False
        return True

    def do_request(self, *_: Any, **__: Any) -> requests.Response:
        """What is not replaced above would go round every check. Raises UnsupportedError."""
        raise UnsupportedError("this oras-py call sends requests of its own, which are not checked")

    def _repository(self, container: Any) -> Repository:
        container = self.get_container(container)
        name = f"{container.registry}/{container.api_prefix}"
        if name not in self._repositories:
            registry = connect(
                container.registry,
                credentials=self.auth,
                plain_http=self.prefix == "http",
                network=self._network,
                retries=self._retries,
            )
            self._repositories[name] = registry.repository(container.api_prefix)
        return self._repositories[name]


def _response(status: int, headers: dict[str, str] | None = None) -> requests.Response:
    response = requests.Response()
    response.status_code = status
    response.headers.update(headers or {})
    return response
