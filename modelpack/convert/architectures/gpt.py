"""GPT-2 and its kin: StarCoder (GPT BigCode) and GPT-NeoX (Pythia)."""

from dataclasses import replace

from modelpack.convert.architectures.architecture import Architecture
from modelpack.convert.config import Config
from modelpack.convert.hyperparameters import (
    block_count,
    context_length,
    count,
    embedding_length,
    feed_forward_length,
    file_type,
    fixed,
    four_times_the_width,
    head_count,
    norm_epsilon,
    parallel_residual,
    rotated_length,
)
from modelpack.convert.tensor import Tensor, separate_groups, transposed
from modelpack.convert.tokenizer import byte_level_bpe

_TENSORS = {
    "wte": "token_embd",
    "wpe": "position_embd",
    "h.{block}.ln_1": "blk.{block}.attn_norm",
    "h.{block}.attn.c_attn": "blk.{block}.attn_qkv",
    "h.{block}.attn.c_proj": "blk.{block}.attn_output",
    "h.{block}.ln_2": "blk.{block}.ffn_norm",
    "h.{block}.mlp.c_fc": "blk.{block}.ffn_up",
    "h.{block}.mlp.c_proj": "blk.{block}.ffn_down",
    "ln_f": "output_norm",
    "lm_head": "output",
    # The causal mask, which old checkpoints saved.
    "h.{block}.attn.bias": None,
    "h.{block}.attn.masked_bias": None,
}

GPT2 = Architecture(
    gguf_name="gpt2",
    hf_names=("GPT2LMHeadModel",),
    tensors=_TENSORS,
    vocabularies=(byte_level_bpe,),
    hyperparameters=(
        block_count,
        count("context_length", "n_ctx", "n_positions"),
        embedding_length,
        four_times_the_width,
        head_count,
        norm_epsilon,
        file_type,
    ),
    prefixes=("transformer.",),
    defaults={"n_positions": 1024, "layer_norm_epsilon": 1e-5, "vocab_size": 50257},
    # Its matrices are stored the other way round.
    operations={
        f"blk.{{block}}.{name}": lambda tensor, _config: transposed(tensor)
        for name in ("attn_qkv", "attn_output", "ffn_up", "ffn_down")
    },
)

GPT_BIGCODE = replace(
    GPT2,
    gguf_name="starcoder",
    hf_names=("GPTBigCodeForCausalLM",),
    hyperparameters=(
        count("context_length", "n_positions"),
        embedding_length,
        four_times_the_width,
        block_count,
        head_count,
        fixed("head_count_kv", 1),
        norm_epsilon,
        file_type,
    ),
    operations={},
)


def _separate(tensor: Tensor, config: Config) -> Tensor:
    """Each head's query, key and value rows lie together."""
    return separate_groups(tensor, config.heads, (1, 1, 1))


GPT_NEOX = Architecture(
    gguf_name="gptneox",
    hf_names=("GPTNeoXForCausalLM",),
    tensors={
        "gpt_neox.embed_in": "token_embd",
        "gpt_neox.layers.{block}.input_layernorm": "blk.{block}.attn_norm",
        "gpt_neox.layers.{block}.attention.query_key_value": "blk.{block}.attn_qkv",
        "gpt_neox.layers.{block}.attention.dense": "blk.{block}.attn_output",
        "gpt_neox.layers.{block}.post_attention_layernorm": "blk.{block}.ffn_norm",
        "gpt_neox.layers.{block}.mlp.dense_h_to_4h": "blk.{block}.ffn_up",
        "gpt_neox.layers.{block}.mlp.dense_4h_to_h": "blk.{block}.ffn_down",
        "gpt_neox.final_layer_norm": "output_norm",
        "embed_out": "output",
    },
    vocabularies=(byte_level_bpe,),
    hyperparameters=(
        context_length,
        embedding_length,
        block_count,
        feed_forward_length,
        rotated_length,
        head_count,
        parallel_residual,
        norm_epsilon,
        file_type,
    ),
    defaults={
        "max_position_embeddings": 2048,
        "rotary_pct": 0.25,
        "use_parallel_residual": True,
        "layer_norm_eps": 1e-5,
        "vocab_size": 50432,
    },
    operations={"blk.{block}.attn_qkv": _separate},
)
