"""Gemma, Gemma 2 and Gemma 3 (text). Their norms' weights are stored as the distance from one, and output is tied."""

from dataclasses import replace

import gguf

from modelpack.convert.architectures.architecture import Architecture
from modelpack.convert.architectures.decoder import DECODER, HEAD_NORMS
from modelpack.convert.config import Config
from modelpack.convert.hyperparameters import (
    COMMON,
    Hyperparameter,
    block_count,
    context_length,
    embedding_length,
    feed_forward_length,
    file_type,
    fixed,
    head_count,
    head_count_kv,
    head_lengths,
    number,
    rms_epsilon,
    sliding_window,
)
from modelpack.convert.tensor import add_one
from modelpack.convert.tokenizer import byte_level_bpe, sentencepiece, sentencepiece_json
from modelpack.errors import UnsupportedError

_HYPERPARAMETERS = (
    context_length,
    embedding_length,
    block_count,
    feed_forward_length,
    head_count,
    head_count_kv,
    rms_epsilon,
    head_lengths,
    file_type,
)
_NORMS = ("attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm", "attn_q_norm", "attn_k_norm")
_ONE_ADDED = {
    name: lambda tensor, _config: add_one(tensor) for name in ("output_norm", *(f"blk.{{block}}.{n}" for n in _NORMS))
}


def _no_space_prefix(writer: gguf.GGUFWriter, _config: Config) -> None:
    """Said last, whatever the tokenizer's settings say first."""
    values = writer.kv_data[0]
    if values["tokenizer.ggml.model"].value == "llama":
        values.pop("tokenizer.ggml.add_space_prefix", None)
        writer.add_add_space_prefix(False)


GEMMA = Architecture(
    gguf_name="gemma",
    hf_names=("GemmaForCausalLM",),
    tensors={**DECODER, "lm_head": None},
    vocabularies=(sentencepiece, sentencepiece_json),
    hyperparameters=_HYPERPARAMETERS,
    defaults={
        "max_position_embeddings": 8192,
        "num_key_value_heads": 16,
        "head_dim": 256,
        "rms_norm_eps": 1e-6,
        "vocab_size": 256000,
    },
    operations=_ONE_ADDED,
    special_tokens=(fixed("eot_token_id", 107), _no_space_prefix),
)

_FOUR_NORMS = {
    "model.layers.{block}.post_attention_layernorm": "blk.{block}.post_attention_norm",
    "model.layers.{block}.pre_feedforward_layernorm": "blk.{block}.ffn_norm",
    "model.layers.{block}.post_feedforward_layernorm": "blk.{block}.post_ffw_norm",
}


def _scores_by(blocks: int) -> Hyperparameter:
    """``blocks`` is how many the one size has whose attention llama.cpp scales by the width over the heads."""

    def check(_writer: gguf.GGUFWriter, config: Config) -> None:
        wanted = config.find_number("query_pre_attn_scalar")
        taken = config.width // config.heads if config.blocks == blocks else config.head_length
        if wanted != taken:
            raise UnsupportedError(f"config.json's query_pre_attn_scalar is {wanted}; llama.cpp takes it for {taken}")

    return check


GEMMA2 = replace(
    GEMMA,
    gguf_name="gemma2",
    hf_names=("Gemma2ForCausalLM",),
    tensors={**GEMMA.tensors, **_FOUR_NORMS},
    hyperparameters=(
        *_HYPERPARAMETERS,
        _scores_by(46),
        number("attn_logit_softcapping", "attn_logit_softcapping"),
        number("final_logit_softcapping", "final_logit_softcapping"),
        sliding_window,
    ),
    defaults={
        **GEMMA.defaults,
        "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "sliding_window": 4096,
    },
    special_tokens=(_no_space_prefix,),
)


def _no_attention_cap(_writer: gguf.GGUFWriter, config: Config) -> None:
    if config.values.get("attn_logit_softcapping") is not None:
        raise UnsupportedError("config.json caps attention's logits, which llama.cpp's Gemma 3 cannot")


GEMMA3 = replace(
    GEMMA2,
    gguf_name="gemma3",
    hf_names=("Gemma3ForCausalLM",),
    tensors={**GEMMA2.tensors, **HEAD_NORMS},
    vocabularies=(sentencepiece, sentencepiece_json, byte_level_bpe),
    hyperparameters=(
        *COMMON,
        _no_attention_cap,
        _scores_by(62),
        number("final_logit_softcapping", "final_logit_softcapping"),
        sliding_window,
    ),
    defaults={
        "max_position_embeddings": 131072,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "rope_local_base_freq": 10000.0,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "vocab_size": 262208,
    },
)
