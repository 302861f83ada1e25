"""Tar archives from strangers, read in one pass and bounded, and archives of ours whose bytes depend on nothing else.

Nothing here touches a file system by a name that an archive gave. Written: POSIX pax, in the order of whoever calls,
owner and time zero. Read: ustar, pax and GNU long names (POSIX.1-2017, pax, "ustar Interchange Format"; tar.h).
tarfile reads a pax header of any size into memory and knows sparse files; a dozen fields are safer read here.
"""

import tarfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from modelpack.errors import InvalidContentError

BLOCK = 512
END = bytes(2 * BLOCK)
MAX_ENTRIES = 100_000

_CHUNK = 1 << 20
_MAX_EXTENSION = 64 << 10
_MAX_NAME = 4096
_MAX_EXTENSIONS = 3  # for one member: a global header, and a GNU long name and long link
_SPARSE = "GNU.sparse."
_KEPT = (b"path", b"linkpath", b"size")
_KINDS = {b"0": "file", b"\0": "file", b"7": "file", b"5": "folder", b"1": "link", b"2": "link"}


class Kind(Enum):
    FILE = "file"
    FOLDER = "folder"
    LINK = "link"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Member:
    """One entry. ``name`` is relative and without ``..``; ``offset`` is where its ``size`` bytes begin."""

    name: str
    kind: Kind
    size: int
    offset: int


class Stream(Protocol):
    """What an archive is read from, front to back."""

    position: int

    def read(self, amount: int) -> bytes:
        """At most ``amount`` bytes; fewer only at the end."""

    def skip(self, amount: int) -> None:
        """Pass over ``amount`` bytes. Raises InvalidContentError where there are fewer."""


class ChunkStream:
    """A Stream over chunks, such as those of a blob that is being decompressed."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""
        self.position = 0

    def read(self, amount: int) -> bytes:
        parts, missing = [], amount
        while missing:
            if not self._rest:
                self._rest = next(self._chunks, b"")
                if not self._rest:
                    break
            part, self._rest = self._rest[:missing], self._rest[missing:]
            parts.append(part)
            missing -= len(part)
        self.position += amount - missing
        return b"".join(parts)

    def skip(self, amount: int) -> None:
        while amount:
            passed = len(self.read(min(amount, _CHUNK)))
            if not passed:
                raise InvalidContentError("the archive ends too early")
            amount -= passed


def read_members(stream: Stream, *, max_entries: int = MAX_ENTRIES) -> Iterator[Member]:
    """The entries in order. Between two of them the caller may read the content, through ``content``, or leave it.

    Raises InvalidContentError for what is not a tar archive, ends too early, names anything outside the folder it would
    be unpacked in, or has more than ``max_entries`` entries.
    """
    extensions: dict[str, str] = {}
    extension_count = 0
    for _ in range(max_entries + 1):
        header = stream.read(BLOCK)
        if len(header) < BLOCK:
            raise InvalidContentError("the archive ends too early")
        if header == bytes(BLOCK):
            return
        _check_sum(header)
        size, kind = _number(header[124:136]), header[156:157]
        if kind in b"xgLK" and kind:
            extension_count += 1
            if extension_count > _MAX_EXTENSIONS:
                raise InvalidContentError(f"the archive has more than {_MAX_EXTENSIONS} extended headers for one file")
            extensions |= _extensions(kind, _content(stream, size))
            continue
        size = _decimal(extensions["size"]) if "size" in extensions else size
        name = _safe(extensions.get("path") or _name(header))
        if any(key.startswith(_SPARSE) for key in extensions):
            raise InvalidContentError(f"{name!r:.120} is a sparse file, which is not read")
        member = Member(name, Kind(_KINDS.get(kind, "other")), size, stream.position)
        if member.kind is Kind.FILE and not name:
            raise InvalidContentError("the archive has a file without a name")
        # Links, folders and devices have no content, whatever their size says (POSIX: "shall be ignored").
        length = size if member.kind is Kind.FILE else 0
        if member.kind is not Kind.FILE and size:
            raise InvalidContentError(f"{name!r:.120} is no file, and yet has {size} bytes")
        yield member
        stream.skip(member.offset + length + -length % BLOCK - stream.position)
        extensions, extension_count = {}, 0
    raise InvalidContentError(f"the archive has more than {max_entries} entries")


def content(stream: Stream, member: Member) -> Iterator[bytes]:
    """The bytes of the entry that ``read_members`` has just given. Raises InvalidContentError where they end early."""
    missing = member.size
    while missing:
        chunk = stream.read(min(missing, _CHUNK))
        if not chunk:
            raise InvalidContentError(f"the archive ends inside {member.name!r:.120}")
        missing -= len(chunk)
        yield chunk


def header(name: str, size: int) -> bytes:
    """The header of a file of ours: mode 0644, owner 0, time 0; pax records only for what ustar cannot say."""
    entry = tarfile.TarInfo(name)
    entry.size = size
    entry.mode = 0o644
    return entry.tobuf(tarfile.PAX_FORMAT)


def write_file(name: str, size: int, chunks: AbstractContextManager[Iterator[bytes]]) -> Iterator[bytes]:
    """One entry with its padding, in chunks. The caller has checked that there are ``size`` bytes."""
    yield header(name, size)
    with chunks as opened:
        yield from opened
    yield bytes(-size % BLOCK)


def _content(stream: Stream, size: int) -> bytes:
    if size > _MAX_EXTENSION:
        raise InvalidContentError(f"the archive has an extended header of {size} bytes")
    padded = stream.read(size + -size % BLOCK)
    if len(padded) < size:
        raise InvalidContentError("the archive ends too early")
    return padded[:size]


def _extensions(kind: bytes, raw: bytes) -> dict[str, str]:
    if kind == b"L":
        return {"path": _text(raw.rstrip(b"\0"))}
    if kind == b"K":
        return {}
    records = _records(raw)
    if kind == b"g":
        if records.keys() & {"path", "size", "linkpath"}:
            raise InvalidContentError("the archive has one name or size for all its files")
        return {}
    return records


def _records(raw: bytes) -> dict[str, str]:
    """Those records of a pax header that matter here: "LENGTH KEY=VALUE\\n", where the length is that of the whole."""
    records: dict[str, str] = {}
    start = 0
    while start < len(raw):
        space = raw.find(b" ", start, start + 7)
        digits = raw[start:space] if space >= 0 else b""
        length = int(digits) if digits.isdigit() else 0
        end = start + length
        equals = raw.find(b"=", space + 1, end)
        if not length or equals < 0 or end > len(raw) or raw[end - 1] != ord("\n"):
            raise InvalidContentError("the archive has a malformed extended header")
        key = raw[space + 1 : equals]
        if key in _KEPT or key.startswith(_SPARSE.encode()):
            records[_text(key)] = _text(raw[equals + 1 : end - 1])
        start = end
    return records


def _check_sum(block: bytes) -> None:
    # The sum over the header with its own field as spaces; old tars summed signed bytes, and none of them is read.
    if _number(block[148:156]) != sum(block[:148]) + 8 * 0x20 + sum(block[156:]):
        raise InvalidContentError("not a tar archive")


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # GNU: base 256 for what octal cannot hold
        value = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    else:
        digits = field.strip(b" \0")
        if not all(digit in b"01234567" for digit in digits):
            raise InvalidContentError("not a tar archive")
        value = int(digits or b"0", 8)
    if value > 1 << 50:
        raise InvalidContentError(f"the archive claims a file of {value} bytes")
    return value


def _decimal(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        raise InvalidContentError("the archive has a malformed number")
    return int(text)


def _name(block: bytes) -> str:
    name = _text(block[:100].split(b"\0", 1)[0])
    if block[257:263] == b"ustar\0":
        prefix = _text(block[345:500].split(b"\0", 1)[0])
        return f"{prefix}/{name}" if prefix else name
    return name


def _text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidContentError("the archive has a name that is not UTF-8") from error


def _safe(name: str) -> str:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\0" in name or "\\" in name or len(name) > _MAX_NAME:
        raise InvalidContentError(f"the archive has an unsafe path: {name[:120]!r}")
    return "/".join(parts)
