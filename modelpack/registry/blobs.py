"""Reading the blobs of one repository, in streams that resume by themselves. Writing them is ``uploads``."""

import contextlib
import re
from collections.abc import Generator, Iterator

from modelpack.errors import DigestMismatchError, InvalidContentError
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import Descriptor
from modelpack.oci.target import RangesIgnoredError
from modelpack.registry.address import Origin
from modelpack.registry.endpoint import Endpoint
from modelpack.registry.http import Response
from modelpack.registry.retry import Backoff, TransientError

# How the host that a registry sent us to says that its signed URL has had its time.
_EXPIRED = frozenset({400, 401, 403, 404, 410})
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", re.ASCII)


def exists(endpoint: Endpoint, descriptor: Descriptor) -> bool:
    """Raises DigestMismatchError when the registry holds something of another size under this digest."""
    what = name(endpoint, descriptor)
    with endpoint.request("HEAD", f"blobs/{descriptor.digest}", what=what, expect=(200, 404)) as response:
        if response.status == 404:
            return False
        # Without a length, or with 0 from a proxy that drops bodies of HEAD, there is nothing to compare.
        size = response.content_length
    if size and size != descriptor.size:
        raise DigestMismatchError(f"{what} has {size} bytes where {descriptor.size} were promised")
    return True


def describe(endpoint: Endpoint, digest: Digest) -> Descriptor:
    """A blob of which only the digest is known. Raises NotFoundError, InvalidContentError without a size."""
    what = f"blob {digest} of {endpoint.full_name}"
    with endpoint.request("HEAD", f"blobs/{digest}", what=what) as response:
        size = response.content_length
    if size is None:
        raise InvalidContentError(f"the registry does not say how large {what} is")
    return Descriptor("application/octet-stream", digest, size)


@contextlib.contextmanager
def read(
    endpoint: Endpoint, descriptor: Descriptor, *, start: int = 0, stop: int | None = None
) -> Generator[Iterator[bytes], None, None]:
    """The blob's bytes from ``start`` on, in pieces of at most 1 MiB, over as many requests as it takes.

    With ``stop``, those before it, and RangesIgnoredError where the registry would send all the others too. Raises
    DigestMismatchError when the registry's copy has another size, RegistryUnavailableError when it cannot be
    continued. The content is not hashed here.
    """
    chunks = _chunks(endpoint, descriptor, start, stop)
    try:
        yield chunks
    finally:
        chunks.close()


def name(endpoint: Endpoint, descriptor: Descriptor) -> str:
    """The blob, for a message."""
    return f"blob {descriptor.digest} of {endpoint.full_name}"


def _chunks(endpoint: Endpoint, descriptor: Descriptor, start: int, stop: int | None) -> Generator[bytes, None, None]:
    backoff = Backoff(endpoint.session.retries)
    position = start
    end = descriptor.size if stop is None else stop
    while position < end:
        before = position
        broken: TransientError | None = None
        try:
            with _open_range(endpoint, descriptor, position, end) as (response, ignored):
                if ignored is None:
                    to_skip = 0
                elif stop is None:
                    to_skip = ignored
                else:
                    raise RangesIgnoredError(f"{endpoint.session.registry} does not send parts of a blob")
                for received in response.chunks():
                    chunk = received[to_skip:]
                    to_skip -= min(to_skip, len(received))
                    if position + len(chunk) > end:
                        raise DigestMismatchError(
                            f"{name(endpoint, descriptor)} is longer than the {descriptor.size} bytes promised"
                        )
                    position += len(chunk)
                    if chunk:
                        yield chunk
        except TransientError as error:
            broken = error
        if position < end:
            if position > before:
                backoff.progressed()
            backoff.wait(broken or TransientError(f"{name(endpoint, descriptor)} ends after {position} bytes"))


@contextlib.contextmanager
def _open_range(
    endpoint: Endpoint, descriptor: Descriptor, start: int, stop: int
) -> Generator[tuple[Response, int | None], None, None]:
    """One request for the bytes ``start`` to ``stop - 1``; with how many to skip where the range was ignored.

    One try: TransientError is for the caller. Always a closed range that ends inside the blob, because registries
    disagree about all others.
    """
    what = name(endpoint, descriptor)
    is_whole = start == 0 and stop == descriptor.size
    headers = {} if is_whole else {"Range": f"bytes={start}-{stop - 1}"}
    with _get(endpoint, descriptor, headers, what) as response:
        if response.status == 416:
            raise DigestMismatchError(f"{what} is shorter than the {descriptor.size} bytes promised")
        if response.status == 206:
            _check_range(response, descriptor, start, stop, what)
            yield response, None
            return
        size = response.content_length
        if size is not None and size != descriptor.size:
            raise DigestMismatchError(f"{what} has {size} bytes where {descriptor.size} were promised")
        yield response, None if is_whole else start


def _get(endpoint: Endpoint, descriptor: Descriptor, headers: dict[str, str], what: str) -> Response:
    """Ask where the registry sent us for this blob before, as long as that works; then the registry."""
    expect = (200, 206, 416)
    place = endpoint.places.get(descriptor.digest)
    if place is not None:
        response = endpoint.request("GET", place, what=what, headers=headers, expect={*expect, *_EXPIRED}, retry=False)
        if response.status in expect:
            return response
        response.close()
        endpoint.places.pop(descriptor.digest, None)
    response = endpoint.request(
        "GET", f"blobs/{descriptor.digest}", what=what, headers=headers, expect=expect, retry=False
    )
    if Origin.of(response.url) != endpoint.session.origin:
        endpoint.places[descriptor.digest] = response.url
    return response


def _check_range(response: Response, descriptor: Descriptor, start: int, stop: int, what: str) -> None:
    text = response.headers.get("Content-Range", "")
    match = _CONTENT_RANGE.fullmatch(text.strip())
    if not match or int(match[1]) != start or not start <= int(match[2]) < stop:
        raise InvalidContentError(f"{what}: asked for the bytes {start}-{stop - 1}, got {text[:60]!r}")
    if match[3] != "*" and int(match[3]) != descriptor.size:
        raise DigestMismatchError(f"{what} has {match[3]} bytes where {descriptor.size} were promised")
