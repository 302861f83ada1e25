"""Every failure: one clear sentence, one next step, the promised exit code, and nothing half-written."""

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime

import pytest
from fakes.artifacts import put_cncf_model

from modelpack.cli import failures
from modelpack.oci.reference import Reference
from modelpack.receipt import Receipt, write_receipt
from modelpack.store import Store
from modelpack.trust import Verdict

NOW = datetime(2026, 11, 22, 10, 0, 0, tzinfo=UTC)


def tree(path):
    return sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()) if path.exists() else []


@pytest.mark.parametrize(
    ("arguments", "code", "said", "next_step"),
    [
        (["run", "nobody/has:this"], 3, "no nobody/has:this in the store", "modelpack list"),
        (["inspect", "a:b:c"], 2, "'b:c' is not a tag", "references look like"),
        (["inspect", "file:missing.gguf"], 3, "missing.gguf", "next:"),
        (["build", "missing-folder", "-t", "a:v1"], 3, "missing-folder", "next:"),
        (["build", "TINY", "-t", "a:v1", "--quant", "Q9_X"], 2, "Q4_K_M", ""),
        (["build", "TINY", "-t", "a:v1", "--format", "tarball"], 2, "'cncf', 'docker', 'ollama'", ""),
        (["build", "TINY", "-t", "a@sha256:" + "a" * 64], 2, "names a digest", "next:"),
        (["build", "TINY", "-t", "Upper:v1"], 2, "lower case", "next:"),
        (["push", "nothing:v1"], 3, "no nothing:v1", "next:"),
        (["pull", "127.0.0.1:CLOSED/a/b:v1"], 5, "127.0.0.1", "try again"),
        (["pull", "tiny:v1"], 2, "names no registry", "next:"),
        (["login", "127.0.0.1:CLOSED", "-u", "me", "--password-stdin"], 5, "127.0.0.1", "next:"),
        (["sign", "tiny:v1", "--key", "missing.key"], 3, "missing.key", "name one that is there"),
        (["copy", "oci-layout:missing", "store:a:v1"], 3, "missing", "name one that is there"),
        (["copy", "oci-archive:missing.tar", "store:a:v1"], 3, "missing.tar", "name one that is there"),
        (["verify", "127.0.0.1:CLOSED/a/b:v1", "--trust-only"], 5, "127.0.0.1", "next:"),
        (["frobnicate"], 2, "There is no command 'frobnicate'", ""),
        (["pussh", "x"], 2, "Did you mean 'push'?", ""),
    ],
)
def test_a_failure_says_what_is_wrong_and_what_to_do(
    modelpack, tiny_checkpoint, home, arguments, code, said, next_step
):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = str(closed.getsockname()[1])
        words = [word.replace("TINY", str(tiny_checkpoint)).replace("CLOSED", port) for word in arguments]
        result = modelpack(*words, stdin="secret\n")

    assert result.code == code, result.stderr
    assert said in result.stderr
    assert next_step in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert [name for name in tree(home) if "/blobs/" in name or "/partial/" in name] == []


def test_with_json_a_failure_is_one_object_on_stdout(modelpack):
    error = modelpack("run", "nothing:v1", "hi", "--json").json("error")["error"]
    assert (error["code"], error["exit"], error["retryable"]) == ("not-found", 3, False)

    usage = modelpack("run", "--json").json("error")["error"]
    assert (usage["code"], usage["exit"]) == ("usage", 2)


def test_an_unknown_architecture_names_those_that_there_are(modelpack, tiny_checkpoint, tmp_path):
    copy = shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    (copy / "config.json").write_text((copy / "config.json").read_text().replace("LlamaForCausalLM", "MambaForNothing"))

    result = modelpack("build", copy, "-t", "a:v1")

    assert result.code == 1
    assert "MambaForNothing" in result.stderr
    assert "LlamaForCausalLM" in result.stderr


@pytest.mark.parametrize("name", ["truncated", "dims_overflow", "arr_len_240_str", "offset_oob", "empty"])
def test_a_hostile_gguf_is_refused_before_llama_cpp_sees_it(modelpack, name, home):
    from tests_data import GGUF_HOSTILE

    path = GGUF_HOSTILE / f"{name}.gguf"
    assert modelpack("inspect", f"file:{path}").code == 1
    result = modelpack("build", path, "-t", "a:v1")

    assert result.code == 1
    assert result.stderr.startswith("error[gguf.invalid]")
    assert [entry for entry in tree(home) if "/blobs/" in entry] == []


# Every write beyond so many KiB fails; the intermediate GGUF has 1.8 MiB, Q8_0 without one 957 KiB.
@pytest.mark.parametrize(("quantization", "limit"), [("Q4_K_M", 1024), ("Q8_0", 512)])
def test_a_disk_that_takes_no_more_in_the_middle_leaves_no_tag_and_no_half_file(
    modelpack, tiny_checkpoint, home, quantization, limit
):
    build = f"exec {sys.executable} -m modelpack build {tiny_checkpoint} -t a:v1 --quant {quantization}"
    command = f"ulimit -f {limit}; {build}"
    process = subprocess.run(
        ["bash", "-c", f"trap '' XFSZ; {command}"],
        env={**os.environ, "HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert process.returncode == 8, process.stderr
    assert "Traceback" not in process.stderr
    store = home / ".local/share/modelpack"
    assert [entry for entry in tree(store) if entry.startswith(("blobs", "partial"))] == []
    assert modelpack("list", "--json").json("list")["models"] == []


def test_a_disk_that_is_too_small_is_known_before_anything_is_written(tiny_checkpoint, environment, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["unshare", "--user", "--map-root-user", "--mount", "bash", "-c"]
    prepare = f"mount -t tmpfs -o size=1m tmpfs {disk} && "
    if subprocess.run([*mount, f"{prepare} true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let us mount a small disk")

    build = f"{sys.executable} -m modelpack build {tiny_checkpoint} -t a:v1 --quant Q8_0 --store {disk}/store"
    show = f"find {disk}/store/blobs {disk}/store/partial -type f"
    process = subprocess.run(
        [*mount, f"{prepare} {build}; code=$?; {show}; exit $code"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert process.returncode == 8, process.stderr
    assert "error[disk.insufficient]" in process.stderr
    assert process.stdout == ""


def test_a_store_of_somebody_else_or_of_something_else_is_refused(modelpack, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"")

    result = modelpack("list", "--store", tmp_path / "photos")

    assert result.code == 2
    assert tree(tmp_path / "photos") == ["cat.jpg"]


def test_settings_are_strict(modelpack, home):
    settings = home / ".config/modelpack/config.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text('stroe = "/tmp"\n')

    result = modelpack("list")

    assert result.code == 2
    assert "unknown setting 'stroe'" in result.stderr


def test_settings_give_way_to_the_environment_and_that_to_flags(modelpack, home, tmp_path):
    settings = home / ".config/modelpack/config.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text(f'store = "{tmp_path}/from-file"\n')

    def path(*arguments, **env):
        return modelpack("df", "--json", *arguments, env=env).json("df")["path"]

    assert path() == f"{tmp_path}/from-file"
    assert path(MODELPACK_STORE=f"{tmp_path}/from-env") == f"{tmp_path}/from-env"
    assert path("--store", tmp_path / "from-flag", MODELPACK_STORE="x") == f"{tmp_path}/from-flag"


def test_an_interrupt_ends_at_once_with_130(environment, tmp_path):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        reference = f"127.0.0.1:{silent.getsockname()[1]}/a/b:v1"
        process = subprocess.Popen(
            [sys.executable, "-m", "modelpack", "pull", reference], env=environment, stderr=subprocess.PIPE, text=True
        )
        silent.settimeout(30)
        connection, _ = silent.accept()  # it waits for an answer that never comes
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=10)
        connection.close()

    assert process.returncode == failures.INTERRUPTED
    assert time.monotonic() - began < 5
    assert "interrupted" in said


def test_a_reader_that_has_seen_enough_is_no_failure(environment):
    process = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} -m modelpack completion bash | true"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.stderr == ""


@pytest.mark.usefixtures("key_pair")
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("modelpack run tiny:v1 < binary", "standard input is not UTF-8 text"),
        ("PYTHONIOENCODING=utf-8:strict modelpack run tiny:v1 < binary", "standard input is not UTF-8 text"),
        (r"modelpack run tiny:v1 $'a\xff'", "PROMPT is not UTF-8 text"),
        (r"modelpack run tiny:v1 --system $'a\xff' Hello", "--system is not UTF-8 text"),
        ("modelpack serve --port 0 --api-key-file empty", "empty holds no key"),
        ("modelpack serve --port 0 --api-key-file binary", "binary is not UTF-8 text"),
        (r"MODELPACK_API_KEY=$'\xff' modelpack serve --port 0", "MODELPACK_API_KEY is not UTF-8 text"),
        ("modelpack bundle save tiny:v1 -o folder", "folder is a folder, not a file"),
        ("modelpack bundle save tiny:v1 -o empty/x.tar", "empty: File exists"),
        ("modelpack copy store:tiny:v1 oci-archive:folder", "folder is a folder, not a file"),
        ("modelpack sign tiny:v1 --key author.key --bundle folder", "folder: Is a directory"),
        ("modelpack sign tiny:v1 --key author.key --bundle empty/x", "empty: File exists"),
        ("modelpack keygen --no-password --out empty/x", "empty: File exists"),
        ("modelpack list --store /proc/x", "/proc/x: No such file or directory"),
        ("modelpack list --store empty/x", "empty/x: Not a directory"),
    ],
)
def test_a_slip_of_the_hand_is_no_bug_of_ours(environment, home, tmp_path, line, said):
    store = Store.open(home / ".local/share/modelpack")
    put_cncf_model(store, "tiny:v1", b"GGUF")
    tiny = store.find(Reference.parse("tiny:v1"))
    write_receipt(
        store, tiny.descriptor, Receipt(tiny.reference, Verdict.skipped(tiny.reference, tiny.descriptor, now=NOW))
    )
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").touch()
    (tmp_path / "binary").write_bytes(b"a\xff")

    process = subprocess.run(
        ["bash", "-c", f'modelpack() {{ "{sys.executable}" -m modelpack "$@"; }}; {line}'],
        env={**environment, "MODELPACK_PASSWORD": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert process.returncode == 2, process.stderr
    assert "Traceback" not in process.stderr
    error, hint = process.stderr.splitlines()[-2:]
    assert error.startswith("error[")
    assert said in error
    assert hint.startswith("  next: ")


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [(errno.EACCES, 4), (errno.EPERM, 4), (errno.EISDIR, 2), (errno.ENOTDIR, 2), (errno.EEXIST, 2), (errno.ENOENT, 2)],
)
def test_an_error_of_the_machine_names_the_place_that_a_person_named(code, exit_code):
    failure = failures.explain_os_error(OSError(code, os.strerror(code), ".x.tmp", None, "x"))

    assert failure is not None
    assert (failure.exit, failure.message) == (exit_code, f"x: {os.strerror(code)}")
    assert failure.hint


def test_every_exit_code_of_the_table_is_in_the_readme():
    from tests_data import REPOSITORY

    readme = (REPOSITORY / "README.md").read_text()
    for code, meaning in failures.EXIT_CODES.items():
        assert f"| {code} | {meaning} |" in readme


@pytest.mark.parametrize("flag", ["--sign", "--oms"])
def test_an_unset_variable_does_not_turn_signing_off(modelpack, tiny_checkpoint, flag):
    result = modelpack("build", tiny_checkpoint, "-t", "a:v1", "--quant", "Q8_0", flag, "")

    assert result.code == 2
    assert "the name of the key is empty" in result.stderr


def test_a_gate_for_what_is_not_built_is_a_mistake_and_not_a_gate(modelpack, tiny_checkpoint):
    result = modelpack("build", tiny_checkpoint, "-t", "a:v1", "--quant", "Q4_K_M", "--gate", "Q8_0:max_kld=1")

    assert result.code == 2
    assert "names Q8_0, which is not built here" in result.stderr


def test_an_index_does_not_take_the_tag_of_a_model(modelpack, tiny_checkpoint):
    assert modelpack("build", tiny_checkpoint, "-t", "a:v1", "--quant", "Q8_0").code == 0

    result = modelpack("index", "create", "a:v1", "a:v1-q8_0")

    assert result.code == 2
    assert "names a model already" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (["list"], {"MODELPACK_PROGRESS": "bogus"}, "progress is 'bogus'"),
        (["export-view", "tiny:v1", "--format", "zip"], {}, "'zip' is not one of"),
        (["build", "x", "-t", "tiny:v1", "--format", "zip"], {}, "'zip' is not one of"),
    ],
)
def test_a_word_that_is_no_choice_is_a_usage_error(modelpack, arguments, environment, said):
    result = modelpack(*arguments, env=environment)

    assert result.code == 2
    assert said in result.stderr


def test_a_name_that_is_no_text_is_told_in_text_and_in_json(modelpack, tmp_path):
    name = os.fsdecode(bytes(tmp_path) + b"/\xff\xfe.pub")

    told = modelpack("verify", "tiny:v1", "--key", name)
    assert told.code == 3
    assert "\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}.pub" in told.stderr
    error = modelpack("verify", "tiny:v1", "--key", name, "--json").json("error")["error"]
    assert error["message"].endswith("/\udcff\udcfe.pub")
