"""A registry and its repositories, as the Target protocol has them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from modelpack.errors import MalformedReferenceError
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import Descriptor, Manifest
from modelpack.oci.reference import Reference
from modelpack.oci.target import BlobStream, OpenBlob, Written
from modelpack.registry import blobs, manifests, referrers, uploads
from modelpack.registry.address import DOCKER_HUB, DOCKER_HUB_NAMES, locate
from modelpack.registry.auth import Authorizer
from modelpack.registry.credentials import ANONYMOUS, CredentialSource
from modelpack.registry.endpoint import Endpoint
from modelpack.registry.http import Transport
from modelpack.registry.network import NetworkSettings
from modelpack.registry.profiles import Profile, profile_of
from modelpack.registry.retry import Retries
from modelpack.registry.session import Session
from modelpack.registry.traffic import Traffic
from modelpack.registry.uploads import Remember

MountFrom = Callable[[Digest], Sequence[str]]
"""Repositories of the same registry that may hold a blob already, the likeliest first."""


def connect(
    registry: Reference | str,
    *,
    credentials: CredentialSource = ANONYMOUS,
    plain_http: bool = False,
    network: NetworkSettings | None = None,
    retries: Retries | None = None,
    profile: Profile | None = None,
) -> "Registry":
    """A registry by its name (``ghcr.io``, ``127.0.0.1:5000``) or by a reference into it. Sends nothing yet.

    Plain http is spoken only with ``plain_http`` and to the loopback interface, there unless ``certs.d`` holds
    certificates for the registry. ``profile`` says what kind of registry it is where its name does not. Raises
    MalformedReferenceError.
    """
    name = registry.registry if isinstance(registry, Reference) else registry
    if not name:
        raise MalformedReferenceError(f"{registry} names no registry")
    name = DOCKER_HUB if name in DOCKER_HUB_NAMES else name
    network = network or NetworkSettings()
    retries = retries or Retries()
    origin = locate(name, plain_http=plain_http, encrypted_loopback=network.has_certificates(name))
    transport = Transport(network, name)
    retries = replace(retries, on_retry=transport.traffic.retried)
    authorizer = Authorizer(name, origin, credentials, transport, retries, trusted_realms=network.trusted_realms)
    return Registry(name, Session(name, transport, authorizer, retries, profile or profile_of(name)), authorizer)


class Registry:
    """One registry, as one user. Connections and tokens are shared by all its repositories."""

    def __init__(self, name: str, session: Session, authorizer: Authorizer) -> None:
        self.name = name
        self.session = session
        self._authorizer = authorizer

    def repository(
        self,
        name: str,
        *,
        push: bool = False,
        mount_from: MountFrom = lambda _: (),
        remember: Remember = uploads.forgetful,
    ) -> "Repository":
        """A repository by its name. Say ``push`` when it will be written to: that saves asking for a second token.

        ``remember`` keeps where uploads of large blobs stand, for another process to go on with.
        """
        if self.name == DOCKER_HUB and "/" not in name:
            name = f"library/{name}"
        return Repository(Endpoint(self.session, name, push=push), mount_from=mount_from, remember=remember)

    @property
    def traffic(self) -> Traffic:
        """What has gone over the wire."""
        return self.session.traffic

    def ping(self) -> None:
        """Whether a registry answers there and lets us in. Raises RegistryUnavailableError, AccessDeniedError,
        NotFoundError when something else answers.
        """
        self.session.request("GET", "/v2/", what=f"the registry {self.name}", expect=(200,)).close()

    def check_login(self) -> bool:
        """Whether the registry asked for the credentials, and so accepted them; False when it asks for none.

        Raises AccessDeniedError when it rejects them, and what ``ping`` raises.
        """
        self.ping()
        return self._authorizer.used_credential


class Repository:
    """One repository; a Target, RangedSource, ThrottledSource, LimitedTarget and PatientPlace. Safe to use from several
    threads.
    """

    def __init__(
        self, endpoint: Endpoint, *, mount_from: MountFrom = lambda _: (), remember: Remember = uploads.forgetful
    ) -> None:
        self.endpoint = endpoint
        self._mount_from, self._remember = mount_from, remember
        self.name = endpoint.full_name

    @property
    def traffic(self) -> Traffic:
        """What has gone over the wire to and from the registry."""
        return self.endpoint.session.traffic

    @property
    def retries(self) -> int:
        return self.traffic.retries

    @property
    def connections(self) -> int:
        return self.endpoint.profile.connections

    def resolve(self, selector: str) -> Descriptor:
        return manifests.resolve(self.endpoint, selector)

    def fetch_manifest(self, descriptor: Descriptor) -> Manifest:
        return manifests.fetch(self.endpoint, descriptor)

    def read_blob(self, descriptor: Descriptor, *, offset: int = 0) -> BlobStream:
        """A stream that resumes by itself; see ``blobs.read``."""
        return blobs.read(self.endpoint, descriptor, start=offset)

    def open_range(self, descriptor: Descriptor, start: int, stop: int) -> BlobStream:
        """Part of a blob; resumes by itself too. Raises RangesIgnoredError."""
        return blobs.read(self.endpoint, descriptor, start=start, stop=stop)

    def check_limits(self, blobs: Iterable[Descriptor]) -> None:
        """Raises RegistryRefusedError for a blob larger than this registry is known to take."""
        self.endpoint.profile.check_limits(blobs)

    def has_blob(self, descriptor: Descriptor) -> bool:
        return blobs.exists(self.endpoint, descriptor)

    def describe_blob(self, digest: Digest) -> Descriptor:
        """Size of a blob of which only the digest is known. Raises NotFoundError."""
        return blobs.describe(self.endpoint, digest)

    def write_blob(
        self, descriptor: Descriptor, open_blob: OpenBlob, *, on_bytes: Callable[[int], None] = lambda _: None
    ) -> Written | None:
        """Mount the blob from where it may be already, else upload it; see ``uploads.write``."""
        candidates = self._mount_from(descriptor.digest)
        return uploads.write(
            self.endpoint, descriptor, open_blob, on_bytes=on_bytes, candidates=candidates, remember=self._remember
        )

    def put_manifest(self, manifest: Manifest, *, tag: str | None = None) -> Descriptor:
        """Store a manifest; where the registry keeps no list of referrers, keep the fallback tag."""
        selector = tag or str(manifest.digest)
        response = manifests.put(self.endpoint, manifest, selector)
        referrers.announce(self.endpoint, manifest, acknowledged=response.headers.get("OCI-Subject"))
        descriptor = manifest.descriptor
        return Descriptor(descriptor.media_type, descriptor.digest, descriptor.size)

    def list_referrers(self, subject: Digest) -> list[Descriptor]:
        return referrers.list_referrers(self.endpoint, subject)

    def list_tags(self) -> list[str]:
        return manifests.list_tags(self.endpoint)

    def delete(self, selector: str) -> None:
        """Remove a tag, or a manifest by its digest, and then its entry among its subject's referrers.

        Raises NotFoundError, and RegistryRefusedError where the registry does not delete (or not tags).
        """
        manifest = manifests.fetch_if_present(self.endpoint, selector) if ":" in selector else None
        manifests.delete(self.endpoint, selector)
        if manifest is not None:
            referrers.withdraw(self.endpoint, manifest)
