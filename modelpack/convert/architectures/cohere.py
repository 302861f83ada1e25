"""Cohere's Command R and Command R7B (Cohere 2). Attention and feed-forward share one norm."""

from collections.abc import Mapping
from typing import Any

from modelpack.convert.architectures.architecture import Architecture
from modelpack.convert.architectures.decoder import DECODER, HEAD_NORMS, as_many_keys_as_heads
from modelpack.convert.hyperparameters import (
    COMMON,
    no_rope_scaling,
    number,
    rotated_length,
    sliding_window,
    vocabulary_size,
)
from modelpack.convert.tokenizer import byte_level_bpe

_TENSORS = {name: target for name, target in DECODER.items() if "post_attention" not in name}
_DEFAULTS = {
    "max_position_embeddings": 8192,
    "layer_norm_eps": 1e-5,
    "logit_scale": 0.0625,
    "rope_theta": 10000.0,
    "vocab_size": 256000,
}


def _trained_context(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Command R was trained on longer texts than max_position_embeddings says."""
    values = as_many_keys_as_heads(values)
    length = values.get("model_max_length")
    return values if length is None else {**values, "max_position_embeddings": length}


COHERE = Architecture(
    gguf_name="command-r",
    hf_names=("CohereForCausalLM",),
    tensors={**_TENSORS, **HEAD_NORMS},
    vocabularies=(byte_level_bpe,),
    hyperparameters=(*COMMON, number("logit_scale", "logit_scale"), no_rope_scaling),
    optional=("output", "blk.{block}.attn_q_norm", "blk.{block}.attn_k_norm"),
    defaults=_DEFAULTS,
    configure=_trained_context,
)


def _head_length(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Cohere2Config always derives it."""
    values = as_many_keys_as_heads(values)
    heads, width = values.get("num_attention_heads"), values.get("hidden_size")
    if type(heads) is int and type(width) is int and heads > 0:
        return {**values, "head_dim": width // heads}
    return values


COHERE2 = Architecture(
    gguf_name="cohere2",
    hf_names=("Cohere2ForCausalLM",),
    tensors=_TENSORS,
    vocabularies=(byte_level_bpe,),
    hyperparameters=(
        *COMMON,
        number("logit_scale", "logit_scale"),
        sliding_window,
        vocabulary_size,
        rotated_length,
        no_rope_scaling,
    ),
    defaults={**_DEFAULTS, "sliding_window": 4096, "rotary_pct": 1.0},
    configure=_head_length,
)
