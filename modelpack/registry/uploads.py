"""Writing blobs into one repository: mounted where the registry has them, else uploaded in one piece.

One POST and one PUT with the whole blob is what every registry does right; uploads in several PATCHes lose data on
some, and are for what stands before a registry and lets no large body through. A broken upload goes on where the
registry says that it stands, if that is further than before; most cannot say, and then this blob starts again in a
fresh session. That of a process that was killed goes on like that too, where somebody keeps its location.
"""

import contextlib
import logging
import re
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote

from modelpack.errors import (
    AccessDeniedError,
    InvalidContentError,
    ModelpackError,
    NotFoundError,
    RegistryRefusedError,
    RegistryUnavailableError,
)
from modelpack.oci.manifest import Descriptor
from modelpack.oci.target import OpenBlob, Written
from modelpack.registry.address import stay_at
from modelpack.registry.blobs import exists, name
from modelpack.registry.endpoint import Endpoint
from modelpack.registry.http import Body, Response
from modelpack.registry.profiles import Patch
from modelpack.registry.refusal import Refusal
from modelpack.registry.retry import Backoff, TransientError
from modelpack.registry.upload_content import UploadContent, headers_of

logger = logging.getLogger(__name__)

_MAX_CANDIDATES = 3
# How registries answer that know a PUT only as the end of an upload, and have no better code for it.
_PUT_REFUSED = frozenset({405, 501})
# A blob of less is sent again sooner than anything is remembered of it.
_WORTH_REMEMBERING = 16 << 20
_TOO_LARGE = 413
# As much as is sent at once to who refuses more: below the 100 MB of a content network that is usual before registries.
_PIECE_SIZE = 16 << 20
_RANGE = re.compile(r"(?:bytes=)?0-(\d{1,19})", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Upload:
    """An upload session: where it goes on, and how many bytes the registry has."""

    location: str
    offset: int = 0


class UploadNote(Protocol):
    """What somebody keeps of one upload for the next process."""

    def recall(self) -> str | None:
        """Its location."""

    def keep(self, location: str) -> None: ...

    def drop(self) -> None: ...


Remember = Callable[[str], AbstractContextManager[UploadNote | None]]
"""The note of an upload by its name; None while another process is at it."""


class _Forgetful:
    def recall(self) -> str | None:
        return None

    def keep(self, location: str) -> None:
        pass

    def drop(self) -> None:
        pass


def forgetful(name: str) -> AbstractContextManager[UploadNote | None]:  # noqa: ARG001
    """Remembers nothing."""
    return contextlib.nullcontext()


class _PutRefusedError(Exception):
    """The registry wants a PATCH; never seen outside this module."""


class _BodyRefusedError(Exception):
    """Something before the registry lets no body of this size through; never seen outside this module."""


def write(
    endpoint: Endpoint,
    descriptor: Descriptor,
    open_blob: OpenBlob,
    *,
    on_bytes: Callable[[int], None] = lambda _: None,
    candidates: Sequence[str] = (),
    remember: Remember = forgetful,
) -> Written | None:
    """Store a blob whose digest is known. Callers that expect it to be there ask ``exists`` first.

    ``candidates`` are repositories of the same registry that may have it. What streams is hashed on its way, and the
    last piece is held back until all of it is right. ``on_bytes`` hears of each byte once, however often it was sent,
    and of none of a blob that was mounted. ``remember`` keeps where the upload of a large one stands. Raises
    DigestMismatchError, RegistryRefusedError.
    """
    reported = 0

    def report(sent: int) -> None:
        nonlocal reported
        if sent > reported:
            on_bytes(sent - reported)
            reported = sent

    is_mounted, upload = _mount(endpoint, descriptor, candidates)
    if is_mounted:
        return Written(is_mounted=True)
    if descriptor.size < _WORTH_REMEMBERING or endpoint.profile.patch is Patch.NEVER:
        remember = forgetful
    with remember(f"{endpoint.full_name}@{descriptor.digest}") as found:
        note = found or _Forgetful()
        upload = _recalled(endpoint, descriptor, note) or upload
        kept = _upload(endpoint, descriptor, open_blob, upload, note=note, report=report)
    report(descriptor.size)
    return Written(kept=kept) if kept else None


def _mount(endpoint: Endpoint, descriptor: Descriptor, candidates: Sequence[str]) -> tuple[bool, _Upload | None]:
    """Whether the registry had the blob elsewhere; if not, the session that it may have begun instead."""
    upload = None
    for candidate in candidates[:_MAX_CANDIDATES]:
        place = f"blobs/uploads/?mount={descriptor.digest}&from={quote(candidate, safe='')}"
        what = f"a mount of {name(endpoint, descriptor)} from {candidate}"
        try:
            with endpoint.request(
                "POST", place, what=what, expect=(201, 202), retry=False, pull_from=candidate
            ) as response:
                if response.status == 201:
                    return True, None
                upload = _Upload(_location(endpoint, response))
        except (AccessDeniedError, NotFoundError, RegistryRefusedError, RegistryUnavailableError) as error:
            # It would have saved an upload: not to have it is no reason to fail.
            logger.info("%s", error)
    return False, upload


def _recalled(endpoint: Endpoint, descriptor: Descriptor, note: UploadNote) -> _Upload | None:
    """Where an upload of an earlier process stands, if the registry still knows it."""
    location = note.recall()
    try:
        there = stay_at(endpoint.session.origin, f"{endpoint.session.origin}/", location) if location else None
    except InvalidContentError:
        there = None
    return _ask(endpoint, descriptor, _Upload(there)) if there else None


def _upload(
    endpoint: Endpoint,
    descriptor: Descriptor,
    open_blob: OpenBlob,
    upload: _Upload | None,
    *,
    note: UploadNote,
    report: Callable[[int], None],
) -> int:
    """Upload a blob, by ``upload`` if it has begun; returns how many bytes of an earlier process were of use."""
    backoff = Backoff(endpoint.session.retries)
    kept = upload.offset if upload else 0
    may_resume = True
    while True:
        try:
            if upload is None:
                upload, kept = _begin(endpoint, descriptor), 0
            note.keep(upload.location)
            if endpoint.refuses_large and descriptor.size > _PIECE_SIZE:
                upload = _send_pieces(endpoint, descriptor, open_blob, upload, note=note, report=report)
            _send(endpoint, descriptor, open_blob, upload, report)
            break
        except _PutRefusedError:
            endpoint.refuses_put, upload = True, None
            continue
        except _BodyRefusedError:
            endpoint.refuses_large = True
            # Nothing of it has come to the registry, which may still have what an earlier process sent.
            upload = _ask(endpoint, descriptor, _Upload(upload.location)) if upload and upload.offset else None
            continue
        except RegistryRefusedError:
            note.drop()
            if not upload or not upload.offset:
                raise
            # More may have come before the break than it said. Else what it has may be what is wrong: all once more.
            upload = _ask(endpoint, descriptor, upload) if may_resume else None
            may_resume = False
            continue
        except TransientError as error:
            backoff.wait(error)
        # The answer may be what got lost, not the blob.
        if exists(endpoint, descriptor):
            break
        upload = _ask(endpoint, descriptor, upload) if upload and may_resume else None
        if upload:
            backoff.progressed()
    note.drop()
    return kept


def _begin(endpoint: Endpoint, descriptor: Descriptor) -> _Upload:
    what = f"an upload of {name(endpoint, descriptor)}"
    with endpoint.request("POST", "blobs/uploads/", what=what, expect=(202,), retry=False) as started:
        return _Upload(_location(endpoint, started))


def _ask(endpoint: Endpoint, descriptor: Descriptor, broken: _Upload) -> _Upload | None:
    """Where a broken upload stands; None when it did not advance, or the registry cannot say."""
    what = f"the upload of {name(endpoint, descriptor)}"
    try:
        with endpoint.request("GET", broken.location, what=what, expect=(204,), retry=False) as response:
            offset = _received(response)
            location = _location(endpoint, response) if "Location" in response.headers else broken.location
    except ModelpackError:
        return None
    # distribution says 0-0 for nothing.
    if offset is None or not max(broken.offset, 1) < offset <= descriptor.size:
        return None
    logger.info("%s goes on at byte %d", what, offset)
    return _Upload(location, offset)


def _send(
    endpoint: Endpoint, descriptor: Descriptor, open_blob: OpenBlob, upload: _Upload, report: Callable[[int], None]
) -> None:
    """Send what the session lacks, and close it."""
    by_patch = endpoint.refuses_put and upload.offset < descriptor.size
    with UploadContent(descriptor, open_blob, upload.offset, report) as content:
        if by_patch:
            upload = _send_whole(endpoint, descriptor, upload, content)
            content.offset = upload.offset
        with _sent(
            endpoint,
            "PUT",
            _with_digest(upload.location, descriptor),
            descriptor,
            content,
            headers=content.headers,
            body=content.body,
            expect=(201, 400, _TOO_LARGE, *_PUT_REFUSED),
        ) as response:
            if response.status != 201:
                raise _refusal(endpoint, descriptor, response, sent=descriptor.size - content.offset, by_patch=by_patch)
    # The specification leaves to registries what they make of pieces; the size says whether they have all of them.
    if upload.offset and not exists(endpoint, descriptor):
        raise TransientError(f"{name(endpoint, descriptor)} was accepted, and is not there")


def _send_pieces(
    endpoint: Endpoint,
    descriptor: Descriptor,
    open_blob: OpenBlob,
    upload: _Upload,
    *,
    note: UploadNote,
    report: Callable[[int], None],
) -> _Upload:
    """Send what the session lacks in one PATCH after the other; returns the session with all bytes.

    Registries were seen that keep only the first of them, or the last: each has to be answered with all that was sent.
    """
    with UploadContent(descriptor, open_blob, upload.offset, report) as content:
        for piece in content.pieces(_PIECE_SIZE):
            end = upload.offset + len(piece)
            headers = headers_of(upload.offset, end, descriptor.size)
            upload = _patch(endpoint, descriptor, upload, content, headers=headers, body=piece, is_piece=True)
            note.keep(upload.location)
    return upload


def _send_whole(endpoint: Endpoint, descriptor: Descriptor, upload: _Upload, content: UploadContent) -> _Upload:
    """Send all that is left in one PATCH; returns the session with all bytes."""
    headers = content.headers
    if endpoint.profile.patch is Patch.CHUNKED:
        del headers["Content-Length"]
    return _patch(endpoint, descriptor, upload, content, headers=headers, body=content.body)


def _patch(
    endpoint: Endpoint,
    descriptor: Descriptor,
    upload: _Upload,
    content: UploadContent,
    *,
    headers: dict[str, str],
    body: Body,
    is_piece: bool = False,
) -> _Upload:
    """One PATCH; returns the session as the answer has it. What it keeps of a piece it has to say."""
    end = upload.offset + len(body) if isinstance(body, bytes) else descriptor.size
    with _sent(
        endpoint,
        "PATCH",
        upload.location,
        descriptor,
        content,
        headers=headers,
        body=body,
        expect=(201, 202, 204),
    ) as response:
        received = _received(response)
        if received != end and (is_piece or received is not None):
            raise RegistryRefusedError(
                f"{endpoint.session.registry} kept {'nobody knows how many' if received is None else received} of the"
                f" {end} bytes of {descriptor.digest}"
            )
        location = _location(endpoint, response) if "Location" in response.headers else upload.location
    return _Upload(location, end)


def _refusal(endpoint: Endpoint, descriptor: Descriptor, response: Response, *, sent: int, by_patch: bool) -> Exception:
    """``sent`` is how many bytes the refused PUT had."""
    refusal = Refusal.parse(response.status, response.headers, response.excerpt())
    wants_patch = "UNSUPPORTED" in refusal.codes or (response.status in _PUT_REFUSED and not refusal.codes)
    if wants_patch and not by_patch and endpoint.profile.patch is not Patch.NEVER:
        return _PutRefusedError()
    # A registry that speaks of a quota itself has a code for it.
    is_body = response.status == _TOO_LARGE and not refusal.codes and sent > _PIECE_SIZE
    if is_body and endpoint.profile.takes_pieces:
        return _BodyRefusedError()
    return refusal.error(name(endpoint, descriptor))


def _sent(
    endpoint: Endpoint,
    method: str,
    place: str,
    descriptor: Descriptor,
    content: UploadContent,
    *,
    headers: dict[str, str],
    body: Body,
    expect: Collection[int],
) -> Response:
    """The answer to a request with content of ours, whose own failures are not the network's."""
    what = name(endpoint, descriptor)
    try:
        return endpoint.request(method, place, what=what, expect=expect, headers=headers, body=body, retry=False)
    except (TransientError, NotFoundError) as error:
        if content.failure is not None:
            raise content.failure from error
        if isinstance(error, NotFoundError):
            raise TransientError(f"the upload session of {what} is gone") from error
        raise


def _received(response: Response) -> int | None:
    """How many bytes the registry says it has (``Range: 0-<last byte>``)."""
    match = _RANGE.fullmatch(response.headers.get("Range", "").strip())
    return int(match[1]) + 1 if match else None


def _with_digest(location: str, descriptor: Descriptor) -> str:
    return f"{location}{'&' if '?' in location else '?'}digest={descriptor.digest}"


def _location(endpoint: Endpoint, response: Response) -> str:
    location = response.headers.get("Location")
    if not location:
        raise RegistryRefusedError(f"{endpoint.session.registry} starts an upload without saying where")
    # Content for a registry goes to that registry: a foreign location would receive the weights and the token.
    try:
        there = stay_at(endpoint.session.origin, response.url, location)
    except InvalidContentError:
        there = None
    if there is None:
        raise RegistryRefusedError(f"{endpoint.session.registry} sends an upload to another host: refused")
    return there
