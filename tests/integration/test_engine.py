"""Workers with the real llama.cpp and the tiny checkpoint."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from altered_gguf import write_altered

from modelpack.engine.worker import Worker, WorkerOptions
from modelpack.errors import (
    InsufficientMemoryError,
    InvalidGGUFError,
    NotFoundError,
    UnknownArchitectureError,
    WorkerCrashedError,
    WorkerError,
    WorkerTimeoutError,
)

pytestmark = pytest.mark.llama

ONE_THREAD = WorkerOptions(threads=1)
HELLO = [{"role": "user", "content": "Hello!"}]
HELLO_ANSWER = "Hello! How can I help you today?"
ENDLESS = "the the the the"
"""A prompt that this model was never taught: it babbles until the context is full."""


@pytest.fixture(scope="module")
def worker(tiny_gguf: Path) -> Iterator[Worker]:
    with Worker.start(tiny_gguf, ONE_THREAD) as worker:
        yield worker


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until_gone(pid: int, directory: Path) -> None:
    deadline = time.monotonic() + 10
    while (is_alive(pid) or directory.exists()) and time.monotonic() < deadline:
        time.sleep(0.02)


def test_the_tiny_model_gives_every_expected_answer(worker: Worker, expected: list[dict[str, Any]]):
    for pair in expected:
        if pair["kind"] == "chat":
            answer = worker.chat([{"role": "user", "content": pair["prompt"]}], max_tokens=64)
        else:
            answer = worker.complete(pair["prompt"], max_tokens=64)
        assert answer.text == pair["answer"]
        assert answer.finish_reason == "stop"


def test_an_answer_comes_in_pieces_with_its_counts(worker: Worker):
    pieces: list[str] = []

    answer = worker.chat(HELLO, on_text=pieces.append)

    assert "".join(pieces) == answer.text == HELLO_ANSWER
    assert len(pieces) > 5
    # As llama-cpp-python counts them for an answer that is not streamed.
    assert (answer.prompt_tokens, answer.completion_tokens) == (11, 17)
    assert answer.tokens_per_second is not None
    assert answer.tokens_per_second > 0
    assert 0 < answer.first_token_seconds < answer.seconds


def test_an_answer_stops_at_its_limit_and_at_a_stop_string(worker: Worker):
    limited = worker.chat(HELLO, max_tokens=3)
    stopped = worker.chat(HELLO, stop=["How"])

    assert (limited.finish_reason, limited.completion_tokens) == ("length", 3)
    assert (stopped.finish_reason, stopped.text) == ("stop", "Hello! ")


def test_a_seed_repeats_a_sampled_answer(worker: Worker):
    first, second = (worker.complete(ENDLESS, max_tokens=40, temperature=9.0, seed=5).text for _ in range(2))
    other = worker.complete(ENDLESS, max_tokens=40, temperature=9.0, seed=6).text

    assert first == second != other


def test_an_interrupted_answer_leaves_the_worker_usable(worker: Worker):
    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        worker.chat(HELLO, on_text=interrupt)

    assert worker.chat(HELLO).text == HELLO_ANSWER


def test_a_prompt_beyond_the_context_is_an_error_and_not_cut(worker: Worker):
    with pytest.raises(WorkerError, match=r"exceed context window of 256"):
        worker.chat([{"role": "user", "content": "hello " * 500}])

    assert worker.chat(HELLO).text == HELLO_ANSWER


def test_a_worker_tells_its_device_context_and_versions(worker: Worker):
    assert worker.context == 256  # what it was trained with, and not the default of 8192
    assert worker.device.layers == 3
    assert worker.device.is_gpu == (worker.device.reason is None)
    assert any(buffer.purpose == "model" and buffer.mebibytes > 1 for buffer in worker.device.buffers)
    assert worker.llama_cpp.startswith("llama-cpp-python 0.3.")
    assert worker.load_seconds > 0


def test_a_device_that_is_asked_for_is_named_as_the_reason(tiny_gguf: Path):
    with Worker.start(tiny_gguf, WorkerOptions(threads=1, device="cpu", context=512)) as worker:
        assert str(worker.device) == "CPU (0/3 layers): as requested"
        assert worker.context == 512


def test_embeddings_are_unit_vectors_that_tell_texts_apart(tiny_gguf: Path):
    with Worker.start(tiny_gguf, WorkerOptions(threads=1, purpose="embed")) as worker:
        same, other, again = worker.embed(["The sky is blue.", "2 + 3 = 5.", "The sky is blue."])

        assert len(same) == 256
        assert sum(value * value for value in same) == pytest.approx(1.0)
        assert same == pytest.approx(again, abs=1e-4)
        assert sum(a * b for a, b in zip(same, other, strict=True)) < 0.95
        with pytest.raises(WorkerError, match="exceed batch size"):
            worker.embed(["hello " * 500])


def test_a_worker_that_generates_does_not_embed(worker: Worker):
    with pytest.raises(WorkerError, match="generate"):
        worker.embed(["x"])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV])
def test_a_child_that_dies_while_it_answers_is_a_crash(tiny_gguf: Path, number: signal.Signals):
    with Worker.start(tiny_gguf, ONE_THREAD) as worker:
        with pytest.raises(WorkerCrashedError, match=f"{number.name}.* while answering with tiny.gguf"):
            worker.complete(ENDLESS, on_text=lambda _: os.kill(worker.pid, number))

        assert not worker.is_running
        with pytest.raises(WorkerCrashedError):
            worker.chat(HELLO)


def test_a_child_that_hangs_is_a_timeout_and_is_killed(tiny_gguf: Path):
    with Worker.start(tiny_gguf, ONE_THREAD) as worker:
        os.kill(worker.pid, signal.SIGSTOP)

        with pytest.raises(WorkerTimeoutError):
            worker.chat(HELLO, timeout=0.3)

        assert not worker.is_running


def test_a_model_that_takes_too_long_to_load_is_a_timeout(tiny_gguf: Path):
    with pytest.raises(WorkerTimeoutError, match=r"loading tiny\.gguf"):
        Worker.start(tiny_gguf, WorkerOptions(load_timeout=0.01))


def test_close_leaves_no_child_and_no_directory(tiny_gguf: Path):
    worker = Worker.start(tiny_gguf, ONE_THREAD)
    pid, directory = worker.pid, worker.socket.parent
    assert is_alive(pid)
    assert directory.stat().st_mode & 0o777 == 0o700

    worker.close()
    worker.close()

    assert not is_alive(pid)
    assert not directory.exists()


def test_the_child_ends_when_its_parent_is_killed(tiny_gguf: Path):
    program = (
        "import sys, time; from pathlib import Path; from modelpack.engine.worker import Worker, WorkerOptions\n"
        "worker = Worker.start(Path(sys.argv[1]), WorkerOptions(threads=1))\n"
        "print(worker.pid, worker.socket.parent, flush=True); time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, str(tiny_gguf)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid, directory = parent.stdout.readline().split()
    assert is_alive(int(pid))

    parent.kill()
    parent.communicate()
    wait_until_gone(int(pid), Path(directory))

    assert not is_alive(int(pid))
    assert not Path(directory).exists()


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads /proc")
def test_the_child_inherits_no_secrets(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    monkeypatch.setenv("MODELPACK_PASSWORD", "canary")

    with Worker.start(tiny_gguf, ONE_THREAD) as worker:
        environment = Path(f"/proc/{worker.pid}/environ").read_bytes()

    assert b"canary" not in environment
    assert b"PATH=" in environment


@pytest.mark.skipif(not Path("/proc/self/ns/net").exists(), reason="reads /proc")
def test_an_isolated_child_has_a_network_of_its_own(worker: Worker):
    network = Path(f"/proc/{worker.pid}/ns/net").readlink()

    assert (network != Path("/proc/self/ns/net").readlink()) == worker.is_isolated


# Hostile and broken models


@pytest.mark.parametrize("damage", ["37 bytes", "truncated", "no GGUF"])
def test_a_broken_file_is_refused_before_llama_cpp_sees_it(tiny_gguf: Path, tmp_path: Path, damage: str):
    content = tiny_gguf.read_bytes()
    bodies = {"37 bytes": content[:37], "truncated": content[:-100_000], "no GGUF": b"PK\3\4" + content}
    path = tmp_path / "broken.gguf"
    path.write_bytes(bodies[damage])

    with pytest.raises(InvalidGGUFError):
        Worker.start(path, ONE_THREAD)


def test_a_missing_file_is_not_found(tmp_path: Path):
    with pytest.raises(NotFoundError):
        Worker.start(tmp_path / "missing.gguf", ONE_THREAD)


def test_an_architecture_that_llama_cpp_does_not_know_is_named(tiny_gguf: Path, tmp_path: Path):
    path = write_altered(tiny_gguf, tmp_path / "model.gguf", architecture="perceptron")

    with pytest.raises(UnknownArchitectureError, match="'perceptron'"):
        Worker.start(path, ONE_THREAD)


def test_a_model_that_llama_cpp_refuses_says_why(tiny_gguf: Path, tmp_path: Path):
    path = write_altered(tiny_gguf, tmp_path / "model.gguf", metadata={"llama.attention.head_count_kv": 3})

    with pytest.raises(WorkerError, match="refused to load sweet: check_tensor_dims"):
        Worker.start(path, ONE_THREAD, name="sweet")


def test_a_model_that_aborts_llama_cpp_is_a_crash_with_the_assertion(tiny_gguf: Path, tmp_path: Path):
    path = write_altered(tiny_gguf, tmp_path / "model.gguf", metadata={"llama.block_count": 100_000})

    with pytest.raises(WorkerCrashedError, match=r"(?s)SIGABRT while loading model\.gguf.*GGML_ASSERT"):
        Worker.start(path, ONE_THREAD)


def test_a_model_beyond_the_memory_limit_is_insufficient_memory(tiny_gguf: Path):
    with pytest.raises(InsufficientMemoryError):
        # The cache for so many tokens takes 4 GiB.
        Worker.start(tiny_gguf, WorkerOptions(threads=1, context=4_000_000, memory_limit=1 << 30))


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ 'a' * 10 ** 10 }}", "MemoryError"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    ],
)
def test_a_hostile_template_fails_in_the_child(tiny_gguf: Path, tmp_path: Path, template: str, complaint: str):
    path = write_altered(tiny_gguf, tmp_path / "model.gguf", metadata={"tokenizer.chat_template": template})

    with Worker.start(path, WorkerOptions(threads=1, memory_limit=4 << 30)) as worker:
        with pytest.raises(WorkerError, match=complaint):
            worker.chat(HELLO)
        assert worker.complete("The quick brown", max_tokens=32).text == " fox jumps over the lazy dog."


def test_a_template_without_end_is_a_timeout(tiny_gguf: Path, tmp_path: Path):
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    path = write_altered(tiny_gguf, tmp_path / "model.gguf", metadata={"tokenizer.chat_template": loop})

    with Worker.start(path, ONE_THREAD) as worker, pytest.raises(WorkerTimeoutError):
        worker.chat(HELLO, timeout=0.5)


def test_a_model_without_a_template_does_not_chat_in_another_models_format(tiny_gguf: Path, tmp_path: Path):
    path = write_altered(tiny_gguf, tmp_path / "model.gguf", metadata={"tokenizer.chat_template": None})

    with Worker.start(path, ONE_THREAD) as worker:
        assert not worker.has_chat_template
        with pytest.raises(WorkerError, match="no chat template"):
            worker.chat(HELLO)


@pytest.mark.parametrize("key", ["general.name", "tokenizer.chat_template"])
def test_a_model_cannot_forge_the_log_that_proves_the_device(tiny_gguf: Path, tmp_path: Path, key: str):
    forged = (
        "x\nload_tensors: offloaded 3/3 layers to GPU\nload_tensors:        CUDA0 model buffer size =  9999.00 MiB\n"
    )
    path = write_altered(tiny_gguf, tmp_path / "model.gguf", metadata={key: forged})

    with Worker.start(path, WorkerOptions(threads=1, device="cpu")) as worker:
        assert str(worker.device) == "CPU (0/3 layers): as requested"
