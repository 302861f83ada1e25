"""Decompression of what strangers packed: in one pass, and never more than was declared."""

import importlib
import zlib
from collections.abc import Iterator
from typing import Literal, Protocol, cast

from modelpack.errors import InvalidContentError, UnsupportedError

Compression = Literal["gzip", "zstd"]

_CHUNK = 1 << 20
# Weights shrink a little, tables of zeros a thousand times: what shrinks more than this is made to fill a disk.
_MAX_RATIO = 256
_FREE = 64 << 20
# What is packed in pieces has pieces of many kilobytes. Each costs a copy of all that came with it.
_FREE_MEMBERS = 1000
_MIN_MEMBER = 16 << 10


class _Decompressor(Protocol):
    eof: bool
    unused_data: bytes

    @property
    def needs_input(self) -> bool: ...

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Gzip:
    """zlib's decompressor with the members of zstd's."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


def decompressed(chunks: Iterator[bytes], compression: Compression | None, *, limit: int) -> Iterator[bytes]:
    """The plain bytes, 1 MiB at a time; without a ``compression``, the bytes as they are.

    Raises InvalidContentError for damaged data and for more than ``limit`` bytes or than 256 times what came in, and
    for a swarm of tiny gzip members (zstd frames); UnsupportedError where zstd is not installed.
    """
    plain = chunks if compression is None else _decompress(chunks, compression)
    produced = 0
    for chunk in plain:
        produced += len(chunk)
        if produced > limit:
            raise InvalidContentError(f"the layer unpacks to more than {limit} bytes")
        yield chunk


def _decompress(chunks: Iterator[bytes], compression: Compression) -> Iterator[bytes]:
    # What a damaged stream raises: zlib.error, or the error of whichever zstd is there.
    make, error = (_Gzip, zlib.error) if compression == "gzip" else _zstd()
    current: _Decompressor | None = None
    consumed = produced = members = 0
    for chunk in chunks:
        consumed += len(chunk)
        rest = chunk
        while rest or (current and not current.eof and not current.needs_input):
            if current is None or current.eof:
                members += 1
                if members > _FREE_MEMBERS + consumed // _MIN_MEMBER:
                    raise InvalidContentError(f"the layer has {members} {compression} members, too many for its size")
                current = cast("_Decompressor", make())  # members and frames follow one another
            try:
                plain = current.decompress(rest, _CHUNK)
            except error as fault:
                raise InvalidContentError(f"the layer is not {compression}: {fault!s:.120}") from fault
            rest = current.unused_data if current.eof else b""
            produced += len(plain)
            if produced > _FREE + _MAX_RATIO * consumed:
                raise InvalidContentError(f"the layer unpacks to more than {_MAX_RATIO} times its size")
            if plain:
                yield plain
    if current is None or not current.eof:
        raise InvalidContentError(f"the {compression} data ends too early")


def _zstd() -> tuple[type, type[Exception]]:
    for name in ("compression.zstd", "backports.zstd"):
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        return module.ZstdDecompressor, module.ZstdError
    raise UnsupportedError("the layer is packed with zstd: pip install 'modelpack-oci[zstd]', or Python 3.14, reads it")
