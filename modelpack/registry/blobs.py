"""Blobs of one repository: streams that resume by themselves, uploads in one shot.

One POST and one PUT with the whole blob is what every registry does right; chunked uploads lose data on several and
cannot be resumed on distribution 2, so a broken upload starts again in a fresh session.
"""

import contextlib
import hashlib
import re
from collections.abc import Callable, Generator, Iterable, Iterator

from modelpack.errors import (
    DigestMismatchError,
    InvalidContentError,
    NotFoundError,
    RegistryRefusedError,
    RegistryUnavailableError,
)
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import Descriptor
from modelpack.oci.target import OpenBlob
from modelpack.registry.address import stay_at
from modelpack.registry.endpoint import Endpoint
from modelpack.registry.http import Response
from modelpack.registry.retry import Backoff, TransientError

_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", re.ASCII)


def exists(endpoint: Endpoint, descriptor: Descriptor) -> bool:
    """Raises DigestMismatchError when the registry holds something of another size under this digest."""
    what = _name(endpoint, descriptor)
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
def read(endpoint: Endpoint, descriptor: Descriptor, *, offset: int = 0) -> Generator[Iterator[bytes], None, None]:
    """The blob's bytes from ``offset`` on, in pieces of at most 1 MiB, over as many requests as it takes.

    Raises DigestMismatchError when the registry's copy has another size, RegistryUnavailableError when it cannot be
    continued. The content is not hashed here.
    """
    chunks = _chunks(endpoint, descriptor, offset)
    try:
        yield chunks
    finally:
        chunks.close()


def _chunks(endpoint: Endpoint, descriptor: Descriptor, offset: int) -> Generator[bytes, None, None]:
    backoff = Backoff(endpoint.session.retries)
    position = offset
    while position < descriptor.size:
        before = position
        broken: TransientError | None = None
        try:
            with open_range(endpoint, descriptor, position, descriptor.size) as (response, ignored):
                to_skip = ignored
                for received in response.chunks():
                    chunk = received[to_skip:]
                    to_skip -= min(to_skip, len(received))
                    if position + len(chunk) > descriptor.size:
                        raise DigestMismatchError(
                            f"{_name(endpoint, descriptor)} is longer than the {descriptor.size} bytes promised"
                        )
                    position += len(chunk)
                    if chunk:
                        yield chunk
        except TransientError as error:
            broken = error
        if position < descriptor.size:
            if position > before:
                backoff.progressed()
            backoff.wait(broken or TransientError(f"{_name(endpoint, descriptor)} ends after {position} bytes"))


@contextlib.contextmanager
def open_range(
    endpoint: Endpoint, descriptor: Descriptor, start: int, stop: int
) -> Generator[tuple[Response, int], None, None]:
    """One request for the bytes ``start`` to ``stop - 1``; with how many to skip where ranges are ignored.

    One try: TransientError is for the caller. Always a closed range that ends inside the blob, because registries
    disagree about all others.
    """
    what = _name(endpoint, descriptor)
    is_whole = start == 0 and stop == descriptor.size
    headers = {} if is_whole else {"Range": f"bytes={start}-{stop - 1}"}
    with endpoint.request(
        "GET", f"blobs/{descriptor.digest}", what=what, headers=headers, expect=(200, 206, 416), retry=False
    ) as response:
        if response.status == 416:
            raise DigestMismatchError(f"{what} is shorter than the {descriptor.size} bytes promised")
        if response.status == 206:
            _check_range(response, descriptor, start, stop, what)
            yield response, 0
            return
        size = response.content_length
        if size is not None and size != descriptor.size:
            raise DigestMismatchError(f"{what} has {size} bytes where {descriptor.size} were promised")
        yield response, start


def _check_range(response: Response, descriptor: Descriptor, start: int, stop: int, what: str) -> None:
    text = response.headers.get("Content-Range", "")
    match = _CONTENT_RANGE.fullmatch(text.strip())
    if not match or int(match[1]) != start or not start <= int(match[2]) < stop:
        raise InvalidContentError(f"{what}: asked for the bytes {start}-{stop - 1}, got {text[:60]!r}")
    if match[3] != "*" and int(match[3]) != descriptor.size:
        raise DigestMismatchError(f"{what} has {match[3]} bytes where {descriptor.size} were promised")


def write(
    endpoint: Endpoint, descriptor: Descriptor, open_blob: OpenBlob, *, on_bytes: Callable[[int], None] = lambda _: None
) -> None:
    """Upload a blob whose digest is known. Callers that expect it to be there ask ``exists`` first.

    What streams is hashed on its way, and the last piece is held back until all of it is right. ``on_bytes`` hears of
    each byte once, however often it was sent. Raises DigestMismatchError, RegistryRefusedError.
    """
    backoff = Backoff(endpoint.session.retries)
    reported = 0

    def report(sent: int) -> None:
        nonlocal reported
        if sent > reported:
            on_bytes(sent - reported)
            reported = sent

    while True:
        try:
            _upload(endpoint, descriptor, open_blob, report)
            break
        except TransientError as error:
            backoff.wait(error)
        # The answer may be what got lost, not the blob.
        if exists(endpoint, descriptor):
            break
    report(descriptor.size)


def _upload(endpoint: Endpoint, descriptor: Descriptor, open_blob: OpenBlob, report: Callable[[int], None]) -> None:
    what = _name(endpoint, descriptor)
    with endpoint.request("POST", "blobs/uploads/", what=f"an upload of {what}", expect=(202,), retry=False) as started:
        location = _location(endpoint, started)
    separator = "&" if "?" in location else "?"
    # Read errors of ours must not pass for a broken connection inside urllib3: they are carried round it.
    own_errors: list[Exception] = []
    with contextlib.ExitStack() as opened:

        def body() -> Iterable[bytes]:
            return _checked(opened.enter_context(open_blob(0)), descriptor, report, own_errors)

        try:
            endpoint.request(
                "PUT",
                f"{location}{separator}digest={descriptor.digest}",
                what=what,
                expect=(201,),
                headers={"Content-Type": "application/octet-stream", "Content-Length": str(descriptor.size)},
                body=body if descriptor.size else b"",
                retry=False,
            ).close()
        except (TransientError, NotFoundError) as error:
            if own_errors:
                raise own_errors[0] from error
            if isinstance(error, NotFoundError):
                raise TransientError(f"the upload session of {what} is gone") from error
            raise


def _location(endpoint: Endpoint, response: Response) -> str:
    location = response.headers.get("Location")
    if not location:
        raise RegistryRefusedError(f"{endpoint.session.registry} starts an upload without saying where")
    # Content for a registry goes to that registry: a foreign location would receive the weights and the token.
    there = stay_at(endpoint.session.origin, response.url, location)
    if there is None:
        raise RegistryRefusedError(f"{endpoint.session.registry} sends an upload to another host: refused")
    return there


def _checked(
    chunks: Iterator[bytes], descriptor: Descriptor, report: Callable[[int], None], own_errors: list[Exception]
) -> Generator[bytes, None, None]:
    hasher = hashlib.sha256()
    size = 0
    try:
        for chunk in chunks:
            size += len(chunk)
            hasher.update(chunk)
            is_end = size >= descriptor.size
            if size > descriptor.size or (is_end and hasher.hexdigest() != descriptor.digest.hex):
                raise DigestMismatchError(f"content to upload as {descriptor.digest} is not what its digest says")
            yield chunk
            report(size)
        if size < descriptor.size:
            raise DigestMismatchError(f"content to upload as {descriptor.digest} ends after {size} bytes")
    except Exception as error:
        # A source that is a registry itself has tried again already: that is not for the upload to repeat.
        own = RegistryUnavailableError(str(error)) if isinstance(error, TransientError) else error
        own_errors.append(own)
        raise own from (error.__cause__ if own is error else error)


def _name(endpoint: Endpoint, descriptor: Descriptor) -> str:
    return f"blob {descriptor.digest} of {endpoint.full_name}"
