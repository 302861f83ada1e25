"""Small files that a person names: read whole, up to a limit, with errors that say which file and why."""

import os
import re
import stat
from pathlib import Path

from modelpack.errors import InvalidInputError, MissingFileError

# What a shell has opened for us: "<(...)" and standard input. Somebody writes into it already, or it is at its end.
_OPENED = re.compile(r"/dev/stdin|/(?:dev|proc/self)/fd/[0-9]+")
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def read_small_file(
    path: Path, *, limit: int, error: type[InvalidInputError] = InvalidInputError, pipe: bool = False
) -> bytes:
    """At most ``limit`` bytes of a regular file; never waits for anybody.

    ``pipe``: a person names this on the command line, where it may also be a pipe that the shell has opened,
    ``/dev/stdin`` or ``<(...)``. Raises MissingFileError, and ``error`` for what cannot be read, is
    longer, or is no file.
    """
    try:
        # O_NONBLOCK: opening a named pipe waits for whoever opens its other end.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
            if pipe and kind in (stat.S_IFIFO, stat.S_IFSOCK) and _OPENED.fullmatch(str(path)):
                os.set_blocking(descriptor, True)
            elif kind != stat.S_IFREG:
                raise error(f"{path} cannot be read: it is {_KINDS.get(kind, 'something else')}, not a file")
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                content = file.read(limit + 1)
        finally:
            os.close(descriptor)
    except FileNotFoundError as problem:
        raise MissingFileError(f"there is no file {path}") from problem
    except OSError as problem:
        raise error(f"{path} cannot be read: {problem.strerror}") from problem
    if len(content) > limit:
        raise error(f"{path} is longer than {limit} bytes")
    return content
