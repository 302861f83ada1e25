"""Reading ``blobs/sha256`` of an OCI image layout (image specification 1.1, image-layout.md)."""

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from modelpack.errors import DigestMismatchError, InvalidContentError, NotFoundError
from modelpack.file_digest import sha256_of
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import MAX_MANIFEST_SIZE, Descriptor

CHUNK_SIZE = 1 << 20


class Blobs:
    """The blobs of a layout. Symbolic links are never followed: a layout may come from a stranger."""

    def __init__(self, root: Path) -> None:
        self.directory = root / "blobs" / "sha256"

    def path(self, digest: Digest) -> Path:
        return self.directory / digest.hex

    def size(self, digest: Digest) -> int | None:
        """Bytes of the blob; None when there is none."""
        try:
            status = self.path(digest).lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def has(self, descriptor: Descriptor) -> bool:
        """Whether the blob is there with the size that the descriptor promises."""
        return self.size(descriptor.digest) == descriptor.size

    def all(self) -> Iterator[tuple[Digest, os.stat_result]]:
        """Every blob with what the file system knows of it. Files that are no blobs are left alone."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self.directory) as files:
            for file in files:
                with contextlib.suppress(InvalidContentError, FileNotFoundError):
                    digest = Digest.from_hex(file.name)
                    status = file.stat(follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode):
                        yield digest, status

    @contextlib.contextmanager
    def read(self, digest: Digest, *, offset: int = 0) -> Iterator[Iterator[bytes]]:
        """The blob's bytes from ``offset`` on, in chunks of 1 MiB. Not checked. Raises NotFoundError."""
        descriptor = self._open(digest)
        try:
            os.lseek(descriptor, offset, os.SEEK_SET)
            yield iter(lambda: os.read(descriptor, CHUNK_SIZE), b"")
        finally:
            os.close(descriptor)

    def read_small(self, descriptor: Descriptor) -> bytes:
        """The bytes of a manifest, checked. Raises NotFoundError, DigestMismatchError, InvalidContentError."""
        if descriptor.size > MAX_MANIFEST_SIZE:
            raise InvalidContentError(f"manifest {descriptor.digest} has {descriptor.size} bytes: too many")
        with self.read(descriptor.digest) as chunks:
            content = bytearray()
            for chunk in chunks:
                content += chunk
                if len(content) > descriptor.size:
                    break
        return descriptor.check(bytes(content))

    def check(self, descriptor: Descriptor, *, on_bytes: Callable[[int], None] = lambda _: None) -> None:
        """Hash the blob again. Raises NotFoundError, DigestMismatchError."""
        file = self._open(descriptor.digest)
        try:
            actual, size = sha256_of(file, on_bytes)
        finally:
            os.close(file)
        if size != descriptor.size:
            raise DigestMismatchError(f"{descriptor.digest} has {size} bytes where {descriptor.size} were promised")
        if actual != descriptor.digest.hex:
            raise DigestMismatchError(f"content of {descriptor.digest} has the digest sha256:{actual}")

    def _open(self, digest: Digest) -> int:
        try:
            descriptor = os.open(self.path(digest), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFoundError(f"no blob {digest} in {self.directory.parent.parent}") from error
        except OSError as error:
            raise InvalidContentError(f"blob {digest} cannot be read: {error.strerror}") from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise InvalidContentError(f"blob {digest} is not a regular file")
        return descriptor
