"""What the store remembers about names: the newest artifact that was verified as each of them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelpack.atomic_file import write_atomically
from modelpack.errors import InvalidContentError, InvalidInputError, NotFoundError
from modelpack.oci import strict_json
from modelpack.small_file import read_small_file
from modelpack.store import locks

_MAX_SIZE = 64 << 20


class Memory:
    """A file of JSON objects by ``registry/repository:tag``, shared by all processes that use the store.

    What stands in it outlives the artifacts: somebody who removed a model must not get an older one for it.
    """

    def __init__(self, path: Path, lock: Path) -> None:
        self._path = path
        self._lock = lock

    def recall(self, name: str) -> Mapping[str, Any] | None:
        """Raises InvalidContentError for a file that cannot be read: it may have held a warning."""
        known = self._read().get(name)
        return known if isinstance(known, dict) else None

    def remember(self, name: str, facts: Mapping[str, Any]) -> None:
        """Keep ``facts`` in place of what was known about a name."""
        with locks.locked(self._lock):
            content = json.dumps({**self._read(), name: dict(facts)}, ensure_ascii=False, indent=1, sort_keys=True)
            write_atomically(self._path, content.encode("utf-8"), mode=0o600)

    def _read(self) -> dict[str, Any]:
        try:
            raw = read_small_file(self._path, limit=_MAX_SIZE)
        except NotFoundError:
            return {}
        except InvalidInputError as error:
            raise InvalidContentError(str(error)) from error
        return strict_json.parse_object(raw, what=str(self._path))
