"""Tar archives for tests, hostile ones above all, made by the standard library."""

import io
import tarfile
from collections.abc import Iterable


def entry(name: str, content: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    """One member; ``fields`` are attributes of TarInfo, which are not checked by anybody."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in fields.items():
        setattr(member, key, value)
    return member, content


def make_tar(*entries: tuple[tarfile.TarInfo, bytes], mode: str = "w", format_: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=format_) as archive:
        for member, content in entries:
            archive.addfile(member, io.BytesIO(content) if member.isreg() else None)
    return buffer.getvalue()


def in_pieces(content: bytes, size: int = 1000) -> Iterable[bytes]:
    return (content[at : at + size] for at in range(0, len(content), size))
