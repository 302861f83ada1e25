"""The sha256 of an open file, as fast as the processor hashes: what is read stays in its cache."""

import hashlib
import os
from collections.abc import Callable

_BUFFER = 256 << 10


def sha256_of(file: int, on_bytes: Callable[[int], None] = lambda _: None) -> tuple[str, int]:
    """Hexadecimal digits and bytes of all that the open file descriptor holds, from its beginning.

    ``on_bytes`` hears of the bytes as they are hashed; what it raises ends the work.
    """
    os.lseek(file, 0, os.SEEK_SET)
    hasher, size = hashlib.sha256(), 0
    buffer = memoryview(bytearray(_BUFFER))
    while count := os.readv(file, [buffer]):
        hasher.update(buffer[:count])
        size += count
        on_bytes(count)
    return hasher.hexdigest(), size
