"""Decompression stays within what was declared."""

import gzip
import random
import sys

import pytest
from fakes.tars import in_pieces

from modelpack.compression import decompressed
from modelpack.errors import InvalidContentError, UnsupportedError

CONTENT = bytes(range(256)) * 20_000


def zstd(content: bytes) -> bytes:
    if sys.version_info >= (3, 14):
        from compression import zstd as module
    else:
        module = pytest.importorskip("backports.zstd")
    return module.compress(content)


PACK = {"gzip": gzip.compress, "zstd": zstd}


def unpack(content: bytes, compression: str | None, *, limit: int = 1 << 30) -> bytes:
    return b"".join(decompressed(iter(in_pieces(content, 777)), compression, limit=limit))


@pytest.mark.parametrize("compression", PACK)
def test_one_and_several_members_come_out_as_they_went_in(compression):
    packed = PACK[compression](CONTENT)

    assert unpack(packed, compression) == CONTENT
    assert unpack(packed + PACK[compression](b"more"), compression) == CONTENT + b"more"
    assert unpack(PACK[compression](b""), compression) == b""


def test_without_compression_the_bytes_are_what_they_are():
    assert unpack(CONTENT, None) == CONTENT
    with pytest.raises(InvalidContentError, match="more than 100 bytes"):
        unpack(CONTENT, None, limit=100)


@pytest.mark.parametrize("compression", PACK)
def test_more_than_the_limit_is_refused(compression):
    with pytest.raises(InvalidContentError, match="more than 1000000 bytes"):
        unpack(PACK[compression](CONTENT), compression, limit=1_000_000)


@pytest.mark.parametrize("compression", PACK)
def test_a_bomb_is_refused_long_before_its_limit(compression):
    bomb = PACK[compression](bytes(256 << 20))
    sizes = []

    def explode():
        sizes.extend(len(chunk) for chunk in decompressed(iter([bomb]), compression, limit=1 << 40))

    with pytest.raises(InvalidContentError, match="256 times its size"):
        explode()
    assert sum(sizes) < 200 << 20
    assert max(sizes) <= 1 << 20


@pytest.mark.parametrize("compression", PACK)
def test_a_swarm_of_tiny_members_is_refused(compression):
    tiny = PACK[compression](b"")

    assert unpack(tiny * 1000, compression) == b""
    with pytest.raises(InvalidContentError, match="too many for its size"):
        list(decompressed(iter([tiny * (1 << 16)]), compression, limit=1 << 30))


def test_a_large_layer_may_have_thousands_of_members():
    # As bgzip and eStargz write them; of bytes that do not shrink, as weights hardly do.
    member = gzip.compress(random.Random(1).randbytes(32 << 10), 1)

    assert len(unpack(member * 2000, "gzip")) == 2000 * (32 << 10)


@pytest.mark.parametrize("compression", PACK)
@pytest.mark.parametrize("damage", [lambda packed: packed[:-20], lambda packed: packed[:50], lambda packed: b""])
def test_what_ends_too_early_is_refused(compression, damage):
    with pytest.raises(InvalidContentError, match="ends too early"):
        unpack(damage(PACK[compression](CONTENT)), compression)


@pytest.mark.parametrize("compression", PACK)
def test_something_else_is_refused(compression):
    with pytest.raises(InvalidContentError, match=f"not {compression}"):
        unpack(b"GGUF" + PACK[compression](CONTENT), compression)


def test_damage_is_refused():
    # Of gzip: zstd's checksum is optional, and the layer's digest has protected both by then.
    packed = gzip.compress(CONTENT)
    with pytest.raises(InvalidContentError):
        unpack(packed[:40] + b"\xff" * 40 + packed[80:], "gzip")


def test_without_a_reader_of_zstd_the_answer_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "compression.zstd", None)
    monkeypatch.setitem(sys.modules, "backports.zstd", None)
    with pytest.raises(UnsupportedError, match=r"modelpack-oci\[zstd\]"):
        unpack(b"x", "zstd")
