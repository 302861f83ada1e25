"""modelpack.lock: which digest every reference stood for when it was verified, for ``pull --frozen``.

TOML, written whole and in order, so that it can be kept under version control (schemas/lock.json).
"""

import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from modelpack import schemas
from modelpack.atomic_file import write_atomically
from modelpack.errors import InvalidInputError, MalformedReferenceError, NotLockedError
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import Descriptor
from modelpack.oci.reference import Reference
from modelpack.signing.candidate import parse_rfc3339, rfc3339
from modelpack.small_file import read_small_file
from modelpack.trust import Verdict

DEFAULT_LOCK = Path("modelpack.lock")
MAX_LOCK_SIZE = 16 << 20

_HEADER = """\
# Written by modelpack lock; modelpack pull --frozen fetches exactly this.
version = 1
"""


@dataclass(frozen=True, slots=True)
class Locked:
    """One line of the lock: a reference, ``registry/repository:tag``, and what it stood for. ``size`` is the
    manifest's, in bytes; ``signers`` are the ids of the keys and identities that counted.
    """

    reference: str
    digest: Digest
    size: int
    signers: tuple[str, ...]
    verified_at: datetime

    @classmethod
    def of(cls, reference: Reference, descriptor: Descriptor, verdict: Verdict) -> "Locked":
        signers = tuple(signer.key_id for signer in verdict.signers)
        return cls(reference.tagged, descriptor.digest, descriptor.size, signers, verdict.checked_at)

    def to_json(self) -> dict[str, Any]:
        return {
            "reference": self.reference,
            "digest": str(self.digest),
            "size": self.size,
            "signers": list(self.signers),
            "verified_at": rfc3339(self.verified_at),
        }

    def require(self, wanted: Reference, descriptor: Descriptor) -> None:
        """Raise NotLockedError unless this is what was locked."""
        if (descriptor.digest, descriptor.size) != (self.digest, self.size):
            raise NotLockedError(
                f"{wanted} is refused: it is {descriptor.digest} ({descriptor.size} bytes) where the lock has "
                f"{self.digest} ({self.size} bytes)"
            )


@dataclass(frozen=True, slots=True)
class Lock:
    """The lock file as a value. Entries are ordered by reference, and there is one for each."""

    entries: Mapping[str, Locked]

    @classmethod
    def load(cls, path: Path) -> "Lock":
        """Raises NotFoundError without the file, InvalidInputError for one that ``save`` did not write."""
        raw = read_small_file(path, limit=MAX_LOCK_SIZE)
        try:
            document = tomllib.loads(raw.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise InvalidInputError(f"{path} is not TOML: {error}") from error
        faults = schemas.violations("lock", document)
        if faults:
            raise InvalidInputError(f"{path} is no lock file: {faults[0]}")
        try:
            entries = [_entry(one) for one in document.get("artifact", [])]
        except (ValueError, MalformedReferenceError) as error:
            raise InvalidInputError(f"{path}: {error}") from error
        by_reference = {entry.reference: entry for entry in entries}
        if len(by_reference) != len(entries):
            raise InvalidInputError(f"{path} locks a reference twice")
        return cls(by_reference)

    @classmethod
    def empty(cls) -> "Lock":
        return cls({})

    def with_entries(self, entries: Iterable[Locked]) -> "Lock":
        """These in place of what was locked for the same references, and everything else as it was."""
        return Lock({**self.entries, **{entry.reference: entry for entry in entries}})

    def find(self, wanted: Reference) -> Locked:
        """What ``wanted`` is locked to. Raises NotLockedError where it is not, or names another digest itself."""
        entry = self.entries.get(wanted.tagged)
        if entry is None:
            raise NotLockedError(f"{wanted} is refused: it is not in the lock file")
        if wanted.digest and wanted.digest != entry.digest:
            raise NotLockedError(f"{wanted} is refused: the lock has {entry.digest}")
        return entry

    def save(self, path: Path) -> None:
        blocks = [_HEADER, *(_block(entry) for _, entry in sorted(self.entries.items()))]
        write_atomically(path, "\n".join(blocks).encode("utf-8"))


def _entry(document: Mapping[str, Any]) -> Locked:
    reference = Reference.parse(document["reference"])
    if reference.tagged != document["reference"]:
        raise ValueError(f"{document['reference']!r:.120} is not registry/repository:tag")
    return Locked(
        reference=reference.tagged,
        digest=Digest(document["digest"]),
        size=document["size"],
        signers=tuple(document["signers"]),
        verified_at=parse_rfc3339(document["verified_at"]),
    )


def _block(entry: Locked) -> str:
    lines = [f"{name} = {_toml(value)}" for name, value in entry.to_json().items()]
    return "[[artifact]]\n" + "\n".join(lines) + "\n"


def _toml(value: str | int | list[str]) -> str:
    # What JSON writes of these is TOML as well, but for DEL, which JSON leaves as it is.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
