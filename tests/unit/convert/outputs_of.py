"""Runs in a process of its own: what llama.cpp computes for a few tokens with each of several GGUF files.

Reads one JSON object from stdin: ``tokens``, and ``models``, each with its ``path`` and whether it ``embeds``. Writes a
list with, for each model, a row of outputs for each token.
"""

import json
import sys

import llama_cpp
import numpy as np


def outputs(path: str, tokens: list[int], *, embeds: bool) -> list[list[float]]:
    model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
    if not model:
        raise SystemExit(f"llama.cpp cannot load {path}")
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = 64
    settings.n_threads = settings.n_threads_batch = 1
    settings.embeddings = embeds
    settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    settings.type_k = settings.type_v = 0  # F32
    if embeds:
        settings.pooling_type = llama_cpp.LLAMA_POOLING_TYPE_NONE
    context = llama_cpp.llama_init_from_model(model, settings)
    batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for place, token in enumerate(tokens):
        batch.token[place], batch.pos[place], batch.logits[place] = token, place, 1
        batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
    has_decoder = llama_cpp.llama_model_has_decoder(model)
    run = llama_cpp.llama_decode if has_decoder else llama_cpp.llama_encode
    if run(context, batch):
        raise SystemExit(f"llama.cpp cannot run {path}")
    if embeds:
        width, read = llama_cpp.llama_model_n_embd(model), llama_cpp.llama_get_embeddings_ith
    else:
        width = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        read = llama_cpp.llama_get_logits_ith
    rows = [
        np.ctypeslib.as_array(read(context, place), (width,)).astype(float).tolist() for place in range(len(tokens))
    ]
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return rows


@llama_cpp.llama_log_callback
def silent(_level: int, _text: bytes, _data: object) -> None: ...


if __name__ == "__main__":
    job = json.load(sys.stdin)
    llama_cpp.llama_log_set(silent, None)
    result = [outputs(model["path"], job["tokens"], embeds=model["embeds"]) for model in job["models"]]
    json.dump(result, sys.stdout)
