"""Small files that a person names: read whole, up to a limit, with errors that say which file and why."""

from pathlib import Path

from modelpack.errors import InvalidInputError, MissingFileError


def read_small_file(path: Path, *, limit: int, error: type[InvalidInputError] = InvalidInputError) -> bytes:
    """At most ``limit`` bytes. Raises MissingFileError, and ``error`` for what cannot be read or is longer."""
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except FileNotFoundError as problem:
        raise MissingFileError(f"there is no file {path}") from problem
    except OSError as problem:
        raise error(f"{path} cannot be read: {problem.strerror}") from problem
    if len(content) > limit:
        raise error(f"{path} is longer than {limit} bytes")
    return content
