"""Llama, and Mistral, which is the same to llama.cpp."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import gguf
import numpy as np

from modelpack.convert.architectures.architecture import Architecture
from modelpack.convert.config import Config
from modelpack.convert.tensor import Tensor, constant, interleave_halves
from modelpack.convert.tokenizer import byte_level_bpe, sentencepiece, sentencepiece_json
from modelpack.errors import InvalidCheckpointError

# The names that most decoders with gated feed-forward blocks share.
DECODER_TENSORS: Mapping[str, str] = MappingProxyType(
    {
        "model.embed_tokens": "token_embd",
        "model.layers.{block}.input_layernorm": "blk.{block}.attn_norm",
        "model.layers.{block}.self_attn.q_proj": "blk.{block}.attn_q",
        "model.layers.{block}.self_attn.k_proj": "blk.{block}.attn_k",
        "model.layers.{block}.self_attn.v_proj": "blk.{block}.attn_v",
        "model.layers.{block}.self_attn.o_proj": "blk.{block}.attn_output",
        "model.layers.{block}.post_attention_layernorm": "blk.{block}.ffn_norm",
        "model.layers.{block}.mlp.gate_proj": "blk.{block}.ffn_gate",
        "model.layers.{block}.mlp.up_proj": "blk.{block}.ffn_up",
        "model.layers.{block}.mlp.down_proj": "blk.{block}.ffn_down",
        "model.norm": "output_norm",
        "lm_head": "output",
    }
)


def _add_hyperparameters(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_vocab_size(config.integer("vocab_size"))
    writer.add_rope_dimension_count(config.head_length)


def _add_special_tokens(writer: gguf.GGUFWriter, config: Config) -> None:
    """Two families are known by the size of their vocabulary alone."""
    size = config.integer("vocab_size")
    if size == 32016:  # Code Llama's instruct models
        writer.add_eot_token_id(32010)
    elif size == 49152:  # small Granite and SmolLM
        writer.add_add_bos_token(False)


def _complete(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """LlamaConfig derives these two from others."""
    heads, hidden = values.get("num_attention_heads"), values.get("hidden_size")
    derived = {"num_key_value_heads": heads}
    if type(heads) is int and type(hidden) is int and heads > 0:
        derived["head_dim"] = hidden // heads
    return {**derived, **{key: value for key, value in values.items() if value is not None}}


def rope_factors(config: Config) -> Iterable[tuple[str, Tensor]]:
    """Llama 3.1's way to longer contexts: low frequencies are divided by a factor, those between are blended.

    https://github.com/huggingface/transformers/blob/v4.57.6/src/transformers/modeling_rope_utils.py (llama3)
    """
    rope = config.rope
    if rope.kind != "llama3":
        return
    factor = rope.number("factor", 8.0)
    low, high = rope.number("low_freq_factor", 1.0), rope.number("high_freq_factor", 4.0)
    original = rope.number("original_max_position_embeddings", 8192)
    length, base = config.head_length, rope.theta or 10000.0
    if min(factor, low, original, base) <= 0 or high <= low:
        raise InvalidCheckpointError("config.json has impossible llama3 rope parameters")
    exponents = np.arange(0, length, 2, dtype=np.float64) / length
    wavelengths = (2 * math.pi / (1.0 / base**exponents).astype(np.float32)).astype(np.float32)
    blend = (np.float32(original) / wavelengths - np.float32(low)) / np.float32(high - low)
    blended = 1 / ((1 - blend) / np.float32(factor) + blend)
    factors = np.where(wavelengths < original / high, 1.0, np.where(wavelengths > original / low, factor, blended))
    yield "rope_freqs.weight", constant(factors)


LLAMA = Architecture(
    gguf_name="llama",
    hf_names=("LlamaForCausalLM",),
    tensors=DECODER_TENSORS,
    vocabularies=(sentencepiece, sentencepiece_json, byte_level_bpe),
    defaults={"max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "vocab_size": 32000},
    configure=_complete,
    operations={
        "blk.{block}.attn_q": lambda tensor, config: interleave_halves(tensor, config.heads),
        "blk.{block}.attn_k": lambda tensor, config: interleave_halves(tensor, config.key_value_heads),
    },
    add_hyperparameters=_add_hyperparameters,
    add_special_tokens=_add_special_tokens,
    extra_tensors=rope_factors,
)

MISTRAL = replace(
    LLAMA,
    hf_names=("MistralForCausalLM",),
    defaults={
        "max_position_embeddings": 4096 * 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "vocab_size": 32000,
    },
    configure=dict,
)
