"""The child process: loads one model and serves llama-cpp-python's OpenAI server on a unix domain socket.

Started as ``python -m modelpack.engine.child`` by ``engine.worker`` and by nobody else. It reads its configuration as
one line of JSON from stdin, tells "ready" or "failed" with its facts as one line of JSON on stdout, logs to stderr, and
ends as soon as stdin closes, which happens however the parent dies.
"""

import ctypes
import json
import socket
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from modelpack.engine.client import CANCEL
from modelpack.engine.entry import enter, take_log


def main() -> None:
    configuration, channel, isolated = enter()
    directory = Path(configuration["directory"])
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(directory / "s"))
    listener.listen()
    try:
        app, facts = _load(configuration)
    except Exception as error:
        channel.write(json.dumps({"event": "failed", "message": str(error) or type(error).__name__}) + "\n")
        raise
    channel.write(json.dumps({"event": "ready", "isolated": isolated, **facts}) + "\n")

    import uvicorn

    uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off")).run(sockets=[listener])


def _load(configuration: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The ASGI app over the loaded model, and the facts that the parent wants to know."""
    # Untyped on purpose: its annotations do not fit what it is used for here.
    llama_cpp: Any = import_module("llama_cpp")
    messages = take_log(llama_cpp)
    llama_cpp.Llama = _served_llama(
        llama_cpp, mean_pooling=configuration["mean_pooling"]
    )  # what its server instantiates
    server: Any = import_module("llama_cpp.server.app")
    settings: Any = import_module("llama_cpp.server.settings")

    started = time.monotonic()
    # interrupt_requests would cancel a running answer as soon as another request arrives.
    app = server.create_app(
        server_settings=settings.ServerSettings(interrupt_requests=False),
        model_settings=[settings.ModelSettings(**configuration["model_settings"])],
    )
    load_seconds = time.monotonic() - started
    llama = server._llama_proxy()
    app.add_api_route(CANCEL, llama.cancel, methods=["POST"])
    commit = import_module("llama_cpp._ggml").libggml.ggml_commit
    commit.restype = ctypes.c_char_p
    facts = {
        "load_seconds": load_seconds,
        "log": "".join(messages),
        "llama_cpp": f"llama-cpp-python {llama_cpp.__version__}, llama.cpp {commit().decode()}",
        "system_info": llama_cpp.llama_print_system_info().decode(),
        "gpu_supported": bool(llama_cpp.llama_supports_gpu_offload()),
        "layers": llama_cpp.llama_model_n_layer(llama.model) + 1,
        "context": llama.n_ctx(),
        "has_chat_template": llama.has_chat_template(),
        "parameters": {
            "/v1/chat/completions": sorted(server.CreateChatCompletionRequest.model_fields),
            "/v1/completions": sorted(server.CreateCompletionRequest.model_fields),
            "/v1/embeddings": sorted(server.CreateEmbeddingRequest.model_fields),
        },
    }
    return app, facts


def _served_llama(llama_cpp: Any, *, mean_pooling: bool) -> Any:
    """The Llama class that the server gets: it reports usage and errors where llama-cpp-python keeps silent."""
    from fastapi import HTTPException
    from jinja2 import TemplateError

    def describe(error: Exception) -> tuple[int, dict[str, Any]]:
        """Status and OpenAI error of what llama-cpp-python raised."""
        if isinstance(error, ValueError | TemplateError):
            code = "context_length_exceeded" if "exceed context window" in str(error) else None
            return 400, {"message": str(error), "type": "invalid_request_error", "param": None, "code": code}
        message = str(error) or type(error).__name__
        return 500, {"message": message, "type": "server_error", "param": None, "code": None}

    class ServedLlama(llama_cpp.Llama):  # type: ignore[misc]  # llama_cpp is Any here
        prompt_tokens = 0
        completion_tokens = 0
        generation_seconds = 0.0  # from the first token to the last one, the prompt not counted
        is_cancelled = False

        def __init__(self, *arguments: Any, **options: Any) -> None:
            # The server has no setting for it.
            pooling = llama_cpp.LLAMA_POOLING_TYPE_MEAN if mean_pooling else llama_cpp.LLAMA_POOLING_TYPE_UNSPECIFIED
            super().__init__(*arguments, **options, pooling_type=pooling)

        def has_chat_template(self) -> bool:
            return "tokenizer.chat_template" in self.metadata

        def __call__(self, *arguments: Any, **options: Any) -> Any:
            return self._answer(super().__call__, arguments, options)

        def create_chat_completion(self, *arguments: Any, **options: Any) -> Any:
            return self._answer(self._chat, arguments, options)

        def _chat(self, *arguments: Any, **options: Any) -> Any:
            if not self.has_chat_template():
                # llama-cpp-python would fall back to the template of Llama 2.
                raise ValueError("the model has no chat template")
            return super().create_chat_completion(*arguments, **options)

        def _answer(self, method: Callable[..., Any], arguments: Any, options: Any) -> Any:
            self.prompt_tokens = self.completion_tokens = 0
            self.generation_seconds = 0.0
            self.is_cancelled = False
            if options.get("stream"):
                return self._stream(method, arguments, options)
            try:
                return method(*arguments, **options)
            except (ValueError, TemplateError) as error:
                raise HTTPException(*describe(error)) from error

        def _stream(self, method: Callable[..., Any], arguments: Any, options: Any) -> Iterator[Any]:
            """The chunks, then one with the usage. An error becomes a last chunk; the server would swallow it."""
            chunk: dict[str, Any] = {}
            try:
                for chunk in method(*arguments, **options):
                    yield chunk
            except Exception as error:
                status, description = describe(error)
                yield {"error": {**description, "status": status}}
                return
            used = (self.prompt_tokens, self.completion_tokens)
            usage = dict(zip(("prompt_tokens", "completion_tokens", "total_tokens"), (*used, sum(used)), strict=True))
            # As llama.cpp's own server spells it. Clients cannot measure it: chunks reach them in bursts.
            timings = {"predicted_n": self.completion_tokens, "predicted_ms": 1000 * self.generation_seconds}
            yield {**chunk, "choices": [], "usage": usage, "timings": timings}

        async def cancel(self) -> None:
            """End the running answer at its next token, as if it had reached its limit."""
            self.is_cancelled = True

        def generate(self, tokens: Any, *arguments: Any, **options: Any) -> Iterator[int]:
            self.prompt_tokens = len(tokens)
            first: float | None = None
            for token in super().generate(tokens, *arguments, **options):
                if self.is_cancelled:
                    return
                now = time.monotonic()
                first = first or now
                self.generation_seconds = now - first
                self.completion_tokens += not llama_cpp.llama_vocab_is_eog(self._model.vocab, token)
                yield token

        def embed(self, input: Any, *_: Any, return_count: bool = False, **__: Any) -> Any:  # noqa: A002
            """Vectors of length 1. A text beyond the batch is an error; llama-cpp-python would cut it silently."""
            try:
                vectors, count = super().embed(input, normalize=True, truncate=False, return_count=True)
            except ValueError as error:
                raise HTTPException(*describe(error)) from error
            return (vectors, count) if return_count else vectors

    return ServedLlama


if __name__ == "__main__":
    main()
