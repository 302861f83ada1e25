"""What most decoders share: the names of their tensors, and what transformers derives from other values."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

ATTENTION: Mapping[str, str] = MappingProxyType(
    {
        "model.embed_tokens": "token_embd",
        "model.layers.{block}.input_layernorm": "blk.{block}.attn_norm",
        "model.layers.{block}.self_attn.q_proj": "blk.{block}.attn_q",
        "model.layers.{block}.self_attn.k_proj": "blk.{block}.attn_k",
        "model.layers.{block}.self_attn.v_proj": "blk.{block}.attn_v",
        "model.layers.{block}.self_attn.o_proj": "blk.{block}.attn_output",
        "model.layers.{block}.post_attention_layernorm": "blk.{block}.ffn_norm",
        "model.norm": "output_norm",
        "lm_head": "output",
    }
)
GATED_FEED_FORWARD: Mapping[str, str] = MappingProxyType(
    {
        "model.layers.{block}.mlp.gate_proj": "blk.{block}.ffn_gate",
        "model.layers.{block}.mlp.up_proj": "blk.{block}.ffn_up",
        "model.layers.{block}.mlp.down_proj": "blk.{block}.ffn_down",
    }
)
DECODER: Mapping[str, str] = MappingProxyType({**ATTENTION, **GATED_FEED_FORWARD})
HEAD_NORMS: Mapping[str, str] = MappingProxyType(
    {
        "model.layers.{block}.self_attn.q_norm": "blk.{block}.attn_q_norm",
        "model.layers.{block}.self_attn.k_norm": "blk.{block}.attn_k_norm",
    }
)
EXPERTS: Mapping[str, str] = MappingProxyType(
    {
        "model.layers.{block}.mlp.gate": "blk.{block}.ffn_gate_inp",
        "model.layers.{block}.mlp.experts.{expert}.gate_proj": "blk.{block}.ffn_gate_exps",
        "model.layers.{block}.mlp.experts.{expert}.up_proj": "blk.{block}.ffn_up_exps",
        "model.layers.{block}.mlp.experts.{expert}.down_proj": "blk.{block}.ffn_down_exps",
    }
)


def as_many_keys_as_heads(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Where config.json does not count key and value heads, there are as many as heads."""
    if values.get("num_key_value_heads") is None:
        return {**values, "num_key_value_heads": values.get("num_attention_heads")}
    return values
