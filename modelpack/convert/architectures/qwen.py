"""Qwen2 and Qwen3, with and without experts.

llama.cpp rotates their halves as the checkpoint does, so nothing happens to their tensors.
"""

from collections.abc import Mapping
from dataclasses import replace

from modelpack.convert.architectures.architecture import Architecture, Parts
from modelpack.convert.architectures.decoder import DECODER, EXPERTS, HEAD_NORMS
from modelpack.convert.hyperparameters import (
    COMMON,
    count,
    expert_feed_forward_length,
    expert_weights_are_normed,
    pooling,
)
from modelpack.convert.tensor import half
from modelpack.convert.tokenizer import byte_level_bpe, sentencepiece

QWEN2 = Architecture(
    gguf_name="qwen2",
    hf_names=("Qwen2ForCausalLM",),
    tensors=DECODER,
    vocabularies=(sentencepiece, byte_level_bpe),
    hyperparameters=(*COMMON, pooling),
    defaults={
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "vocab_size": 151936,
    },
)

QWEN3 = replace(
    QWEN2,
    gguf_name="qwen3",
    hf_names=("Qwen3ForCausalLM",),
    tensors={**DECODER, **HEAD_NORMS},
    defaults={**QWEN2.defaults, "head_dim": 128},
)

# Some layers may have no experts; transformers 5 saves those of the others fused.
_MIXED_FEED_FORWARD = tuple(
    f"blk.{{block}}.ffn_{name}{kind}" for kind in ("", "_exps", "_shexp") for name in ("gate", "up", "down", "gate_inp")
)
_FUSED_EXPERTS: Mapping[str, str | Parts] = {
    "model.layers.{block}.mlp.experts.gate_up_proj": (
        ("blk.{block}.ffn_gate_exps.weight", lambda tensor, _config: half(tensor, 0)),
        ("blk.{block}.ffn_up_exps.weight", lambda tensor, _config: half(tensor, 1)),
    ),
    "model.layers.{block}.mlp.experts.down_proj": "blk.{block}.ffn_down_exps.weight",
}

QWEN2_MOE = Architecture(
    gguf_name="qwen2moe",
    hf_names=("Qwen2MoeForCausalLM",),
    tensors={
        **DECODER,
        **EXPERTS,
        **_FUSED_EXPERTS,
        "model.layers.{block}.mlp.shared_expert.gate_proj": "blk.{block}.ffn_gate_shexp",
        "model.layers.{block}.mlp.shared_expert.up_proj": "blk.{block}.ffn_up_shexp",
        "model.layers.{block}.mlp.shared_expert.down_proj": "blk.{block}.ffn_down_shexp",
        "model.layers.{block}.mlp.shared_expert_gate": "blk.{block}.ffn_gate_inp_shexp",
    },
    vocabularies=(byte_level_bpe,),
    hyperparameters=(
        *COMMON,
        expert_feed_forward_length,
        count("expert_shared_feed_forward_length", "shared_expert_intermediate_size"),
        expert_weights_are_normed(False),
    ),
    optional=("output", *_MIXED_FEED_FORWARD),
    defaults={
        **QWEN2.defaults,
        "num_key_value_heads": 16,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
    },
)

QWEN3_MOE = replace(
    QWEN2_MOE,
    gguf_name="qwen3moe",
    hf_names=("Qwen3MoeForCausalLM",),
    tensors={**DECODER, **HEAD_NORMS, **EXPERTS, **_FUSED_EXPERTS},
    hyperparameters=(*COMMON, expert_feed_forward_length, expert_weights_are_normed(True)),
    defaults={
        **QWEN2.defaults,
        "num_key_value_heads": 4,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
    },
)
