"""Files that a person names: whatever lies there, nobody is made to wait for it."""

import contextlib
import os
import socket
import threading

import pytest

from modelpack.errors import InvalidInputError, MalformedPolicyError, NotFoundError
from modelpack.small_file import read_small_file


@pytest.fixture
def fifo(tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


@pytest.fixture
def opened():
    """Makes a pipe as "<(...)" does: the path of its open end, with something to be read."""
    ends = []

    def make(content):
        reading, writing = os.pipe()

        def write():
            with contextlib.suppress(BrokenPipeError), os.fdopen(writing, "wb") as file:
                file.write(content)

        writer = threading.Timer(0.1, write)
        writer.start()
        ends.append((reading, writer))
        return f"/dev/fd/{reading}"

    yield make
    for end, writer in ends:
        os.close(end)
        writer.join()


def test_a_file_is_read_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    (tmp_path / "link").symlink_to(path)

    assert read_small_file(path, limit=5) == b"12345"
    assert read_small_file(tmp_path / "link", limit=5) == b"12345"
    with pytest.raises(InvalidInputError, match="longer than 4 bytes"):
        read_small_file(path, limit=4)
    with pytest.raises(NotFoundError, match="there is no file"):
        read_small_file(tmp_path / "none", limit=4)
    path.chmod(0)
    if os.geteuid():
        with pytest.raises(InvalidInputError, match="cannot be read"):
            read_small_file(path, limit=5)


@pytest.mark.parametrize("pipe", [False, True])
def test_a_named_pipe_is_not_waited_for(fifo, pipe):
    with pytest.raises(MalformedPolicyError, match="is a pipe, not a file"):
        read_small_file(fifo, limit=5, error=MalformedPolicyError, pipe=pipe)


def test_what_is_no_file_is_named(tmp_path):
    with pytest.raises(InvalidInputError, match="is a folder, not a file"):
        read_small_file(tmp_path, limit=5, pipe=True)
    with pytest.raises(InvalidInputError, match="is a device, not a file"):
        read_small_file("/dev/zero", limit=5, pipe=True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        with pytest.raises(InvalidInputError, match="cannot be read"):
            read_small_file(tmp_path / "s", limit=5, pipe=True)


def test_a_pipe_of_the_shell_is_read_where_a_person_may_name_one(opened, tmp_path):
    assert read_small_file(opened(b"12345"), limit=5, pipe=True) == b"12345"
    with pytest.raises(InvalidInputError, match="longer than 4 bytes"):
        read_small_file(opened(b"12345" * 100_000), limit=4, pipe=True)
    with pytest.raises(InvalidInputError, match="is a pipe, not a file"):
        read_small_file(opened(b"12345"), limit=5)
    # A link could have been laid by somebody else.
    (tmp_path / "link").symlink_to(opened(b"12345"))
    with pytest.raises(InvalidInputError, match="is a pipe, not a file"):
        read_small_file(tmp_path / "link", limit=5, pipe=True)
