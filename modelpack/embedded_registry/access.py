"""Who may use the registry: everybody who reaches it, or one account that HTTP Basic asks for (RFC 7617)."""

import base64
import binascii
import hashlib
import hmac
from dataclasses import dataclass, field

from modelpack.embedded_registry.errors import RefusedError
from modelpack.errors import InvalidInputError

CHALLENGE = 'Basic realm="modelpack", charset="UTF-8"'


@dataclass(frozen=True, slots=True)
class Account:
    """One user and one password, shared by all who may pull and push."""

    user: str
    password: str = field(repr=False)

    def __post_init__(self) -> None:
        if not self.user or ":" in self.user or not self.user.isprintable():
            raise InvalidInputError(f"{self.user!r} cannot be a user name")
        if not self.password:
            raise InvalidInputError(f"the password of {self.user} is empty")

    def admits(self, authorization: str) -> bool:
        """Whether an Authorization header names this account. Takes as long for a wrong one as for the right one."""
        scheme, _, encoded = authorization.partition(" ")
        try:
            given = base64.b64decode(encoded.strip(), validate=True)
        except (binascii.Error, ValueError):
            return False
        return scheme.lower() == "basic" and hmac.compare_digest(_hash(given), _hash(self._secret))

    @property
    def _secret(self) -> bytes:
        return f"{self.user}:{self.password}".encode()


def unauthorized(message: str) -> RefusedError:
    return RefusedError(401, "UNAUTHORIZED", message, {"WWW-Authenticate": CHALLENGE})


def _hash(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()
