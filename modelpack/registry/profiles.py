"""What is known of registries beyond the specification, as data: the only place that names one.

Each entry says where it is known from. What is not listed is asked, and behaves as the specification says.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase

from modelpack.errors import RegistryRefusedError
from modelpack.oci.manifest import Descriptor


class Patch(Enum):
    """How a whole blob may be streamed in one PATCH, where one PUT is refused."""

    SIZED = "with its length"
    CHUNKED = "in transfer chunks"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class Profile:
    """One kind of registry. ``hosts`` are patterns of its name with ``*``; ``max_layer`` is in bytes."""

    name: str
    hosts: tuple[str, ...] = ()
    max_layer: int | None = None
    patch: Patch = Patch.SIZED
    takes_pieces: bool = True
    """Whether a blob may come in several PATCHes, of which it was not seen to lose any."""
    has_referrers_api: bool | None = None
    """What was seen. We ask all the same: None and False differ only in what ``doctor`` says."""
    doubt_subject_header: bool = False
    """Whether ``OCI-Subject`` was seen in answers of a registry that then listed nothing."""
    connections: int = 4
    """How many bring as much as can be had at a time: more where blobs come from a content network or an object store,
    which hold each connection back.
    """
    notes: tuple[str, ...] = ()

    def check_limits(self, blobs: Iterable[Descriptor]) -> None:
        """Raises RegistryRefusedError for a blob larger than such a registry is known to take."""
        for blob in blobs:
            if self.max_layer is not None and blob.size > self.max_layer:
                raise RegistryRefusedError(
                    f"{self.name} takes layers of at most {self.max_layer} bytes, and {blob.digest} has {blob.size}:"
                    " split the model into smaller files, or choose a smaller variant"
                )


_ELSEWHERE = 8
"""Connections to where blobs come by a redirect to S3, GCS, Azure's blob storage or a content network."""

GENERIC = Profile("a registry without a profile")

PROFILES = (
    # docker/roadmap#724; api and token server on hosts of their own.
    Profile(
        "Docker Hub",
        ("docker.io",),
        has_referrers_api=False,
        connections=_ELSEWHERE,
        notes=("pulls are counted against a quota",),
    ),
    # "Working with the Container registry": limits. PATCH with a length of more than 4 MiB answers 416
    # (oci-client#35); the referrers path leads to a web page (artifacthub#4785).
    Profile(
        "GitHub Container Registry",
        ("ghcr.io", "containers.pkg.github.com"),
        max_layer=10 * 1000**3,
        patch=Patch.CHUNKED,
        takes_pieces=False,
        has_referrers_api=False,
        connections=_ELSEWHERE,
        notes=("an upload may take 10 minutes",),
    ),
    # "Amazon ECR service quotas". A second PATCH answers 201 and keeps nothing of it (containers-roadmap#2831);
    # OCI-Subject without the API: sigstore-js#1183.
    Profile(
        "Amazon ECR",
        ("*.dkr.ecr.*.amazonaws.com", "*.dkr.ecr.*.amazonaws.com.cn", "*.dkr-ecr.*.on.aws"),
        max_layer=52_000 << 20,
        patch=Patch.NEVER,
        takes_pieces=False,
        doubt_subject_header=True,
        connections=_ELSEWHERE,
        notes=("a repository must exist before a push", "some artifact types are refused"),
    ),
    Profile(
        "Amazon ECR Public",
        ("public.ecr.aws",),
        max_layer=10_000 << 20,
        patch=Patch.NEVER,
        takes_pieces=False,
        connections=_ELSEWHERE,
    ),
    # "Artifact Registry: known issues": chunked uploads are not supported.
    Profile(
        "Google Artifact Registry",
        ("*.pkg.dev", "gcr.io", "*.gcr.io"),
        patch=Patch.NEVER,
        takes_pieces=False,
        connections=_ELSEWHERE,
    ),
    Profile(
        "Azure Container Registry",
        ("*.azurecr.io", "*.azurecr.cn", "*.azurecr.us"),
        has_referrers_api=True,
        connections=_ELSEWHERE,
    ),
    # Quay's config.py: MAXIMUM_LAYER_SIZE.
    Profile("Quay", ("quay.io",), max_layer=20 << 30, has_referrers_api=True, connections=_ELSEWHERE),
    # The tag sha256-<hex> answers with the digest itself (oras-go#1396); unknown media types are refused.
    Profile(
        "GitLab",
        ("registry.gitlab.com",),
        has_referrers_api=False,
        connections=_ELSEWHERE,
        notes=("unknown media types are refused", "tokens live for minutes"),
    ),
    # Several PATCHes keep only the last (wasmCloud#3405); older versions take a PATCH where they refuse the PUT
    # (containerd#3533).
    Profile("Artifactory", ("*.jfrog.io",), takes_pieces=False),
)


def profile_of(registry: str) -> Profile:
    """The profile of a registry by its name in references."""
    host = registry.lower()
    return next((one for one in PROFILES if any(fnmatchcase(host, pattern) for pattern in one.hosts)), GENERIC)
