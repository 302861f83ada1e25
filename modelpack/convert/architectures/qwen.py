"""Qwen2 and Qwen3: llama.cpp rotates their halves as the checkpoint does, so nothing happens to their tensors."""

from dataclasses import replace

from modelpack.convert.architectures.architecture import Architecture
from modelpack.convert.architectures.llama import DECODER_TENSORS
from modelpack.convert.tokenizer import byte_level_bpe, sentencepiece

QWEN2 = Architecture(
    gguf_name="qwen2",
    hf_names=("Qwen2ForCausalLM",),
    tensors=DECODER_TENSORS,
    vocabularies=(sentencepiece, byte_level_bpe),
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
    tensors={
        **DECODER_TENSORS,
        "model.layers.{block}.self_attn.q_norm": "blk.{block}.attn_q_norm",
        "model.layers.{block}.self_attn.k_norm": "blk.{block}.attn_k_norm",
    },
    defaults={**QWEN2.defaults, "head_dim": 128},
)
