"""Where uploads of large blobs stand at registries, so that a push that was killed goes on: one small file each.

A file lies among what is not finished, and is its own lock: two processes never send into one upload. What a kill cut
short while it was written cannot be read, and counts as nothing. Its location may carry a secret of the registry's, so
nobody else may read it.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from modelpack.errors import InvalidContentError
from modelpack.oci import strict_json
from modelpack.store import locks

_MAX_AGE = 24 * 3600  # seconds; registries forget uploads after a day or a week
_MAX_SIZE = 16 << 10


class PushNote:
    """Where the upload of one blob into one repository stands. Its file is open and locked."""

    def __init__(self, path: Path, file: int, name: str) -> None:
        self._path, self._file, self._name = path, file, name

    def recall(self) -> str | None:
        """The location that an earlier process kept; None where there is none, or it is too old to be good."""
        try:
            facts = strict_json.parse_object(os.pread(self._file, _MAX_SIZE, 0), what="a note of an upload")
        except InvalidContentError:
            return None
        location, begun = facts.get("location"), facts.get("begun")
        if facts.get("name") != self._name or not isinstance(location, str) or not isinstance(begun, int):
            return None
        return location if 0 <= time.time() - begun < _MAX_AGE else None

    def keep(self, location: str) -> None:
        """The upload goes on there."""
        content = json.dumps({"name": self._name, "location": location, "begun": int(time.time())}).encode()
        # A disk that is full is no reason to stop sending.
        with contextlib.suppress(OSError):
            os.ftruncate(self._file, 0)
            if len(content) <= _MAX_SIZE:
                os.pwrite(self._file, content, 0)

    def drop(self) -> None:
        """There is nothing to go on with."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._file, 0)

    def close(self) -> None:
        """Let go of it; what says nothing goes."""
        try:
            with contextlib.suppress(OSError):
                if not os.fstat(self._file).st_size:
                    self._path.unlink(missing_ok=True)
        finally:
            os.close(self._file)


@contextlib.contextmanager
def push_note(folder: Path, name: str) -> Iterator[PushNote | None]:
    """The note of an upload by its name, such as ``registry/repository@sha256:...``, in a folder.

    None while another process is at this upload, and where nothing can be written.
    """
    path = folder / f"push-{hashlib.sha256(name.encode()).hexdigest()}"
    try:
        file = locks.claim(path)
    except OSError:
        file = None
    if file is None:
        yield None
        return
    note = PushNote(path, file, name)
    try:
        yield note
    finally:
        note.close()
