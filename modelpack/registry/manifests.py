"""Manifests and tags of one repository (distribution specification 1.1: "Pulling manifests", "Pushing Manifests",
"Listing Tags", "Deleting").
"""

import re
from collections.abc import Collection, Iterator, Mapping
from urllib.parse import urlencode

from modelpack.errors import DigestMismatchError, InvalidContentError, NotFoundError, RegistryRefusedError
from modelpack.oci import strict_json
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import ACCEPTED_TYPES, MAX_MANIFEST_SIZE, Descriptor, Manifest
from modelpack.registry.address import stay_at
from modelpack.registry.endpoint import Endpoint
from modelpack.registry.http import Response
from modelpack.registry.refusal import Refusal, printable

_ACCEPT = ", ".join(ACCEPTED_TYPES)
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}", re.ASCII)
_LINK = re.compile(r'<([^<>]*)>\s*;[^,]*\brel="?next"?', re.ASCII)
_MAX_PAGE = 16 << 20
_MAX_PAGES = 1000
_MAX_TAGS = 1_000_000


def resolve(endpoint: Endpoint, selector: str) -> Descriptor:
    """What a tag or a digest names now, as the registry says: fetch_manifest checks it."""
    what = f"{endpoint.full_name}{'@' if ':' in selector else ':'}{selector}"
    headers = {"Accept": _ACCEPT}
    with endpoint.request("HEAD", f"manifests/{selector}", what=what, headers=headers) as response:
        digest, size = response.headers.get("Docker-Content-Digest"), response.content_length
        media_type = response.content_type
    if digest and size and media_type in ACCEPTED_TYPES:
        descriptor = Descriptor(media_type, Digest(digest), size)
    else:
        # The headers are optional, and a proxy that compresses drops the length.
        with endpoint.request(
            "GET", f"manifests/{selector}", what=what, headers=headers, load=MAX_MANIFEST_SIZE
        ) as response:
            body, media_type = response.read(MAX_MANIFEST_SIZE), response.content_type
        descriptor = Manifest.parse(body, media_type=media_type or None).descriptor
        descriptor = Descriptor(descriptor.media_type, descriptor.digest, descriptor.size)
    if ":" in selector and str(descriptor.digest) != selector:
        raise DigestMismatchError(f"{endpoint.full_name} answers with {descriptor.digest} for {selector}")
    return descriptor


def fetch(endpoint: Endpoint, descriptor: Descriptor) -> Manifest:
    """The manifest, its bytes checked before they are parsed."""
    return Manifest.parse(fetch_raw(endpoint, descriptor), media_type=descriptor.media_type)


def fetch_raw(endpoint: Endpoint, descriptor: Descriptor) -> bytes:
    """The bytes of a manifest, checked."""
    if descriptor.size > MAX_MANIFEST_SIZE:
        raise InvalidContentError(f"manifest {descriptor.digest} has {descriptor.size} bytes, too many for a manifest")
    what = f"{endpoint.full_name}@{descriptor.digest}"
    headers = {"Accept": ", ".join(dict.fromkeys((descriptor.media_type, *ACCEPTED_TYPES)))}
    with endpoint.request(
        "GET", f"manifests/{descriptor.digest}", what=what, headers=headers, load=MAX_MANIFEST_SIZE
    ) as response:
        raw, media_type = response.read(MAX_MANIFEST_SIZE), response.content_type
    descriptor.check(raw)
    # The type is part of what was signed and listed: one answer under two types is CVE-2021-41190.
    if media_type and media_type != descriptor.media_type:
        raise InvalidContentError(
            f"{what} is served as {printable(media_type)}, but listed as {printable(descriptor.media_type)}"
        )
    return raw


def put(endpoint: Endpoint, manifest: Manifest, selector: str) -> Response:
    """Store a manifest under a tag or its digest, and make sure that it is this one that was stored."""
    descriptor = manifest.descriptor
    what = f"manifest {endpoint.full_name}{'@' if ':' in selector else ':'}{selector}"
    response = endpoint.request(
        "PUT",
        f"manifests/{selector}",
        what=what,
        expect=(201, 400, 404),
        headers={"Content-Type": manifest.media_type},
        body=manifest.raw,
    )
    with response:
        if response.status != 201:
            refusal = Refusal.parse(response.status, response.headers, response.excerpt())
            if {"MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN"} & set(refusal.codes):
                raise InvalidContentError(f"{what} names a blob that the repository does not have: {refusal.text}")
            raise refusal.error(what)
        stored = response.headers.get("Docker-Content-Digest")
    if stored is None:
        stored = str(resolve(endpoint, selector).digest)
    if stored != str(descriptor.digest):
        raise DigestMismatchError(f"{what} was stored as {printable(stored)} instead of {descriptor.digest}")
    return response


def delete(endpoint: Endpoint, selector: str) -> None:
    """Remove a tag, or a manifest by its digest. Raises NotFoundError, RegistryRefusedError."""
    what = f"deletion of {endpoint.full_name}{'@' if ':' in selector else ':'}{selector}"
    with endpoint.request("DELETE", f"manifests/{selector}", what=what, expect=(200, 202, 204, 400, 405)) as response:
        if response.status < 300:
            return
        refusal = Refusal.parse(response.status, response.headers, response.excerpt())
    if ":" not in selector:
        # distribution 2 takes a tag for a malformed digest, and says something else.
        raise RegistryRefusedError(f"{endpoint.session.registry} does not delete tags, only manifests by digest")
    raise refusal.error(what)


def list_tags(endpoint: Endpoint) -> list[str]:
    """All tags, sorted. What is not a tag by the specification's grammar is left out."""
    tags: set[str] = set()
    what = f"tags of {endpoint.full_name}"
    place = f"tags/list?{urlencode({'n': 1000})}"
    for response in pages(endpoint, place, what=what):
        listed = strict_json.parse_object(response.read(_MAX_PAGE), what=what).get("tags") or []
        if not isinstance(listed, list):
            raise InvalidContentError(f"{what} are not a list")
        tags.update(tag for tag in listed if isinstance(tag, str) and _TAG.fullmatch(tag))
        if len(tags) > _MAX_TAGS:
            raise InvalidContentError(f"{what} are more than {_MAX_TAGS}")
    return sorted(tags)


def pages(
    endpoint: Endpoint,
    place: str,
    *,
    what: str,
    headers: Mapping[str, str] | None = None,
    expect: Collection[int] = (200,),
    follow_origins: bool = True,
) -> Iterator[Response]:
    """Answers linked by ``Link: <...>; rel="next"``, as far as that stays at the registry's origin."""
    seen: set[str] = set()
    while place not in seen:
        if len(seen) >= _MAX_PAGES:
            raise InvalidContentError(f"{what} have more than {_MAX_PAGES} pages")
        seen.add(place)
        with endpoint.request(
            "GET", place, what=what, headers=headers, expect=expect, follow_origins=follow_origins, load=_MAX_PAGE
        ) as response:
            yield response
            link = _LINK.search(response.headers.get("Link", "")[:8192])
        if not link:
            return
        there = stay_at(endpoint.session.origin, response.url, link.group(1))
        if there is None:
            raise RegistryRefusedError(f"{endpoint.session.registry} continues {what} on another host")
        place = there


def fetch_if_present(endpoint: Endpoint, selector: str) -> Manifest | None:
    """The manifest behind a tag, None when there is none."""
    try:
        return fetch(endpoint, resolve(endpoint, selector))
    except NotFoundError:
        return None
