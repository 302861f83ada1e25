"""What the store remembers about a manifest beside the manifest itself: small JSON documents, one folder a kind."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelpack.atomic_file import write_atomically
from modelpack.errors import InvalidContentError, InvalidInputError, NotFoundError
from modelpack.oci import strict_json
from modelpack.oci.digest import Digest
from modelpack.small_file import read_small_file

_log = logging.getLogger(__name__)

_MAX_SIZE = 4 << 20


class Notes:
    """The notes of one kind, such as receipts; ``kind`` is for messages. They go with their manifest."""

    def __init__(self, directory: Path, kind: str) -> None:
        self.directory = directory
        self._kind = kind

    def read(self, digest: Digest) -> dict[str, Any] | None:
        """None when there is none, or when it cannot be read."""
        try:
            content = read_small_file(self._path(digest), limit=_MAX_SIZE)
            return strict_json.parse_object(content, what=f"{self._kind} of {digest}")
        except NotFoundError:
            return None
        except (InvalidInputError, InvalidContentError) as error:
            _log.warning("%s; it counts as none", error)
            return None

    def write(self, digest: Digest, document: Mapping[str, Any]) -> None:
        content = json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False).encode("utf-8")
        write_atomically(self._path(digest), content, mode=0o600)

    def discard(self, digest: Digest) -> None:
        self._path(digest).unlink(missing_ok=True)

    def _path(self, digest: Digest) -> Path:
        return self.directory / f"{digest.hex}.json"
