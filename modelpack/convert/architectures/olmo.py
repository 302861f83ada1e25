"""OLMo, whose norms have no weights, OLMo 2, which norms after each step, and OLMoE."""

from modelpack.convert.architectures.architecture import Architecture
from modelpack.convert.architectures.decoder import (
    ATTENTION,
    DECODER,
    EXPERTS,
    GATED_FEED_FORWARD,
    HEAD_NORMS,
    as_many_keys_as_heads,
)
from modelpack.convert.hyperparameters import COMMON, expert_weights_are_normed, fixed, number
from modelpack.convert.tensor import interleave_halves
from modelpack.convert.tokenizer import byte_level_bpe

_DEFAULTS = {"max_position_embeddings": 2048, "rope_theta": 10000.0, "vocab_size": 50304}

OLMO = Architecture(
    gguf_name="olmo",
    hf_names=("OlmoForCausalLM",),
    tensors={name: target for name, target in DECODER.items() if "norm" not in name},
    vocabularies=(byte_level_bpe,),
    hyperparameters=(*COMMON, fixed("layer_norm_eps", 1e-5), number("clamp_kqv", "clip_qkv")),
    defaults=_DEFAULTS,
    configure=as_many_keys_as_heads,
    operations={
        "blk.{block}.attn_q": lambda tensor, config: interleave_halves(tensor, config.heads),
        "blk.{block}.attn_k": lambda tensor, config: interleave_halves(tensor, config.key_value_heads),
    },
)

OLMO2 = Architecture(
    gguf_name="olmo2",
    hf_names=("Olmo2ForCausalLM",),
    tensors={
        **{name: target for name, target in ATTENTION.items() if "layernorm" not in name},
        **GATED_FEED_FORWARD,
        **HEAD_NORMS,
        "model.layers.{block}.post_attention_layernorm": "blk.{block}.post_attention_norm",
        "model.layers.{block}.post_feedforward_layernorm": "blk.{block}.post_ffw_norm",
    },
    vocabularies=(byte_level_bpe,),
    defaults={**_DEFAULTS, "rms_norm_eps": 1e-5},
    configure=as_many_keys_as_heads,
)

OLMOE = Architecture(
    gguf_name="olmoe",
    hf_names=("OlmoeForCausalLM",),
    tensors={**ATTENTION, **HEAD_NORMS, **EXPERTS},
    vocabularies=(byte_level_bpe,),
    hyperparameters=(*COMMON, fixed("layer_norm_rms_eps", 1e-5), expert_weights_are_normed(False)),
    defaults={
        **_DEFAULTS,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "num_experts": 64,
        "num_experts_per_tok": 8,
    },
    configure=as_many_keys_as_heads,
)
