"""A model run over a text, chunk by chunk, inside a child: what an importance matrix and a comparison have in common.

The low-level API of llama_cpp, because both need every position's outputs, or what flows through the graph.
"""

import os
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from modelpack.engine.task import Unfit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DEFAULT_CONTEXT = 512
"""Tokens in a chunk, as in llama.cpp's own tools: their numbers depend on it."""


class Inference:
    """A loaded model with a context for one chunk. Lives as long as its process."""

    def __init__(
        self, model: str, *, context: int | None, threads: int | None, on_gpu: bool, callback: object = None
    ) -> None:
        """``callback`` is a ``cb_eval`` of ggml's scheduler."""
        self._llama: Any = import_module("llama_cpp")
        self._llama.llama_backend_init()
        options = self._llama.llama_model_default_params()
        options.n_gpu_layers = -1 if on_gpu else 0
        self._model = self._llama.llama_model_load_from_file(os.fsencode(model), options)
        if not self._model:
            raise RuntimeError("the model cannot be loaded")
        self._vocabulary = self._llama.llama_model_get_vocab(self._model)
        self.vocabulary_size: int = self._llama.llama_vocab_n_tokens(self._vocabulary)
        trained: int = self._llama.llama_model_n_ctx_train(self._model)
        self.context = context or min(DEFAULT_CONTEXT, trained)
        self._context = self._make_context(threads, callback)
        self._batch = self._llama.llama_batch_init(self.context, 0, 1)

    def _make_context(self, threads: int | None, callback: object) -> Any:
        options = self._llama.llama_context_default_params()
        options.n_ctx = options.n_batch = self.context
        # As llama-cpp-python does: half of the processors, since most are two threads of one core.
        options.n_threads = options.n_threads_batch = threads or max((os.cpu_count() or 1) // 2, 1)
        if callback is not None:
            options.cb_eval = callback
        context = self._llama.llama_init_from_model(self._model, options)
        if not context:
            raise RuntimeError("no context can be made: not enough memory?")
        return context

    def tokenize(self, text: str) -> list[int]:
        """Token ids, with the tokens that the model wants around a text and without reading markup as special."""
        content = text.encode()
        room = len(content) + 8
        tokens = (self._llama.llama_token * room)()
        count = self._llama.llama_tokenize(self._vocabulary, content, len(content), tokens, room, True, False)
        return list(tokens[:count])

    def chunks(self, tokens: Sequence[int], limit: int | None = None) -> list[Sequence[int]]:
        """Whole chunks of ``context`` tokens; what is left over at the end is dropped. Raises Unfit for too few."""
        if len(tokens) < 2 * self.context:
            raise Unfit(
                f"the text has {len(tokens)} tokens in this model; a context of {self.context} needs {2 * self.context}"
            )
        starts = range(0, len(tokens) - self.context + 1, self.context)
        return [tokens[start : start + self.context] for start in starts][:limit]

    def run(self, chunk: Sequence[int], *, outputs_from: int = 0) -> "NDArray[np.float32]":
        """Logits, shape (positions from ``outputs_from`` on, vocabulary); gone with the next call.

        Each chunk stands for itself, so its first token becomes the one that begins a text, if the model has it.
        """
        import numpy as np

        llama, batch = self._llama, self._batch
        llama.llama_memory_clear(llama.llama_get_memory(self._context), True)
        batch.n_tokens = len(chunk)
        for position, token in enumerate(self._with_beginning(chunk)):
            batch.token[position] = token
            batch.pos[position] = position
            batch.n_seq_id[position] = 1
            batch.seq_id[position][0] = 0
            batch.logits[position] = position >= outputs_from
        if status := llama.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode gave {status}")
        logits = llama.llama_get_logits(self._context)
        return np.ctypeslib.as_array(logits, (len(chunk) - outputs_from, self.vocabulary_size))

    def _with_beginning(self, chunk: Sequence[int]) -> Iterator[int]:
        first = chunk[0]
        if self._llama.llama_vocab_get_add_bos(self._vocabulary):
            first = self._llama.llama_vocab_bos(self._vocabulary)
        yield first
        yield from chunk[1:]
