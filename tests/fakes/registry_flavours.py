"""Registries out there, as their bug reports and manuals describe them, for the fake registry to play."""

from fakes.registry import Quirks

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
