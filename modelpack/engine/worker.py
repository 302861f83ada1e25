"""A Worker: one model, loaded by llama.cpp in a child process, that chats, completes and embeds.

Chat templates are rendered in the child too, by llama-cpp-python's sandboxed Jinja: a model never runs anything here.
"""

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from modelpack.engine.client import connect
from modelpack.engine.device import DeviceChoice, DeviceReport, parse_device
from modelpack.engine.process import Child
from modelpack.errors import (
    InsufficientMemoryError,
    NotFoundError,
    UnknownArchitectureError,
    WorkerError,
    WorkerTimeoutError,
)
from modelpack.gguf_shards import read_whole_header

if TYPE_CHECKING:
    import httpx2

Purpose = Literal["generate", "embed"]
"""What a worker is loaded for. With embeddings on, llama.cpp computes outputs for every token of a prompt and keeps
room for many sequences, so a model that does both is loaded twice."""

DEFAULT_CONTEXT = 8192
"""Tokens, where nobody asks for a size; less if the model was trained with less. The context that a large model was
trained with may need more memory than its weights."""

_EMBEDDING_BATCH = 2048
_NO_MEMORY = re.compile(r"(failed|unable) to allocate|out of memory|bad_alloc|cannot allocate", re.IGNORECASE)
_UNKNOWN_ARCHITECTURE = re.compile(r"unknown model architecture: '([^']{1,64})'")


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How a model is loaded and how long it may take."""

    purpose: Purpose = "generate"
    device: DeviceChoice = "auto"
    """``gpu`` does not fail here: look at ``Worker.device``."""
    context: int | None = None
    """Tokens, which llama.cpp rounds up; None: what the model was trained with, up to DEFAULT_CONTEXT."""
    threads: int | None = None
    memory_limit: int | None = None
    """Bytes of main memory for the child, mapped weights not counted; None: all that the machine has."""
    load_timeout: float = 600.0
    """Seconds."""
    answer_timeout: float = 600.0
    """Seconds for one answer, from the request to its last token."""


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    text: str
    finish_reason: str
    """``stop`` or ``length``, as in the OpenAI API."""
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    """From the request to the last token."""
    first_token_seconds: float
    """From the request to the first token, or to the end where there was none."""
    generation_seconds: float = 0.0
    """From the first token to the last one, as the child measured it."""

    @property
    def tokens_per_second(self) -> float | None:
        """Speed of generation, the prompt not counted; None for an answer too short to tell."""
        if self.completion_tokens < 2 or self.generation_seconds <= 0:
            return None
        return (self.completion_tokens - 1) / self.generation_seconds


class Worker:
    """A loaded model. Use as a context manager, or call ``close``: no child, socket or directory stays behind."""

    def __init__(self, name: str, options: WorkerOptions, child: Child, facts: Mapping[str, Any]) -> None:
        """Only ``start`` calls this."""
        self.name = name
        self.options = options
        self.load_seconds: float = facts["load_seconds"]
        self.context: int = facts["context"]
        """Tokens that prompt and answer may have together."""
        self.llama_cpp: str = facts["llama_cpp"]
        """Versions of llama-cpp-python and llama.cpp."""
        self.has_chat_template: bool = facts["has_chat_template"]
        self.is_isolated: bool = facts["isolated"]
        """True if the child has no network."""
        self.parameters: dict[str, list[str]] = facts["parameters"]
        """The request fields that the child understands, per endpoint."""
        self.log: str = facts["log"]
        """What llama.cpp logged while it loaded the model, up to 256 KiB."""
        self.device: DeviceReport = parse_device(
            self.log,
            layers=facts["layers"],
            requested=options.device,
            gpu_supported=facts["gpu_supported"],
            system_info=facts["system_info"],
        )
        self._child = child
        self._client = connect(self.socket)

    @classmethod
    def start(cls, model: Path, options: WorkerOptions | None = None, *, name: str | None = None) -> "Worker":
        """Load ``model``, a GGUF file, in a new child process. ``name`` is what errors call it, else the file's name.

        Raises NotFoundError, InvalidGGUFError (before llama.cpp sees the file), UnknownArchitectureError,
        InsufficientMemoryError, WorkerError if llama.cpp refuses the model, WorkerCrashedError and WorkerTimeoutError.
        """
        options = options or WorkerOptions()
        model = model.absolute()
        if not model.is_file():
            raise NotFoundError(f"no model file at {model}")
        name = name or model.name
        header = read_whole_header(model)
        context = options.context or min(header.context_length or DEFAULT_CONTEXT, DEFAULT_CONTEXT)
        doing = f"loading {name}"
        child = Child(
            "modelpack.engine.child",
            {
                # Generative models name no pooling; a text needs one vector, not one per token.
                "mean_pooling": options.purpose == "embed"
                and f"{header.architecture}.pooling_type" not in header.metadata,
                "memory_limit": options.memory_limit or machine_memory(),
                "model_settings": _model_settings(model, options, context),
            },
        )
        try:
            event = child.wait_for_event(options.load_timeout, doing)
            if event["event"] != "ready":
                raise explain_refusal(name, event["message"], child)
            return cls(name, options, child, event)
        except BaseException:
            child.close()
            raise

    @property
    def socket(self) -> Path:
        """The unix domain socket where the child serves the OpenAI API, for this user only."""
        return self._child.directory / "s"

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def is_running(self) -> bool:
        return self._child.is_running

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
        on_text: Callable[[str], None] | None = None,
        timeout: float | None = None,
    ) -> ChatAnswer:
        """Answer ``messages`` (OpenAI's shape), rendered by the model's own chat template.

        ``on_text`` gets each piece of text as soon as it is there. An exception from it, KeyboardInterrupt included,
        ends the answer; the worker goes on. ``timeout`` overrides the options' ``answer_timeout``.

        Raises WorkerError where llama-cpp-python refuses (no template, prompt too long), WorkerCrashedError and
        WorkerTimeoutError; the last two close the worker.
        """
        body = {"messages": list(messages), **_sampling(max_tokens, temperature, seed, stop)}
        return self._generate("/v1/chat/completions", body, on_text, timeout)

    def complete(
        self,
        prompt: str,
        *,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
        on_text: Callable[[str], None] | None = None,
        timeout: float | None = None,
    ) -> ChatAnswer:
        """Continue ``prompt`` as it is, without a template. Otherwise like ``chat``."""
        # For completions, 0 is how llama-cpp-python spells "up to the context"; None means 16 there.
        body = {"prompt": prompt, **_sampling(max_tokens or 0, temperature, seed, stop)}
        return self._generate("/v1/completions", body, on_text, timeout)

    def embed(self, texts: Sequence[str], *, timeout: float | None = None) -> list[list[float]]:
        """One vector of length 1 for each text. The worker must have been started with ``purpose="embed"``."""
        if self.options.purpose != "embed":
            raise WorkerError(f"{self.name} was loaded to generate text, not to embed it")
        limit = timeout or self.options.answer_timeout
        with self._explained(f"embedding {len(texts)} texts with {self.name}", limit):
            response = self._client.post("/v1/embeddings", json={"input": list(texts)}, timeout=limit)
            if response.status_code != 200:
                raise _refused(response.content)
            data = sorted(response.json()["data"], key=lambda item: item["index"])
        return [item["embedding"] for item in data]

    def crash(self, doing: str) -> WorkerError:
        """Close, and return the error that says how the child ended while ``doing``."""
        return self._child.crash(doing)

    def close(self) -> None:
        """Kill the child and remove all that it left. Safe to call twice."""
        self._client.close()
        self._child.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _generate(
        self, path: str, body: dict[str, Any], on_text: Callable[[str], None] | None, timeout: float | None
    ) -> ChatAnswer:
        limit = timeout or self.options.answer_timeout
        started = time.monotonic()
        first: float | None = None
        pieces: list[str] = []
        finish_reason, usage, generation = "", {"prompt_tokens": 0, "completion_tokens": 0}, 0.0
        with (
            self._explained(f"answering with {self.name}", limit) as explained,
            self._client.stream("POST", path, json={**body, "stream": True}, timeout=limit) as response,
        ):
            if response.status_code != 200:
                raise _refused(response.read())
            for chunk in _events(response):
                if time.monotonic() - started > limit:
                    raise explained.timeout()
                if "error" in chunk:
                    raise WorkerError(chunk["error"]["message"])
                usage = chunk.get("usage") or usage
                generation = chunk.get("timings", {}).get("predicted_ms", 0.0) / 1000
                for choice in chunk["choices"]:
                    finish_reason = choice["finish_reason"] or finish_reason
                    text = choice.get("text") or choice.get("delta", {}).get("content")
                    if text:
                        first = first or time.monotonic()
                        pieces.append(text)
                        if on_text is not None:
                            on_text(text)
        if not finish_reason:
            raise self.crash(f"answering with {self.name}")
        ended = time.monotonic()
        return ChatAnswer(
            text="".join(pieces),
            finish_reason=finish_reason,
            prompt_tokens=usage["prompt_tokens"],
            completion_tokens=usage["completion_tokens"],
            seconds=ended - started,
            first_token_seconds=(first or ended) - started,
            generation_seconds=generation,
        )

    def _explained(self, doing: str, limit: float) -> "_Explained":
        return _Explained(self, doing, limit)


class _Explained:
    """Turns what goes wrong on the socket into what happened to the child."""

    def __init__(self, worker: Worker, doing: str, limit: float) -> None:
        self._worker = worker
        self._doing = doing
        self._limit = limit

    def timeout(self) -> WorkerTimeoutError:
        self._worker.close()
        return WorkerTimeoutError(f"llama.cpp did not finish {self._doing} within {self._limit:.0f} s")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import httpx2

        if isinstance(error, httpx2.TimeoutException):
            raise self.timeout() from error
        if isinstance(error, httpx2.TransportError):
            raise self._worker.crash(self._doing) from error


def _events(response: "httpx2.Response") -> Iterator[dict[str, Any]]:
    """The JSON of each server-sent event up to ``[DONE]``."""
    for line in response.iter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data: "))


def _sampling(max_tokens: int | None, temperature: float, seed: int | None, stop: Sequence[str]) -> dict[str, Any]:
    # llama-cpp-python's server would punish repetition (1.1) where nothing is said.
    return {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "seed": seed,
        "stop": list(stop) or None,
        "repeat_penalty": 1.0,
    }


def _model_settings(model: Path, options: WorkerOptions, context: int) -> dict[str, Any]:
    """Fields of llama_cpp.server.settings.ModelSettings."""
    settings: dict[str, Any] = {
        "model": str(model),
        "n_ctx": context,
        "n_gpu_layers": 0 if options.device == "cpu" else -1,
        # The default keeps the logits of the whole context: 4 bytes x context x vocabulary.
        "logits_all": False,
        "use_mlock": False,
    }
    if options.threads is not None:
        settings |= {"n_threads": options.threads, "n_threads_batch": options.threads}
    if options.purpose == "embed":
        # A text is embedded in one piece, so it must fit into a batch.
        settings |= {"embedding": True, "n_batch": _EMBEDDING_BATCH, "n_ubatch": _EMBEDDING_BATCH}
    return settings


def machine_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def explain_refusal(name: str, message: str, child: Child) -> Exception:
    """Why llama.cpp did not load the model: the reason stands in its log."""
    child.close()  # which also reads the log to its end
    lines = child.last_lines
    log = "\n".join(lines)
    if found := _UNKNOWN_ARCHITECTURE.search(log):
        return UnknownArchitectureError(f"this llama.cpp does not know the architecture {found[1]!r} of {name}")
    if _NO_MEMORY.search(log) or "MemoryError" in message:
        return InsufficientMemoryError(f"not enough memory to load {name}")
    reasons = [line.split("error loading model: ", 1)[1] for line in lines if "error loading model: " in line]
    return WorkerError(f"llama.cpp refused to load {name}: {(reasons or [message])[0][:500]}")


def _refused(body: bytes) -> WorkerError:
    try:
        answer = json.loads(body)
        error = answer.get("error") or answer.get("detail")
        return WorkerError(str(error["message"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        return WorkerError(f"llama-cpp-python answered {body[:200]!r}")
