"""What goes into the body of an upload: a blob from some offset on, hashed on its way.

The last piece is held back until all of it is right.
"""

import contextlib
import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator

from modelpack.errors import DigestMismatchError, RegistryUnavailableError
from modelpack.oci.manifest import Descriptor
from modelpack.oci.target import OpenBlob
from modelpack.registry.http import Body
from modelpack.registry.retry import TransientError


class UploadContent(contextlib.ExitStack):
    """The bytes of a blob from an offset on, as often as a request asks for them. A context manager."""

    def __init__(self, descriptor: Descriptor, open_blob: OpenBlob, offset: int, report: Callable[[int], None]) -> None:
        super().__init__()
        self._descriptor, self._open_blob, self._report = descriptor, open_blob, report
        self.offset = offset
        # Read errors of ours must not pass for a broken connection inside urllib3: they are carried round it.
        self.failure: Exception | None = None

    @property
    def headers(self) -> dict[str, str]:
        return headers_of(self.offset, self._descriptor.size, self._descriptor.size)

    @property
    def body(self) -> Body:
        if self.offset == self._descriptor.size:
            return b""

        def begin() -> Iterator[bytes]:
            # A redirect, or a token that ended, has it sent again: the source's connection of the first time is free.
            self.close()
            return self._rest(self.enter_context(self._open_blob(0)))

        return begin

    def pieces(self, size: int) -> Iterator[bytes]:
        """What is to be sent, cut into pieces of so many bytes, each of which may be sent again."""
        piece = bytearray()
        for chunk in self._rest(self.enter_context(self._open_blob(0))):
            rest = memoryview(chunk)
            while rest:
                taken = rest[: size - len(piece)]
                piece += taken
                rest = rest[len(taken) :]
                if len(piece) == size:
                    yield bytes(piece)
                    piece.clear()
        if piece:
            yield bytes(piece)

    def _rest(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """What is to be sent. All is read and hashed, what the registry has already too."""
        try:
            position = 0
            for chunk in _checked(chunks, self._descriptor):
                rest = chunk[max(0, self.offset - position) :]
                position += len(chunk)
                if rest:
                    yield rest
                self._report(position)
        except Exception as error:
            # A source that is a registry itself has tried again already: that is not for the upload to repeat.
            own = RegistryUnavailableError(str(error)) if isinstance(error, TransientError) else error
            self.failure = own
            raise own from (error.__cause__ if own is error else error)


def headers_of(start: int, end: int, size: int) -> dict[str, str]:
    """Those of a body with a blob's bytes from ``start`` to before ``end``; a range only where that is not all."""
    headers = {"Content-Type": "application/octet-stream", "Content-Length": str(end - start)}
    if start < end and (start, end) != (0, size):
        headers["Content-Range"] = f"{start}-{end - 1}"
    return headers


def _checked(chunks: Iterable[bytes], descriptor: Descriptor) -> Generator[bytes, None, None]:
    hasher = hashlib.sha256()
    size = 0
    for chunk in chunks:
        size += len(chunk)
        hasher.update(chunk)
        is_end = size >= descriptor.size
        if size > descriptor.size or (is_end and hasher.hexdigest() != descriptor.digest.hex):
            raise DigestMismatchError(f"content to upload as {descriptor.digest} is not what its digest says")
        yield chunk
    if size < descriptor.size:
        raise DigestMismatchError(f"content to upload as {descriptor.digest} ends after {size} bytes")
