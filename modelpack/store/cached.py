"""Which tags of the store only a proxy put there, and when somebody last asked for each: one small file a tag."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from modelpack.atomic_file import write_atomically
from modelpack.errors import InvalidContentError, InvalidInputError, NotFoundError
from modelpack.oci import strict_json
from modelpack.oci.digest import Digest
from modelpack.small_file import read_small_file

_MAX_SIZE = 4096


class CachedTags:
    """The notes of a proxy. What one says holds only as long as the tag names the same artifact."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def asked(self, name: str, digest: Digest, *, is_new: bool) -> None:
        """Somebody asked for ``registry/repository:tag``. Unless the proxy has just put it there (``is_new``), a tag
        that it knows nothing of was a person's, and stays one.
        """
        path = self._path(name)
        if is_new:
            write_atomically(path, json.dumps({"name": name, "digest": str(digest)}).encode(), mode=0o600)
        else:
            with contextlib.suppress(FileNotFoundError):
                os.utime(path)

    def idle(self, *, older_than: float) -> Iterator[tuple[str, str]]:
        """The tags that nobody has asked for since ``older_than`` (seconds since the epoch), with their digests."""
        for path in sorted(self.directory.glob("[0-9a-f]*")):
            with contextlib.suppress(FileNotFoundError, NotFoundError, InvalidInputError, InvalidContentError):
                if path.lstat().st_mtime <= older_than:
                    facts = strict_json.parse_object(read_small_file(path, limit=_MAX_SIZE), what=str(path))
                    yield str(facts.get("name")), str(facts.get("digest"))

    def forget(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self.directory / Digest.of(name.encode()).hex
