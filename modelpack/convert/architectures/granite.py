"""Granite: Llama with four multipliers, and its models with experts, which store gates and ups as one tensor."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from modelpack.convert.architectures.architecture import Architecture, Parts
from modelpack.convert.architectures.decoder import ATTENTION, as_many_keys_as_heads
from modelpack.convert.architectures.llama import LLAMA
from modelpack.convert.hyperparameters import count, number
from modelpack.convert.tensor import half


def _configure(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Its head_dim is not used by transformers either."""
    return {key: value for key, value in as_many_keys_as_heads(values).items() if key != "head_dim"}


GRANITE = replace(
    LLAMA,
    gguf_name="granite",
    hf_names=("GraniteForCausalLM",),
    hyperparameters=(
        *LLAMA.hyperparameters,
        number("attention_scale", "attention_multiplier"),
        number("embedding_scale", "embedding_multiplier"),
        number("residual_scale", "residual_multiplier"),
        number("logit_scale", "logits_scaling"),
    ),
    defaults={
        **LLAMA.defaults,
        "attention_multiplier": 1.0,
        "embedding_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "logits_scaling": 1.0,
    },
    configure=_configure,
)


def _gate_and_up(kind: str) -> Parts:
    return (
        (f"blk.{{block}}.ffn_gate_{kind}.weight", lambda tensor, _config: half(tensor, 0)),
        (f"blk.{{block}}.ffn_up_{kind}.weight", lambda tensor, _config: half(tensor, 1)),
    )


GRANITE_MOE: Architecture = replace(
    GRANITE,
    gguf_name="granitemoe",
    hf_names=("GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM"),
    tensors={
        **ATTENTION,
        "model.layers.{block}.block_sparse_moe.router.layer": "blk.{block}.ffn_gate_inp",
        "model.layers.{block}.block_sparse_moe.input_linear.weight": _gate_and_up("exps"),
        "model.layers.{block}.block_sparse_moe.output_linear": "blk.{block}.ffn_down_exps",
        "model.layers.{block}.shared_mlp.input_linear.weight": _gate_and_up("shexp"),
        "model.layers.{block}.shared_mlp.output_linear": "blk.{block}.ffn_down_shexp",
    },
    hyperparameters=(
        *GRANITE.hyperparameters,
        count("expert_shared_feed_forward_length", "shared_intermediate_size"),
    ),
    defaults={**GRANITE.defaults, "num_local_experts": 8, "num_experts_per_tok": 2},
)
