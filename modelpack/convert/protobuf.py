"""As much of the protocol buffers' wire format as it takes to read a message of a few fields.

https://protobuf.dev/programming-guides/encoding/
"""

from collections.abc import Iterable
from typing import Any, TypeVar

T = TypeVar("T", int, bytes)

_WIDTHS = {1: 8, 5: 4}
MAX_FIELDS = 1 << 22


def parse(message: bytes) -> list[tuple[int, Any]]:
    """The fields in their order: number, and an integer or bytes as they lie there. Raises ValueError."""
    fields: list[tuple[int, Any]] = []
    offset = 0
    while offset < len(message):
        key, offset = _varint(message, offset)
        number, kind = key >> 3, key & 7
        value: int | bytes
        if kind == 2:
            length, offset = _varint(message, offset)
            value, offset = _slice(message, offset, length)
        elif kind == 0:
            value, offset = _varint(message, offset)
        elif kind in _WIDTHS:
            value, offset = _slice(message, offset, _WIDTHS[kind])
        else:
            raise ValueError(f"wire type {kind} at byte {offset}")
        fields.append((number, value))
        if len(fields) > MAX_FIELDS:
            raise ValueError(f"more than {MAX_FIELDS} fields")
    return fields


def last(fields: Iterable[tuple[int, Any]], number: int, default: T) -> T:
    """A field that may be there once: of several the last counts. Raises ValueError where its type is another."""
    values = [content for found, content in fields if found == number]
    if not all(isinstance(content, type(default)) for content in values):
        raise ValueError(f"field {number} is of another type")
    return values[-1] if values else default


def _slice(message: bytes, offset: int, length: int) -> tuple[bytes, int]:
    if length > len(message) - offset:
        raise ValueError(f"the message ends within a field at byte {offset}")
    return message[offset : offset + length], offset + length


def _varint(message: bytes, offset: int) -> tuple[int, int]:
    if offset < len(message) and message[offset] < 0x80:  # as nearly all are
        return message[offset], offset + 1
    value = 0
    for shift in range(0, 70, 7):
        if offset >= len(message):
            raise ValueError("the message ends within a number")
        byte = message[offset]
        offset += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, offset
    raise ValueError(f"a number of more than 64 bits at byte {offset}")
