"""What token ids llama.cpp makes of texts, and whether it takes a GGUF file at all, asked in a child process.

No weights are read.
"""

import ctypes
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from modelpack.engine.entry import enter, take_log
from modelpack.engine.process import Child
from modelpack.engine.worker import explain_refusal
from modelpack.errors import InsufficientMemoryError
from modelpack.llama_library import load_llama

MEMORY_LIMIT = 4 << 30
"""Bytes that llama.cpp may own; half a GiB was enough for two million tokens."""
_TIMEOUT = 120.0
_LOAD_MODE_NONE = 0  # of enum llama_load_mode in llama.h


def tokenize(
    path: Path,
    texts: Sequence[str],
    *,
    has_tensors: bool = False,
    name: str | None = None,
    memory_limit: int = MEMORY_LIMIT,
) -> list[list[int]]:
    """The ids of each text, special tokens not added, but taken for such where the text has them.

    ``has_tensors`` is for a file that is to be a model and not a vocabulary alone: llama.cpp has to know its
    architecture, and each tensor has to be there in the right shape. ``name`` is what errors call it.

    Raises WorkerError, UnknownArchitectureError where llama.cpp refuses to load it, InsufficientMemoryError where it
    wants more than ``memory_limit`` bytes, WorkerCrashedError and WorkerTimeoutError.
    """
    name = name or path.name
    doing = f"tokenizing with {name}"
    order = {"path": str(path.absolute()), "texts": list(texts), "has_tensors": has_tensors}
    child = Child(__name__, {"memory_limit": memory_limit, **order})
    deadline = time.monotonic() + _TIMEOUT
    answer: list[list[int]] = []
    try:
        while (event := child.wait_for_event(max(deadline - time.monotonic(), 0.0), doing))["event"] == "tokenized":
            answer.append(event["ids"])
        if event["event"] == "failed":
            raise explain_refusal(name, event["message"], child)
    except InsufficientMemoryError as error:
        raise InsufficientMemoryError(
            f"llama.cpp needs more than {memory_limit / 2**30:.1f} GiB of memory for the vocabulary of {name}"
        ) from error
    finally:
        child.close()
    return answer


def main() -> None:
    configuration, channel, _ = enter()
    try:
        for ids in _tokenize(configuration):
            channel.write(json.dumps({"event": "tokenized", "ids": ids}) + "\n")
        channel.write(json.dumps({"event": "done"}) + "\n")
    except Exception as error:
        channel.write(json.dumps({"event": "failed", "message": str(error) or type(error).__name__}) + "\n")
        raise


def _tokenize(configuration: dict[str, Any]) -> Iterator[list[int]]:
    llama_cpp = load_llama()
    take_log(llama_cpp)
    settings = llama_cpp.llama_model_default_params()
    settings.vocab_only = not configuration["has_tensors"]
    # All but the weights: as llama.cpp itself does it to find out what fits into memory.
    settings.no_alloc, settings.load_mode, settings.n_gpu_layers = True, _LOAD_MODE_NONE, 0
    model = llama_cpp.llama_model_load_from_file(os.fsencode(configuration["path"]), settings)
    if not model:
        raise RuntimeError("it is not loaded")
    vocabulary = llama_cpp.llama_model_get_vocab(model)
    for text in configuration["texts"]:
        content = text.encode("utf-8")
        size = len(content) + 16
        ids = (ctypes.c_int32 * size)()
        count = llama_cpp.llama_tokenize(vocabulary, content, len(content), ids, size, False, True)
        if count < 0:
            raise RuntimeError(f"{-count} tokens for a text of {len(content)} bytes")
        yield list(ids[:count])


if __name__ == "__main__":
    main()
