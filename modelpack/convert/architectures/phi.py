"""Phi 1, 1.5 and 2 (one architecture), and Phi 3 with the small Phi 4 that share it."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import gguf
import numpy as np

from modelpack.convert.architectures.architecture import Architecture
from modelpack.convert.architectures.decoder import as_many_keys_as_heads
from modelpack.convert.config import Config, as_number
from modelpack.convert.hyperparameters import (
    block_count,
    context_length,
    embedding_length,
    feed_forward_length,
    file_type,
    fixed,
    head_count,
    head_count_kv,
    norm_epsilon,
    rms_epsilon,
    rope_base,
)
from modelpack.convert.tensor import Tensor, constant
from modelpack.convert.tokenizer import byte_level_bpe, sentencepiece, sentencepiece_json
from modelpack.errors import InvalidCheckpointError


def _rotated(config: Config) -> int:
    return int(config.rotated_share * config.width) // config.heads


def _rotated_length(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_rope_dimension_count(_rotated(config))


PHI2 = Architecture(
    gguf_name="phi2",
    hf_names=("PhiForCausalLM",),
    tensors={
        "model.embed_tokens": "token_embd",
        "model.layers.{block}.input_layernorm": "blk.{block}.attn_norm",
        "model.layers.{block}.self_attn.q_proj": "blk.{block}.attn_q",
        "model.layers.{block}.self_attn.k_proj": "blk.{block}.attn_k",
        "model.layers.{block}.self_attn.v_proj": "blk.{block}.attn_v",
        "model.layers.{block}.self_attn.dense": "blk.{block}.attn_output",
        "model.layers.{block}.mlp.fc1": "blk.{block}.ffn_up",
        "model.layers.{block}.mlp.fc2": "blk.{block}.ffn_down",
        "model.final_layernorm": "output_norm",
        "lm_head": "output",
    },
    vocabularies=(byte_level_bpe,),
    hyperparameters=(
        context_length,
        embedding_length,
        feed_forward_length,
        block_count,
        head_count,
        head_count_kv,
        norm_epsilon,
        _rotated_length,
        file_type,
        fixed("add_bos_token", False),
    ),
    defaults={
        "max_position_embeddings": 2048,
        "layer_norm_eps": 1e-5,
        "partial_rotary_factor": 0.5,
        "vocab_size": 51200,
    },
    configure=as_many_keys_as_heads,
)


def _original_context(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_rope_scaling_orig_ctx_len(_original_length(config))


def _original_length(config: Config) -> int:
    stored = config.rope.find_number("original_max_position_embeddings")
    return int(stored) if stored is not None else config.integer("original_max_position_embeddings")


def _sliding_window(writer: gguf.GGUFWriter, config: Config) -> None:
    # 0 tells llama.cpp that this is a Phi 4.
    writer.add_sliding_window(config.count("sliding_window"))


def _factors(config: Config, which: str) -> list[float]:
    values = config.rope.values.get(f"{which}_factor") or []
    expected = _rotated(config) // 2
    if not isinstance(values, list) or len(values) not in (0, expected):
        raise InvalidCheckpointError(f"config.json has no {expected} numbers for rope_parameters.{which}_factor")
    return [as_number(value, f"rope_parameters.{which}_factor") for value in values]


def _long_attention(writer: gguf.GGUFWriter, config: Config) -> None:
    """How much attention is sharpened over a longer context.

    https://github.com/huggingface/transformers/blob/v4.57.6/src/transformers/modeling_rope_utils.py (longrope, yarn)
    """
    if not _factors(config, "long"):
        return
    original = _original_length(config)
    scale = config.integer("n_positions", "max_position_embeddings") / original
    if config.rope.kind in ("su", "longrope"):
        factor = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
    elif config.rope.kind == "yarn":
        factor = 0.1 * math.log(scale) + 1.0 if scale > 1 else 1.0
    else:
        raise InvalidCheckpointError(f"config.json has {config.rope.kind!r:.50} for rope_parameters.rope_type")
    writer.add_rope_scaling_attn_factors(factor)


def _rope_factors(config: Config) -> Iterable[tuple[str, Tensor]]:
    long, short = _factors(config, "long"), _factors(config, "short")
    if bool(long) != bool(short):
        raise InvalidCheckpointError("config.json has only one of long_factor and short_factor")
    if long:
        yield "rope_factors_long.weight", constant(np.array(long))
        yield "rope_factors_short.weight", constant(np.array(short))


def _complete(values: Mapping[str, Any]) -> Mapping[str, Any]:
    values = as_many_keys_as_heads(values)
    if values.get("original_max_position_embeddings") is None:
        return {**values, "original_max_position_embeddings": 4096}
    return values


PHI3 = Architecture(
    gguf_name="phi3",
    hf_names=("Phi3ForCausalLM",),
    tensors={
        "model.embed_tokens": "token_embd",
        "model.layers.{block}.input_layernorm": "blk.{block}.attn_norm",
        "model.layers.{block}.self_attn.qkv_proj": "blk.{block}.attn_qkv",
        "model.layers.{block}.self_attn.o_proj": "blk.{block}.attn_output",
        "model.layers.{block}.post_attention_layernorm": "blk.{block}.ffn_norm",
        "model.layers.{block}.mlp.gate_up_proj": "blk.{block}.ffn_up",
        "model.layers.{block}.mlp.down_proj": "blk.{block}.ffn_down",
        "model.norm": "output_norm",
        "lm_head": "output",
    },
    vocabularies=(sentencepiece, sentencepiece_json, byte_level_bpe),
    hyperparameters=(
        context_length,
        _original_context,
        embedding_length,
        feed_forward_length,
        block_count,
        head_count,
        head_count_kv,
        rms_epsilon,
        _rotated_length,
        rope_base,
        file_type,
        _sliding_window,
        _long_attention,
    ),
    defaults={
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "partial_rotary_factor": 1.0,
        "vocab_size": 32064,
    },
    configure=_complete,
    extra_tensors=_rope_factors,
)
