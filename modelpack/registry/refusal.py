"""What a registry says when it says no (distribution specification 1.1, "Error Codes"), as our errors."""

import email.utils
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass

from modelpack.errors import AccessDeniedError, ModelpackError, NotFoundError, RegistryRefusedError
from modelpack.registry.retry import TransientError

RETRYABLE = frozenset({408, 425, 429, 500, 502, 503, 504, 522})
_MAX_TEXT = 300


@dataclass(frozen=True, slots=True)
class Refusal:
    """A status of 400 or more (or one that nobody expected), with the registry's own words made safe to print."""

    status: int
    codes: tuple[str, ...] = ()
    text: str = ""
    retry_after: float | None = None
    is_read_only: bool = False
    """Whether it says that nothing can be written there (``Allow``, RFC 9110, section 10.2.1)."""

    @classmethod
    def parse(cls, status: int, headers: Mapping[str, str], body: bytes) -> "Refusal":
        codes, text = _errors(body)
        return cls(status, codes, text, _retry_after(headers.get("Retry-After")), _allows_only_reading(headers))

    def error(self, what: str) -> ModelpackError:
        """The error for ``what``, a noun phrase: ``blob sha256:... of registry/repository``."""
        said = f": {self.text}" if self.text else ""
        match self.status:
            case 401 | 403:
                return AccessDeniedError(f"access denied to {what}{said}")
            case 404:
                return NotFoundError(f"not found: {what}{said}")
            case status if status in RETRYABLE or status >= 500:
                return TransientError(
                    f"the registry cannot serve {what} now (HTTP {status}){said}", retry_after=self.retry_after
                )
            case 405 if self.is_read_only and not self.text:
                return RegistryRefusedError(f"the registry refused {what} (HTTP 405): it is read-only")
            case status:
                return RegistryRefusedError(f"the registry refused {what} (HTTP {status}){said}")


def printable(text: str) -> str:
    """Text from a stranger for a terminal: one line, bounded, no control or direction-changing characters."""
    cleaned = "".join(character if character.isprintable() else " " for character in text[: 4 * _MAX_TEXT])
    cleaned = " ".join(cleaned.split())
    return cleaned if len(cleaned) <= _MAX_TEXT else cleaned[: _MAX_TEXT - 3] + "..."


def _errors(body: bytes) -> tuple[tuple[str, ...], str]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return (), ""  # an HTML page of a proxy in between tells a person nothing
    errors = document.get("errors") if isinstance(document, dict) else None
    if not isinstance(errors, list):
        # What token servers say (RFC 6749, section 5.2; Docker Hub's "details").
        known = ("error_description", "details", "message", "error")
        words = [document[key] for key in known if isinstance(document.get(key), str)] if type(document) is dict else []
        return (), printable(words[0]) if words else ""
    entries = [entry for entry in errors[:5] if isinstance(entry, dict)]
    codes = tuple(printable(str(entry.get("code", ""))) for entry in entries)
    texts = [" ".join(str(entry[key]) for key in ("code", "message") if entry.get(key)) for entry in entries]
    return codes, printable("; ".join(text for text in texts if text))


def _allows_only_reading(headers: Mapping[str, str]) -> bool:
    allowed = {method.strip().upper() for method in headers.get("Allow", "").split(",")} - {""}
    return bool(allowed) and allowed <= {"GET", "HEAD", "OPTIONS"}


def _retry_after(value: str | None) -> float | None:
    # RFC 9110, section 10.2.3: seconds or a date.
    if not value:
        return None
    if value.isascii() and value.strip().isdigit():
        return float(value.strip()[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
