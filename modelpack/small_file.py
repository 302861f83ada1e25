"""Small files that a person names: read whole, up to a limit."""

from pathlib import Path

from modelpack.errors import InvalidInputError
from modelpack.regular_file import open_regular


def read_small_file(
    path: Path, *, limit: int, error: type[InvalidInputError] = InvalidInputError, pipe: bool = False
) -> bytes:
    """At most ``limit`` bytes of a file that ``open_regular`` opens.

    Raises as that does, and ``error`` for what is longer.
    """
    with open_regular(path, error=error, pipe=pipe) as file:
        try:
            content = file.read(limit + 1)
        except OSError as problem:
            raise error(f"{path} cannot be read: {problem.strerror}") from problem
    if len(content) > limit:
        raise error(f"{path} is longer than {limit} bytes")
    return content
