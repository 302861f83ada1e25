"""Falcon. Its queries, keys and values lie group by group: the queries that share a key, the key, the value."""

from collections.abc import Mapping
from typing import Any

from modelpack.convert.architectures.architecture import Architecture
from modelpack.convert.config import Config
from modelpack.convert.hyperparameters import (
    block_count,
    count,
    embedding_length,
    file_type,
    fixed,
    four_times_the_width,
    head_count,
    norm_epsilon,
)
from modelpack.convert.tensor import Tensor, separate_groups
from modelpack.convert.tokenizer import byte_level_bpe


def _key_value_heads(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """With ``multi_query`` there is one, whatever num_kv_heads says; only the newer architecture counts them."""
    heads = values.get("num_attention_heads") or values.get("n_head")
    if not values.get("new_decoder_architecture"):
        groups = 1 if values.get("multi_query", True) else heads
    else:
        groups = values.get("num_kv_heads") or values.get("n_head_kv") or heads
    return {**values, "num_key_value_heads": groups}


def _separate(tensor: Tensor, config: Config) -> Tensor:
    groups = config.key_value_heads
    return separate_groups(tensor, groups, (config.heads // groups, 1, 1))


FALCON = Architecture(
    gguf_name="falcon",
    hf_names=("FalconForCausalLM", "RWForCausalLM"),
    tensors={
        "transformer.word_embeddings": "token_embd",
        "transformer.h.{block}.input_layernorm": "blk.{block}.attn_norm",
        "transformer.h.{block}.ln_mlp": "blk.{block}.attn_norm",
        "transformer.h.{block}.ln_attn": "blk.{block}.attn_norm_2",
        "transformer.h.{block}.self_attention.query_key_value": "blk.{block}.attn_qkv",
        "transformer.h.{block}.self_attention.dense": "blk.{block}.attn_output",
        "transformer.h.{block}.mlp.dense_h_to_4h": "blk.{block}.ffn_up",
        "transformer.h.{block}.mlp.dense_4h_to_h": "blk.{block}.ffn_down",
        "transformer.ln_f": "output_norm",
        "lm_head": "output",
    },
    vocabularies=(byte_level_bpe,),
    hyperparameters=(
        fixed("context_length", 2048),
        fixed("tensor_data_layout", "jploski"),
        embedding_length,
        four_times_the_width,
        block_count,
        head_count,
        count("head_count_kv", "num_key_value_heads"),
        norm_epsilon,
        file_type,
    ),
    defaults={"layer_norm_epsilon": 1e-5, "vocab_size": 65024},
    configure=_key_value_heads,
    operations={"blk.{block}.attn_qkv": _separate},
)
