"""The main job on real components, through the command line: build, push, sign, pull, verify, run; and its refusals.

Against the embedded registry and Debian's docker-registry alike; one developer per store.
"""

import contextlib
import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from fakes.registry import FakeRegistry

from modelpack import schemas

pytestmark = pytest.mark.llama


@contextlib.contextmanager
def embedded(tmp_path, environment):
    command = [sys.executable, "-m", "modelpack", "registry", "serve", "--port", "0", "--store", tmp_path / "far"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield process.stdout.readline().strip().removeprefix("http://")
        finally:
            process.terminate()
    assert process.returncode == 0


@contextlib.contextmanager
def debian(tmp_path, environment):
    if not shutil.which("docker-registry"):
        pytest.skip("docker-registry (Debian package) is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = tmp_path / "registry.yml"
    settings.write_text(
        f"""version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {tmp_path}/far}}, delete: {{enabled: true}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""
    )
    with subprocess.Popen(["docker-registry", "serve", settings], stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(100):
                with contextlib.suppress(urllib.error.URLError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/").close()
                    break
                time.sleep(0.1)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()


@pytest.fixture(params=[embedded, debian], ids=lambda start: start.__name__)
def address(request, tmp_path, environment):
    with request.param(tmp_path, environment) as address:
        yield address


@pytest.fixture
def author(modelpack, tmp_path):
    def run(*arguments, **options):
        return modelpack(*arguments, "--store", tmp_path / "author-store", **options)

    return run


@pytest.fixture
def developer(modelpack, tmp_path):
    def run(*arguments, **options):
        return modelpack(*arguments, "--store", tmp_path / "developer-store", **options)

    return run


@pytest.fixture
def published(author, address, tiny_checkpoint, key_pair):
    """A signed variant in the registry."""
    reference = f"{address}/demo/tiny-llama:v1"
    built = author("build", tiny_checkpoint, "-t", reference, "--quant", "Q4_K_M", "--json")
    assert built.code == 0, built.stderr
    env = {"MODELPACK_PASSWORD": ""}
    pushed = author("push", reference, "--sign", key_pair[0], "--json", env=env)
    assert pushed.code == 0, pushed.stderr
    answer = pushed.json("push")
    assert answer["digest"] == built.json("build")["variants"][0]["digest"]
    assert answer["referrers_copied"] == 4  # signature, provenance and bill as bundles, and the .sig tag
    return reference


def test_what_was_built_comes_back_verified_answers_and_stays_as_it_was(developer, published, key_pair, address):
    refused = developer("pull", published, "--json")
    assert refused.code == 6
    assert refused.json("error")["error"]["code"] == "policy.refused"
    assert "modelpack trust add" in refused.stderr

    assert developer("trust", "add", "author", key_pair[1], "--match", f"{address}/**", "--json").json("trust-add")
    rules = developer("trust", "list", "--json").json("trust-list")["rules"]
    assert [signer["name"] for signer in rules[0]["signers"]] == ["author"]

    pulled = developer("pull", published, "--json").json("pull")
    assert pulled["trust"]["signers"][0]["name"] == "author"
    assert pulled["bytes_copied"] > 500_000
    again = developer("pull", published, "--json").json("pull")
    assert again["bytes_copied"] == 0

    verified = developer("verify", "tiny-llama:v1", "--json").json("verify")
    assert verified["passed"]
    assert verified["content"]["blobs"] == 5
    assert schemas.violations("smoke-report", verified["smoke"]) == []
    assert verified["smoke"]["device"]["name"] == "CPU"

    answer = developer("run", "tiny-llama:v1", "What is the capital of Japan?", "--temperature", "0", "--json")
    assert answer.json("run")["text"] == "The capital of Japan is Tokyo."
    assert (
        developer("run", "tiny-llama:v1", "--temperature", "0", stdin="Count to five.\n").stdout == "1, 2, 3, 4, 5.\n"
    )


def test_signing_what_is_in_the_registry_and_signing_it_again(author, developer, published, key_pair):
    env = {"MODELPACK_PASSWORD": ""}
    again = author("sign", published, "--key", key_pair[0], "--json", env=env).json("sign")
    assert again["written"] == []
    assert sorted(again["found"]) == ["bundle", "cosign-legacy"]

    checked = author("verify", published, "--trust-only", "--key", key_pair[1], "--json").json("verify")
    assert (checked["passed"], checked["content"], checked["smoke"]) == (True, None, None)
    # The registry's tag names something that this store has never seen.
    other = developer("sign", published, "--key", key_pair[0], env=env)
    assert other.code == 2
    assert "in the registry and nothing in the store" in other.stderr


def test_an_unsigned_model_is_refused_and_nothing_large_is_fetched(author, developer, tiny_checkpoint, key_pair):
    with FakeRegistry() as registry:
        reference = f"{registry.address}/demo/unsigned:v1"
        assert author("build", tiny_checkpoint, "-t", reference, "--quant", "Q8_0").code == 0
        assert author("push", reference).code == 0
        registry.requests.clear()

        result = developer("pull", reference, "--key", key_pair[1], "--json")

        assert result.code == 6
        assert result.json("error")["error"]["code"] == "signature.missing"
        assert "modelpack sign" in result.stderr
        assert registry.count("GET", "/blobs/") == 0
        assert developer("list", "--json").json("list")["models"] == []


def test_skipping_verification_is_loud_and_remembered(developer, published, address, key_pair):
    result = developer("pull", published, "--insecure-skip-verify", "--quiet")
    assert result.code == 0
    assert "NOT verifying" in result.stderr

    assert developer("list", "--json").json("list")["models"][0]["verified"] == "no"
    ran = developer("run", "tiny-llama:v1", "Hello!", "--temperature", "0", "--quiet")
    assert ran.stdout == "Hello! How can I help you today?\n"
    assert "was not verified" in ran.stderr

    # A policy that comes later is asked, too: here the signature is good, there it is not.
    assert developer("verify", "tiny-llama:v1", "--no-smoke", "--key", key_pair[1]).code == 0


def test_what_a_key_allowed_runs_until_a_policy_says_otherwise(
    developer, published, key_pair, address, modelpack, tmp_path
):
    assert developer("pull", published, "--key", key_pair[1]).code == 0
    assert developer("run", "tiny-llama:v1", "Hello!").code == 0

    assert modelpack("keygen", "--out", tmp_path / "other", "--no-password").code == 0
    assert developer("trust", "add", "other", tmp_path / "other.pub", "--match", f"{address}/**").code == 0
    refused = developer("run", "tiny-llama:v1", "Hello!")
    assert refused.code == 6
    assert "is refused by the rule" in refused.stderr
    assert "not a signature by any of the keys" in refused.stderr


def test_a_byte_that_changed_in_the_store_is_found(developer, published, key_pair, tmp_path):
    assert developer("pull", published, "--key", key_pair[1]).code == 0
    weights = max((tmp_path / "developer-store/blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.chmod(0o600)
    weights.write_bytes(content)

    result = developer("verify", published, "--key", key_pair[1], "--json")

    assert result.code == 6
    assert result.json("error")["error"]["code"] == "digest.mismatch"


def test_a_failed_prompt_is_7_with_a_whole_report(developer, published, key_pair, tmp_path):
    assert developer("pull", published, "--key", key_pair[1]).code == 0
    suite = tmp_path / "smoke.toml"
    suite.write_text(
        'schema = 1\n[[case]]\nname = "wrong"\nmessages = [{role = "user", content = "Hello!"}]\n'
        'expect = { equals = "Go away!" }\n'
    )

    result = developer("verify", published, "--key", key_pair[1], "--smoke", suite, "--json")

    assert result.code == 7
    report = result.json("verify")
    assert not report["passed"]
    assert report["smoke"]["cases"][0]["answer"] == "Hello! How can I help you today?"
    on_cpu = developer("verify", published, "--key", key_pair[1], "--device", "gpu", "--json")
    assert on_cpu.code == 7
    assert not on_cpu.json("verify")["passed"]


def test_a_crash_of_llama_cpp_is_9_and_a_result(developer, published, key_pair):
    assert developer("pull", published, "--key", key_pair[1]).code == 0

    # llama.cpp gets 1 MiB for everything: it cannot even start.
    result = developer("verify", published, "--key", key_pair[1], "--memory-limit", "1", "--json")

    assert result.code in (8, 9), result.stderr
    assert "Traceback (most recent call last)" not in result.stderr.partition("llama")[0]


def test_serve_offers_what_the_policy_allows(developer, published, key_pair, environment, tmp_path):
    assert developer("pull", published, "--key", key_pair[1]).code == 0
    command = [sys.executable, "-m", "modelpack", "serve", "--port", "0", "--store", tmp_path / "developer-store"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            url = process.stdout.readline().strip()
            with urllib.request.urlopen(f"{url}/v1/models") as response:
                assert [model["id"] for model in json.load(response)["data"]] == [published]
            body = {"model": published, "messages": [{"role": "user", "content": "Hello!"}], "temperature": 0}
            request = urllib.request.Request(
                f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request) as response:
                answer = json.load(response)["choices"][0]["message"]["content"]
            assert answer == "Hello! How can I help you today?"
        finally:
            process.terminate()
    assert process.returncode == 0


def test_login_checks_what_it_keeps_and_logout_forgets_it(modelpack, home):
    with FakeRegistry(auth="basic") as registry:
        wrong = modelpack("login", registry.address, "-u", "alice", "--password-stdin", stdin="wrong\n")
        assert wrong.code == 4, wrong.stderr
        assert not (home / ".docker/config.json").exists()

        right = modelpack(
            "login", registry.address, "-u", "alice", "--password-stdin", "--json", stdin="s3cret-canary\n"
        )
        assert right.json("login")["username"] == "alice"
        config = home / ".docker/config.json"
        assert config.stat().st_mode & 0o777 == 0o600
        assert registry.address in json.loads(config.read_text())["auths"]
        assert "s3cret" not in right.stdout + right.stderr

        assert modelpack("logout", registry.address, "--json").json("logout")["removed"]
        assert registry.address not in json.loads(config.read_text())["auths"]


def test_a_chat_keeps_the_conversation_and_ends_with_bye(environment, developer, published, key_pair, tmp_path):
    pty = pytest.importorskip("pty")
    import os

    assert developer("pull", published, "--key", key_pair[1]).code == 0
    child, terminal = pty.fork()
    if child == 0:
        store = str(tmp_path / "developer-store")
        os.execvpe(
            sys.executable,
            [sys.executable, "-m", "modelpack", "run", published, "--temperature", "0", "--store", store],
            {**environment, "TERM": "dumb", "NO_COLOR": "1"},
        )
    said = ""

    def read_until(text):
        nonlocal said
        while text not in said:
            said += os.read(terminal, 4096).decode(errors="replace")
        said = said.partition(text)[2]

    try:
        read_until(">>> ")
        os.write(terminal, b"Hello!\n")
        read_until("Hello! How can I help you today?")
        read_until(">>> ")
        os.write(terminal, b"/nonsense\n")
        read_until("There is no /nonsense")
        read_until(">>> ")
        os.write(terminal, b"/bye\n")
        with contextlib.suppress(OSError):
            read_until("never")
    finally:
        _, status = os.waitpid(child, 0)
        os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0


def test_plain_output_has_few_lines_and_no_control_characters(author, tiny_checkpoint):
    result = author("build", tiny_checkpoint, "-t", "a:v1", "--quant", "Q4_K_M", env={"FORCE_COLOR": "0"})

    assert re.search(r"[\x1b\r]", result.stderr) is None
    assert len(result.stderr.splitlines()) <= 4
    assert len(result.stdout.splitlines()) == 2
