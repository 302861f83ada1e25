"""Registries out there, as their bug reports and manuals describe them, for the fake registry to play."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Quirks:
    """How a registry differs from the specification at its best."""

    name: str = "plain"
    separate_repositories: bool = False  # a blob is in the repositories that it was pushed to or mounted in
    mounts: bool = True
    mount_status: int | None = None  # what every mount answers instead
    absolute_location: bool = False
    put_refusal: int | None = None  # a PUT with a body: only PATCH brings content
    patch_refusal: int | None = None
    largest_sized_patch: int | None = None  # more is a 416; in transfer chunks it passes
    largest_body: int | None = None  # what stands before it answers more with 413, and hangs up
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

# Its sessions do not survive a broken body, and it appends whatever comes.
DISTRIBUTION_2 = Quirks(
    "distribution 2.8.2", separate_repositories=True, absolute_location=True, tells_status=False, lying_416=True
)
DISTRIBUTION_3 = Quirks("distribution 3", separate_repositories=True, absolute_location=True)
# PATCH with a length of more than 4 MiB: 416 (oci-client#35); referrers: a redirect to a web page (artifacthub#4785).
GHCR = Quirks(
    "GHCR", separate_repositories=True, largest_sized_patch=4 << 20, tells_status=False, referrers_elsewhere=True
)
# 201 for a PATCH, and what follows the first is lost (containers-roadmap#2831).
ECR = Quirks(
    "ECR",
    separate_repositories=True,
    mounts=False,
    patch_status=201,
    patch_keeps="first",
    ends_broken=True,
    claims_referrers=True,
)
# "Chunked uploads are not supported" (its list of known issues).
GOOGLE_AR = Quirks("Google AR", separate_repositories=True, patch_refusal=400, tells_status=False, ends_broken=True)
# The fallback tag answers with the subject itself (oras-go#1396).
GITLAB = Quirks("GitLab", separate_repositories=True, resolves_digest_tags=True)
# Only the last PATCH stays (wasmCloud#3405); older ones refuse the whole blob in one PUT (containerd#3533).
ARTIFACTORY = Quirks(
    "Artifactory", separate_repositories=True, put_refusal=405, patch_keeps="last", tells_status=False, ends_broken=True
)
# Cookies that, once kept, need a CSRF token as well.
HARBOR = Quirks("Harbor", separate_repositories=True, cookies=True, warning="this project has a quota")

FLAVOURS = (DISTRIBUTION_2, DISTRIBUTION_3, GHCR, ECR, GOOGLE_AR, GITLAB, ARTIFACTORY, HARBOR)
