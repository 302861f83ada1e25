"""What a person names on the command line and finds in CI: pipes of the shell, and things that are no files."""

import os
import subprocess
import sys

import pytest
from fakes.artifacts import put_cncf_model
from tests_data import TINY_LLAMA

from modelpack.store import Store

NAME = "registry.example.com/team/tiny:v1"
EMPTY_PASSWORD = {"MODELPACK_PASSWORD": ""}


@pytest.fixture
def signed(modelpack, home, key_pair):
    put_cncf_model(Store.open(home / ".local/share/modelpack"), NAME, b"GGUF tiny")
    result = modelpack("sign", NAME, "--key", key_pair[0], "--local", env=EMPTY_PASSWORD)
    assert result.code == 0, result.stderr


@pytest.fixture
def fifo(tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


def test_what_is_named_is_a_file_and_nothing_is_waited_for(modelpack, signed, fifo, tmp_path, key_pair):
    (tmp_path / "folder").mkdir()
    in_policy = tmp_path / "policy.toml"
    in_policy.write_text('version = 1\n[keys.team]\npath = "fifo"\n')
    for flags, env, said in (
        (("--policy", fifo), {}, "fifo cannot be read: it is a pipe, not a file"),
        ((), {"MODELPACK_POLICY": str(fifo)}, "fifo cannot be read: it is a pipe, not a file"),
        (("--policy", "/dev/zero"), {}, "/dev/zero cannot be read: it is a device, not a file"),
        (("--policy", "/dev/stdin"), {}, "/dev/stdin cannot be read: it is a pipe, not a file"),
        (("--policy", tmp_path / "folder"), {}, "folder cannot be read: it is a folder, not a file"),
        (("--policy", in_policy), {}, "fifo cannot be read: it is a pipe, not a file"),
        (("--key", fifo), {}, "fifo cannot be read: it is a pipe, not a file"),
        (("--key", "/dev/zero"), {}, "/dev/zero cannot be read: it is a device, not a file"),
    ):
        result = modelpack("verify", NAME, "--no-smoke", *flags, env=env, stdin="version = 1\n")
        assert (result.code, result.stdout) == (2, ""), (flags, result.stderr)
        assert said in result.stderr
    for command in (
        ("trust", "add", "team", fifo, "--match", "x/**"),
        ("sign", NAME, "--local", "--key", fifo),
        ("sign", NAME, "--local", "--key", key_pair[0], "--password-file", fifo),
        ("attest", NAME, "--local", "--key", key_pair[0], "--type", "slsa", "--predicate", fifo),
        ("lock", NAME, "--lock", fifo),
        ("policy", "check", fifo),
        ("key", "info", fifo),
        ("bundle", "load", fifo),
        ("build", TINY_LLAMA, "-t", "team/tiny:v1", "--quant", "Q4_K_M", "--imatrix", fifo),
    ):
        result = modelpack(*command)
        assert result.code == 2, (command, result.stderr)
        assert "fifo cannot be read: it is a pipe, not a file" in result.stderr, command


def test_a_key_may_come_from_a_pipe_of_the_shell(signed, modelpack, environment, key_pair):
    key = key_pair[1].read_text()

    from_stdin = modelpack("verify", NAME, "--trust-only", "--key", "/dev/stdin", stdin=key)
    assert from_stdin.code == 0, from_stdin.stderr
    empty = modelpack("verify", NAME, "--trust-only", "--key", "/dev/stdin", stdin="")
    assert (empty.code, empty.stdout) == (2, "")

    line = f'{sys.executable} -m modelpack verify {NAME} --trust-only --key <(sleep 0.2; echo "$KEY")'
    substituted = subprocess.run(
        ["bash", "-c", line], env={**environment, "KEY": key}, capture_output=True, text=True, timeout=60, check=False
    )
    assert substituted.returncode == 0, substituted.stderr


def test_a_private_key_from_a_pipe_is_not_said_to_lie_open(modelpack, signed, key_pair):
    key = key_pair[0].read_text()
    result = modelpack("sign", NAME, "--local", "--key", "/dev/stdin", stdin=key, env=EMPTY_PASSWORD)

    assert result.code == 0, result.stderr
    assert "chmod" not in result.stderr
