"""Content digests (OCI image specification 1.1, descriptor.md, "Digests")."""

import hashlib
import re
from dataclasses import dataclass

from modelpack.errors import InvalidContentError

_SHA256 = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A sha256 digest. One that exists is well-formed, so it is safe to use in a path.

    sha512 is registered too, but no registry that we know stores models under it; it is refused, not truncated.
    """

    value: str

    def __post_init__(self) -> None:
        if not _SHA256.fullmatch(self.value):
            raise InvalidContentError(f"not a sha256 digest: {self.value[:100]!r}")

    @classmethod
    def of(cls, content: bytes) -> "Digest":
        return cls("sha256:" + hashlib.sha256(content).hexdigest())

    @classmethod
    def from_hex(cls, encoded: str) -> "Digest":
        return cls("sha256:" + encoded)

    @property
    def hex(self) -> str:
        """The 64 lower-case hexadecimal digits."""
        return self.value.removeprefix("sha256:")

    @property
    def short(self) -> str:
        """Twelve digits, for a person."""
        return self.hex[:12]

    def __str__(self) -> str:
        return self.value
