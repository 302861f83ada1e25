"""Llama and what is nearly the same to llama.cpp: Mistral, Mixtral and SmolLM3."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import gguf
import numpy as np

from modelpack.convert.architectures.architecture import Architecture
from modelpack.convert.architectures.decoder import ATTENTION, DECODER
from modelpack.convert.config import Config
from modelpack.convert.hyperparameters import COMMON, vocabulary_size
from modelpack.convert.tensor import Tensor, constant, interleave_halves
from modelpack.convert.tokenizer import byte_level_bpe, sentencepiece, sentencepiece_json
from modelpack.convert.unigram import unigram_of_decoder
from modelpack.errors import InvalidCheckpointError


def _whole_head_is_rotated(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_rope_dimension_count(config.head_length)


def _known_by_size(writer: gguf.GGUFWriter, config: Config) -> None:
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
    tensors=DECODER,
    vocabularies=(sentencepiece, sentencepiece_json, byte_level_bpe, unigram_of_decoder),
    hyperparameters=(*COMMON, vocabulary_size, _whole_head_is_rotated),
    defaults={"max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "vocab_size": 32000},
    configure=_complete,
    # llama.cpp rotates neighbours where the checkpoint rotates halves.
    operations={
        "blk.{block}.attn_q": lambda tensor, config: interleave_halves(tensor, config.heads),
        "blk.{block}.attn_k": lambda tensor, config: interleave_halves(tensor, config.key_value_heads),
    },
    special_tokens=(_known_by_size,),
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

MIXTRAL = replace(
    MISTRAL,
    hf_names=("MixtralForCausalLM",),
    tensors={
        **ATTENTION,
        "model.layers.{block}.block_sparse_moe.gate": "blk.{block}.ffn_gate_inp",
        "model.layers.{block}.block_sparse_moe.experts.{expert}.w1": "blk.{block}.ffn_gate_exps",
        "model.layers.{block}.block_sparse_moe.experts.{expert}.w2": "blk.{block}.ffn_down_exps",
        "model.layers.{block}.block_sparse_moe.experts.{expert}.w3": "blk.{block}.ffn_up_exps",
    },
    defaults={
        **MISTRAL.defaults,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
)

# Which of its layers rotate nothing is built into llama.cpp.
SMOLLM3 = replace(
    LLAMA,
    gguf_name="smollm3",
    hf_names=("SmolLM3ForCausalLM",),
    defaults={
        "max_position_embeddings": 32768,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "rope_theta": 2e6,
        "vocab_size": 128256,
    },
    configure=dict,
)
