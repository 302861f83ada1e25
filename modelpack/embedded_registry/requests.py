"""What a request asks for, as the endpoints read it."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.requests import Request

from modelpack.embedded_registry.errors import RefusedError
from modelpack.errors import InvalidContentError
from modelpack.oci.digest import Digest
from modelpack.store import Store, StoreRepository

if TYPE_CHECKING:
    from modelpack.embedded_registry.uploads import Uploads
    from modelpack.embedded_registry.upstream import Upstream

_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Call:
    """One request to a repository. ``item`` is the digest, tag or upload that the path names."""

    request: Request
    store: Store
    uploads: "Uploads"
    repository: StoreRepository
    item: str = ""
    upstream: "Upstream | None" = None


def parse_digest(text: str | None) -> Digest:
    try:
        return Digest(text or "")
    except InvalidContentError as error:
        raise RefusedError(400, "DIGEST_INVALID", str(error)) from error


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """The first byte and the one behind the last that a Range header asks for (RFC 9110, 14.1.2).

    None asks for the whole: no header, several ranges, or one that makes no sense. Raises RefusedError (416).
    """
    match = _RANGE.fullmatch(header.replace(" ", "")) if header else None
    if match is None or match.group(1) == match.group(2) == "":
        return None
    first, last = match.groups()
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < start:
            return None
    if start >= size or (not first and int(last) == 0):
        raise RefusedError(416, "RANGE_INVALID", f"the blob has {size} bytes", {"Content-Range": f"bytes */{size}"})
    return start, end


async def read_bounded(request: Request, limit: int) -> bytes:
    """The body. Raises RefusedError (413) above ``limit`` bytes."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise RefusedError(413, "SIZE_INVALID", f"a manifest may have {limit} bytes")
    return bytes(body)
