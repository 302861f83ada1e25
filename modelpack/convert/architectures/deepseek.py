"""DeepSeek V2 and V3: experts, and attention over a compressed cache (MLA), which llama.cpp computes absorbed.

The matrix that expands the cache is cut in two, and the half that makes keys is transposed for it.
"""

from dataclasses import replace

import gguf
import numpy as np

from modelpack.convert.architectures.architecture import Architecture
from modelpack.convert.architectures.decoder import ATTENTION, EXPERTS, GATED_FEED_FORWARD
from modelpack.convert.config import Config
from modelpack.convert.hyperparameters import (
    COMMON,
    count,
    expert_feed_forward_length,
    fixed,
    head_count_kv,
    head_lengths,
    number,
    vocabulary_size,
)
from modelpack.convert.tensor import Tensor, take_rows, transposed
from modelpack.convert.tokenizer import byte_level_bpe
from modelpack.errors import InvalidCheckpointError


def _expansion(tensor: Tensor, config: Config, *, keys: bool) -> Tensor:
    """One matrix a head: what makes its keys, transposed, or what makes its values."""
    key, value = config.integer("qk_nope_head_dim"), config.integer("v_head_dim")
    heads = config.integer("num_attention_heads")
    if len(tensor.shape) != 2 or tensor.shape[0] != heads * (key + value):
        raise InvalidCheckpointError(f"kv_b_proj has the shape {list(tensor.shape)}, not {heads * (key + value)} rows")
    rows = np.arange(tensor.shape[0]).reshape(heads, key + value)
    chosen = rows[:, :key] if keys else rows[:, key:]
    part = take_rows(tensor, chosen.reshape(-1), (*chosen.shape, tensor.shape[1]))
    return transposed(part) if keys else part


def _head_lengths(writer: gguf.GGUFWriter, config: Config) -> None:
    rank, rotated = config.integer("kv_lora_rank"), config.integer("qk_rope_head_dim")
    writer.add_key_length(rank + rotated)
    writer.add_value_length(rank)


def _lengths_without_absorption(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_key_length_mla(config.integer("qk_nope_head_dim") + config.integer("qk_rope_head_dim"))
    writer.add_value_length_mla(config.integer("v_head_dim"))


def _query_rank(writer: gguf.GGUFWriter, config: Config) -> None:
    """llama.cpp wants it, unless by the number of blocks it takes a model for one that compresses no queries."""
    rank = config.find_integer("q_lora_rank")
    is_known = config.blocks in (26, 27) or (config.blocks == 48 and config.find_integer("vocab_size") == 128256)
    if rank is not None or not is_known:
        writer.add_q_lora_rank(rank or 0)


def _dense_blocks(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_leading_dense_block_count(config.count("first_k_dense_replace"))


def _shared_experts(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_expert_shared_count(config.count("n_shared_experts"))


def _normed_weights(writer: gguf.GGUFWriter, config: Config) -> None:
    if config.flag("norm_topk_prob"):
        writer.add_expert_weights_norm(True)


def _yarn(writer: gguf.GGUFWriter, config: Config) -> None:
    # llama.cpp wants a tenth of it here and nowhere else: https://github.com/ggml-org/llama.cpp/pull/17945
    if (scale := config.rope.find_number("mscale_all_dim")) is not None:
        writer.add_rope_scaling_yarn_log_mul(0.1 * scale)


_REPLACED = {head_lengths: _head_lengths, head_count_kv: fixed("head_count_kv", 1)}
_BLOCK = "model.layers.{block}."


def _predicts_ahead(name: str, config: Config) -> bool:
    """The blocks after the last one guess several tokens ahead (MTP), which llama.cpp does not do here."""
    block = name.removeprefix("model.layers.").partition(".")[0]
    return block.isdecimal() and int(block) >= config.blocks


DEEPSEEK2 = Architecture(
    gguf_name="deepseek2",
    hf_names=("DeepseekV2ForCausalLM",),
    tensors={
        **ATTENTION,
        **GATED_FEED_FORWARD,
        **EXPERTS,
        _BLOCK + "self_attn.q_a_proj": "blk.{block}.attn_q_a",
        _BLOCK + "self_attn.q_a_layernorm": "blk.{block}.attn_q_a_norm",
        _BLOCK + "self_attn.q_b_proj": "blk.{block}.attn_q_b",
        _BLOCK + "self_attn.kv_a_proj_with_mqa": "blk.{block}.attn_kv_a_mqa",
        _BLOCK + "self_attn.kv_a_layernorm": "blk.{block}.attn_kv_a_norm",
        _BLOCK + "self_attn.kv_b_proj.weight": (
            ("blk.{block}.attn_k_b.weight", lambda tensor, config: _expansion(tensor, config, keys=True)),
            ("blk.{block}.attn_v_b.weight", lambda tensor, config: _expansion(tensor, config, keys=False)),
        ),
        _BLOCK + "mlp.gate.e_score_correction_bias": "blk.{block}.exp_probs_b.bias",
        _BLOCK + "mlp.shared_experts.gate_proj": "blk.{block}.ffn_gate_shexp",
        _BLOCK + "mlp.shared_experts.up_proj": "blk.{block}.ffn_up_shexp",
        _BLOCK + "mlp.shared_experts.down_proj": "blk.{block}.ffn_down_shexp",
    },
    vocabularies=(byte_level_bpe,),
    hyperparameters=(
        *(_REPLACED.get(step, step) for step in COMMON),
        _dense_blocks,
        vocabulary_size,
        _query_rank,
        count("kv_lora_rank", "kv_lora_rank"),
        _lengths_without_absorption,
        expert_feed_forward_length,
        _shared_experts,
        number("expert_weights_scale", "routed_scaling_factor"),
        _normed_weights,
        count("rope_dimension_count", "qk_rope_head_dim"),
        _yarn,
    ),
    # The first blocks have no experts; a small model's queries are not compressed.
    optional=(
        "output",
        *(f"blk.{{block}}.ffn_{name}" for name in ("gate", "up", "down", "gate_inp")),
        *(f"blk.{{block}}.ffn_{name}_{kind}" for name in ("gate", "up", "down") for kind in ("exps", "shexp")),
        "blk.{block}.exp_probs_b",
    ),
    leaves_out=_predicts_ahead,
    defaults={
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "routed_scaling_factor": 1.0,
        "moe_intermediate_size": 1407,
        "vocab_size": 32000,
    },
)


# A config.json saved by transformers 5 leaves out how experts are chosen; without it the logits are wrong.
DEEPSEEK3 = replace(
    DEEPSEEK2,
    hf_names=("DeepseekV3ForCausalLM",),
    defaults={
        **DEEPSEEK2.defaults,
        "max_position_embeddings": 4096,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "first_k_dense_replace": 3,
        "num_experts_per_tok": 8,
        "n_group": 8,
        "topk_group": 4,
        "norm_topk_prob": True,
        "scoring_func": "sigmoid",
        "routed_scaling_factor": 2.5,
        "moe_intermediate_size": 2048,
        "vocab_size": 129280,
    },
)
