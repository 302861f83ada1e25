"""Standard base64 with one spelling only: two spellings of one signature are how deduplication and logs are fooled."""

import base64
import binascii

from modelpack.errors import InvalidContentError


def decode_base64(text: object, *, what: str) -> bytes:
    """Decode RFC 4648 section 4 base64: padded, no white space, no stray bits. Raises InvalidContentError."""
    if isinstance(text, str):
        try:
            text = text.encode("ascii")
        except UnicodeEncodeError as error:
            raise InvalidContentError(f"{what} is not base64") from error
    if not isinstance(text, bytes):
        raise InvalidContentError(f"{what} is not a base64 string")
    try:
        content = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise InvalidContentError(f"{what} is not base64: {error}") from error
    if base64.b64encode(content) != text:
        raise InvalidContentError(f"{what} is base64 in a spelling of its own")
    return content
