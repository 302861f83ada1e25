"""Files that people and strangers name, opened without waiting for anybody, with errors that say which file and why."""

import os
import re
import stat
from pathlib import Path
from typing import BinaryIO

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


def open_regular(path: Path, *, error: type[InvalidInputError] = InvalidInputError, pipe: bool = False) -> BinaryIO:
    """A regular file, open for reading; the caller closes it.

    ``pipe``: a person names this on the command line, where it may also be a pipe that the shell has opened,
    ``/dev/stdin`` or ``<(...)``. Raises MissingFileError, and ``error`` for what cannot be read or is no file.
    """
    try:
        # O_NONBLOCK: opening a named pipe waits for whoever opens its other end.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except FileNotFoundError as problem:
        raise MissingFileError(f"there is no file {path}") from problem
    except OSError as problem:
        raise error(f"{path} cannot be read: {problem.strerror}") from problem
    kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    if pipe and kind in (stat.S_IFIFO, stat.S_IFSOCK) and _OPENED.fullmatch(str(path)):
        os.set_blocking(descriptor, True)
    elif kind != stat.S_IFREG:
        os.close(descriptor)
        raise error(f"{path} cannot be read: it is {_KINDS.get(kind, 'something else')}, not a file")
    return os.fdopen(descriptor, "rb")
