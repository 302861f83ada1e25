"""StableLM. Where it has norms in its heads, each head has one of its own; llama.cpp wants them as one matrix."""

from modelpack.convert.architectures.architecture import Architecture
from modelpack.convert.architectures.decoder import DECODER, as_many_keys_as_heads
from modelpack.convert.hyperparameters import (
    block_count,
    context_length,
    embedding_length,
    feed_forward_length,
    file_type,
    head_count,
    head_count_kv,
    norm_epsilon,
    parallel_residual,
    rotated_length,
)
from modelpack.convert.tokenizer import byte_level_bpe

STABLELM = Architecture(
    gguf_name="stablelm",
    hf_names=("StableLmForCausalLM", "StableLMEpochForCausalLM"),
    tensors={
        **DECODER,
        "model.layers.{block}.self_attn.q_layernorm.norms.{expert}": "blk.{block}.attn_q_norm",
        "model.layers.{block}.self_attn.k_layernorm.norms.{expert}": "blk.{block}.attn_k_norm",
    },
    vocabularies=(byte_level_bpe,),
    hyperparameters=(
        context_length,
        embedding_length,
        block_count,
        feed_forward_length,
        rotated_length,
        head_count,
        head_count_kv,
        parallel_residual,
        norm_epsilon,
        file_type,
    ),
    defaults={
        "max_position_embeddings": 4096,
        "layer_norm_eps": 1e-5,
        "partial_rotary_factor": 0.25,
        "use_parallel_residual": False,
        "vocab_size": 50304,
    },
    configure=as_many_keys_as_heads,
)
