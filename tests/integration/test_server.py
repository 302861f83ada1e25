"""The server as a program, with the real openai client, the real llama.cpp and the tiny checkpoint."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import openai
import pytest

pytestmark = pytest.mark.llama

HELLO: Any = [{"role": "user", "content": "Hello!"}]
HELLO_ANSWER = "Hello! How can I help you today?"
ENDLESS = "the the the the"
"""A prompt that this model was never taught: it babbles until the context is full."""


class RunningServer:
    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process = process
        self.url = url
        self.client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)

    def get(self, path: str, **headers: str) -> tuple[int, Any]:
        return self.request("GET", path, b"", headers)

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        return self.request("POST", path, body if isinstance(body, bytes) else json.dumps(body).encode(), headers)

    def request(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, Any]:
        connection = HTTPConnection(self.url.removeprefix("http://"), timeout=60)
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())

    def workers(self) -> list[int]:
        """The process ids of the server's children."""
        children = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[1]) == self.process.pid and fields[0] != "Z":
                children.append(int(stat.parent.name))
        return children

    def wait_for_workers(self, count: int) -> list[int]:
        deadline = time.monotonic() + 20
        while len(self.workers()) != count and time.monotonic() < deadline:
            time.sleep(0.02)
        workers = self.workers()
        assert len(workers) == count
        return workers

    def interrupt(self) -> str:
        """Press Ctrl-C; what it printed after that."""
        self.process.send_signal(signal.SIGINT)
        return self.process.communicate(timeout=20)[0]


Serve = Callable[..., RunningServer]


@contextmanager
def serving() -> Iterator[Serve]:
    servers: list[subprocess.Popen[str]] = []

    def serve(models: dict[str, Path], *, worker: dict[str, Any] | None = None, **options: Any) -> RunningServer:
        settings = {"models": models, "options": options, "worker": worker or {}}
        program = Path(__file__).with_name("serve_models.py")
        process = subprocess.Popen(
            [sys.executable, program, json.dumps(settings, default=str)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        servers.append(process)
        assert process.stdout is not None
        return RunningServer(process, process.stdout.readline().strip())

    try:
        yield serve
    finally:
        for process in servers:
            process.kill()
            process.communicate()


@pytest.fixture
def serve() -> Iterator[Serve]:
    with serving() as serve:
        yield serve


@pytest.fixture(scope="module")
def server(tiny_gguf: Path) -> Iterator[RunningServer]:
    with serving() as serve:
        yield serve({"tiny": tiny_gguf, "untrusted": tiny_gguf, "acme/tiny:1.0-q8_0": tiny_gguf}, max_body=100_000)


def test_the_models_are_listed(server: RunningServer):
    models = server.client.models.list().data

    assert [model.id for model in models] == ["acme/tiny:1.0-q8_0", "tiny", "untrusted"]
    assert server.client.models.retrieve("acme/tiny:1.0-q8_0").created == 1_700_000_000


def test_a_chat_is_answered(server: RunningServer):
    answer = server.client.chat.completions.create(model="tiny", messages=HELLO, temperature=0)

    assert answer.choices[0].message.content == HELLO_ANSWER
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "tiny"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (11, 17)


def test_a_chat_is_streamed_with_usage_only_if_asked_for(server: RunningServer):
    def stream(**options: Any) -> list[Any]:
        return list(
            server.client.chat.completions.create(model="tiny", messages=HELLO, temperature=0, stream=True, **options)
        )

    plain = stream()
    counted = stream(stream_options={"include_usage": True})

    assert "".join(chunk.choices[0].delta.content or "" for chunk in plain) == HELLO_ANSWER
    assert all(chunk.usage is None for chunk in plain)
    assert counted[-1].choices == []
    assert counted[-1].usage.total_tokens == 28


def test_a_prompt_is_completed_whole_and_streamed(server: RunningServer):
    request: dict[str, Any] = {"model": "tiny", "prompt": "The quick brown", "temperature": 0, "max_tokens": 32}

    whole = server.client.completions.create(**request)
    chunks = server.client.completions.create(**request, stream=True)

    assert whole.choices[0].text == " fox jumps over the lazy dog."
    assert "".join(chunk.choices[0].text for chunk in chunks) == " fox jumps over the lazy dog."


def test_texts_are_embedded_as_the_client_wants_them(server: RunningServer):
    # The client asks for base64 unless told otherwise.
    unpacked = server.client.embeddings.create(model="tiny", input=["a", "b"]).data
    floats = server.client.embeddings.create(model="tiny", input="b", encoding_format="float").data
    _, raw = server.post("/v1/embeddings", {"model": "tiny", "input": "b", "encoding_format": "base64"})

    assert len(unpacked) == 2
    assert unpacked[1].embedding == pytest.approx(floats[0].embedding, abs=1e-5)
    assert len(base64.b64decode(raw["data"][0]["embedding"])) == 4 * len(floats[0].embedding)


def test_a_model_that_is_not_there_is_not_replaced_by_another(server: RunningServer):
    with pytest.raises(openai.NotFoundError) as refused:
        server.client.chat.completions.create(model="nope", messages=HELLO)

    assert refused.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        server.client.models.retrieve("nope")


def test_a_model_that_is_not_trusted_is_refused(server: RunningServer):
    with pytest.raises(openai.PermissionDeniedError, match="nobody signed it"):
        server.client.chat.completions.create(model="untrusted", messages=HELLO)


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_beyond_the_context_is_a_400_and_not_cut(server: RunningServer, stream: bool):
    long: Any = [{"role": "user", "content": "hello " * 500}]

    with pytest.raises(openai.BadRequestError) as refused:
        server.client.chat.completions.create(model="tiny", messages=long, stream=stream)

    assert refused.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"garbage", 400, "not JSON"),
        (b"[]", 400, "not a JSON object"),
        (b"[" * 50_000, 400, "not JSON"),  # deeper than Python's parser goes
        ({"messages": []}, 400, "must name a model"),
        ({"model": "tiny", "messages": "x"}, 400, "messages"),
        ({"model": "tiny", "messages": [], "temperature": "hot"}, 400, "temperature"),
        ({"model": "tiny", "messages": HELLO, "n": 3}, 400, "n must be 1"),
        (b" " * 100_001, 413, "larger"),
        *(
            (b'{"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "x": %b}' % value, 400, "not JSON")
            for value in (b'"\\ud800"', b'{"\\udfff": 1}', b'"\xed\xa0\x80"', b"NaN", b"-Infinity", b"1e400")
        ),
        ({"model": "tiny", "messages": HELLO, "grammar": "(((("}, 400, "grammar"),
        ({"model": "A:b:c", "messages": HELLO}, 400, "is not a"),
    ],
    ids=[
        *("text", "array", "deep", "no model", "messages", "temperature", "n", "huge"),
        *("surrogate", "surrogate key", "raw surrogate", "NaN", "infinity", "1e400", "grammar", "malformed name"),
    ],
)
def test_a_malformed_request_is_refused_in_the_shape_of_the_api(
    server: RunningServer, body: Any, status: int, message: str
):
    actual, answer = server.post("/v1/chat/completions", body)

    assert actual == status
    assert message in answer["error"]["message"]
    assert answer["error"]["type"] == "invalid_request_error"
    assert "site-packages" not in json.dumps(answer)


def test_a_schema_still_shapes_the_answer(server: RunningServer):
    schema = {"type": "object", "properties": {"a": {"enum": ["b"]}}, "required": ["a"]}
    wanted: Any = {"type": "json_object", "schema": schema}

    answer = server.client.chat.completions.create(model="tiny", messages=HELLO, temperature=0, response_format=wanted)

    assert json.loads(answer.choices[0].message.content or "") == {"a": "b"}


def test_what_does_not_exist_is_refused_in_the_shape_of_the_api(server: RunningServer):
    assert server.get("/v2/models")[0] == 404
    assert server.get("/v1/completions")[0] == 405
    assert "error" in server.get("/v2/models")[1]


def test_another_host_name_is_refused(server: RunningServer):
    assert server.get("/health") == (200, {"status": "ok"})
    assert server.get("/health", host="evil.example")[0] == 403


def test_a_field_without_effect_is_named(server: RunningServer):
    response = server.client.chat.completions.with_raw_response.create(
        model="tiny", messages=HELLO, extra_body={"store": False}
    )

    assert response.headers["x-modelpack-ignored"] == "store"
    assert response.headers["x-modelpack-device"].endswith("layers)") or "CPU" in response.headers["x-modelpack-device"]


def test_a_key_is_asked_for(serve: Serve, tiny_gguf: Path):
    server = serve({"tiny": tiny_gguf}, api_key="secret")

    with pytest.raises(openai.AuthenticationError):
        server.client.models.list()
    assert server.client.with_options(api_key="secret").models.list().data[0].id == "tiny"
    assert server.get("/health")[0] == 200


def test_first_requests_at_once_load_the_model_once(serve: Serve, tiny_gguf: Path):
    server = serve({"tiny": tiny_gguf})

    def ask(_: int) -> str | None:
        answer = server.client.chat.completions.create(model="tiny", messages=HELLO, temperature=0)
        return answer.choices[0].message.content

    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(ask, range(4)))

    assert answers == [HELLO_ANSWER] * 4
    server.wait_for_workers(1)


def test_more_requests_than_may_wait_are_turned_away(serve: Serve, tiny_gguf: Path):
    server = serve({"tiny": tiny_gguf}, max_requests=1)
    server.client.completions.create(model="tiny", prompt="Once")
    (worker,) = server.wait_for_workers(1)
    os.kill(worker, signal.SIGSTOP)  # the first request takes as long as we like

    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(server.client.completions.create, model="tiny", prompt="The quick brown", temperature=0)
        deadline = time.monotonic() + 20
        refused: openai.RateLimitError | None = None
        while refused is None and time.monotonic() < deadline:
            try:
                server.client.completions.create(model="tiny", prompt="x", timeout=0.2)
            except openai.RateLimitError as error:
                refused = error
            except openai.APITimeoutError:
                pass
        os.kill(worker, signal.SIGCONT)

    assert refused is not None
    assert refused.response.headers["retry-after"] == "1"
    assert first.exception() is None or isinstance(first.exception(), openai.RateLimitError)


def test_an_idle_model_is_unloaded_and_loaded_again(serve: Serve, tiny_gguf: Path):
    server = serve({"tiny": tiny_gguf}, idle_timeout=0.3)

    for _ in range(2):
        server.client.chat.completions.create(model="tiny", messages=HELLO)
        server.wait_for_workers(0)


def test_another_model_takes_the_place_of_the_first(serve: Serve, tiny_gguf: Path, tmp_path: Path):
    (tmp_path / "other.gguf").write_bytes(tiny_gguf.read_bytes())
    server = serve({"tiny": tiny_gguf, "other": tmp_path / "other.gguf"})

    def load(name: str) -> int:
        server.client.chat.completions.create(model=name, messages=HELLO, temperature=0)
        (worker,) = server.wait_for_workers(1)
        return worker

    first, second = load("tiny"), load("other")

    assert first != second == load("other")


def test_a_worker_that_crashed_is_a_503_and_replaced_at_the_next_request(serve: Serve, tiny_gguf: Path):
    server = serve({"tiny": tiny_gguf})
    server.client.chat.completions.create(model="tiny", messages=HELLO)
    (worker,) = server.wait_for_workers(1)
    os.kill(worker, signal.SIGSTOP)  # so that the request is on its way when it dies
    threading.Timer(0.5, os.kill, (worker, signal.SIGABRT)).start()
    threading.Timer(0.6, os.kill, (worker, signal.SIGCONT)).start()

    with pytest.raises(openai.InternalServerError) as crashed:
        server.client.chat.completions.create(model="tiny", messages=HELLO)
    again = server.client.chat.completions.create(model="tiny", messages=HELLO, temperature=0)

    assert (crashed.value.status_code, crashed.value.code) == (503, "worker_crashed")
    assert again.choices[0].message.content == HELLO_ANSWER
    assert server.wait_for_workers(1) != [worker]


def test_a_worker_that_crashes_inside_a_stream_ends_it_with_an_error(serve: Serve, tiny_gguf: Path):
    server = serve({"tiny": tiny_gguf})
    request: dict[str, Any] = {"model": "tiny", "prompt": ENDLESS, "temperature": 0, "max_tokens": 240}
    server.client.completions.create(**request)
    (worker,) = server.wait_for_workers(1)

    stream = server.client.completions.create(**request, stream=True)
    next(stream)
    os.kill(worker, signal.SIGKILL)

    with pytest.raises(openai.APIError, match="SIGKILL"):
        list(stream)
    assert server.client.completions.create(**request).choices[0].finish_reason == "length"


def test_a_worker_that_hangs_is_a_504_and_replaced(serve: Serve, tiny_gguf: Path):
    server = serve({"tiny": tiny_gguf}, worker={"answer_timeout": 1.0})
    server.client.chat.completions.create(model="tiny", messages=HELLO)
    (worker,) = server.wait_for_workers(1)
    os.kill(worker, signal.SIGSTOP)

    with pytest.raises(openai.InternalServerError) as stuck:
        server.client.chat.completions.create(model="tiny", messages=HELLO)

    assert stuck.value.status_code == 504
    assert server.client.chat.completions.create(model="tiny", messages=HELLO).choices


def test_a_client_that_goes_away_does_not_keep_the_model(serve: Serve, tiny_gguf: Path):
    server = serve({"tiny": tiny_gguf}, max_requests=1)

    for _ in range(3):
        stream = server.client.completions.create(model="tiny", prompt=ENDLESS, max_tokens=240, stream=True)
        next(stream)
        stream.close()
        time.sleep(0.2)

    patient = server.client.with_options(max_retries=5)
    answer = patient.chat.completions.create(model="tiny", messages=HELLO, temperature=0)
    assert answer.choices[0].message.content == HELLO_ANSWER


def test_an_answer_that_nobody_waits_for_is_cut_short(serve: Serve, tiny_gguf: Path):
    server = serve({"tiny": tiny_gguf}, worker={"context": 32_768})
    server.client.completions.create(model="tiny", prompt="Once", max_tokens=1)
    long: dict[str, Any] = {"model": "tiny", "prompt": ENDLESS, "temperature": 0, "max_tokens": 30_000}  # minutes

    with pytest.raises(openai.APITimeoutError):
        server.client.completions.create(**long, timeout=1.0)

    answer = server.client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=5, timeout=15)
    assert answer.choices


def test_a_model_that_does_not_load_is_an_answer(serve: Serve, tiny_gguf: Path, tmp_path: Path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(tiny_gguf.read_bytes()[:5000])
    server = serve({"broken": broken, "tiny": tiny_gguf})

    with pytest.raises(openai.UnprocessableEntityError) as refused:
        server.client.chat.completions.create(model="broken", messages=HELLO)

    assert refused.value.code == "model_invalid"
    assert server.client.chat.completions.create(model="tiny", messages=HELLO).choices


def test_a_unix_socket_is_served_for_its_owner_alone_and_removed(serve: Serve, tiny_gguf: Path, tmp_path: Path):
    path = tmp_path / "s"
    left_behind = socket.socket(socket.AF_UNIX)
    left_behind.bind(str(path))  # by a server that was killed
    left_behind.close()

    server = serve({"tiny": tiny_gguf}, unix_socket=path)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: whatever\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(4096), b""))

    assert server.url == str(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert answer.endswith(b'{"status":"ok"}')
    assert server.interrupt() == "interrupted\n"
    assert not path.exists()


def test_ctrl_c_ends_at_once_in_the_middle_of_an_answer_and_no_child_survives(serve: Serve, tiny_gguf: Path):
    server = serve({"tiny": tiny_gguf})
    stream = server.client.completions.create(model="tiny", prompt=ENDLESS, max_tokens=240, stream=True)
    next(stream)
    (worker,) = server.wait_for_workers(1)
    started = time.monotonic()

    said = server.interrupt()

    assert said == "interrupted\n"
    assert time.monotonic() - started < 5
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
