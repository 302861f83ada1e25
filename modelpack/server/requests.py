"""What of an OpenAI request llama-cpp-python gets to see: nothing is dropped or changed in silence."""

import re
from typing import Any

from modelpack.server.errors import RequestRefusedError

_HEADER_SAFE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_HANDLED_HERE = {"stream_options", "encoding_format", "max_completion_tokens"}


def prepare(body: dict[str, Any], known: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The request for the worker, and the names of fields that it does not know and that have no effect.

    ``known`` are the fields that llama-cpp-python reads at this endpoint. Raises RequestRefusedError for what it
    reads and then ignores.
    """
    for name in ("n", "best_of"):
        if body.get(name) not in (None, 1):
            raise RequestRefusedError(400, f"{name} must be 1: there is one answer per request", param=name)
    if body.get("grammar") is not None:
        # llama.cpp's parser of grammars dies of malformed ones, "((((" for example.
        raise RequestRefusedError(400, "grammar is not available; response_format takes a schema", param="grammar")
    if body.get("logprobs") or body.get("top_logprobs"):
        raise RequestRefusedError(400, "log-probabilities are not available", param="logprobs")
    if isinstance(body.get("prompt"), list) and len(body["prompt"]) != 1:
        raise RequestRefusedError(400, "one prompt per request", param="prompt")
    if body.get("encoding_format") not in (None, "float", "base64"):
        raise RequestRefusedError(400, "encoding_format is float or base64", param="encoding_format")
    forwarded = {name: value for name, value in body.items() if name in known}
    ignored = [name for name in body if name not in known and name not in _HANDLED_HERE]
    if "max_completion_tokens" in body and "max_tokens" in known:
        forwarded["max_tokens"] = body["max_completion_tokens"]
    if "repeat_penalty" in known:
        # The OpenAI API punishes no repetition unless asked to; llama-cpp-python's server does (1.1).
        forwarded.setdefault("repeat_penalty", 1.0)
    return forwarded, [name for name in ignored if _HEADER_SAFE.fullmatch(name)][:20]


def wants_usage(body: dict[str, Any]) -> bool:
    """True if a streamed answer should end with the token counts."""
    options = body.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True
