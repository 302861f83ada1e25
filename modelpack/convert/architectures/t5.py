"""The encoder of T5, as sentence encoders use it."""

from modelpack.convert.architectures.architecture import Architecture
from modelpack.convert.hyperparameters import block_count, count, file_type, number
from modelpack.convert.unigram import unigram

_BLOCK = "encoder.block.{block}.layer."

T5_ENCODER = Architecture(
    gguf_name="t5encoder",
    hf_names=("T5EncoderModel",),
    tensors={
        "shared": "token_embd",
        "encoder.embed_tokens": None,  # the same one again
        _BLOCK + "0.layer_norm": "enc.blk.{block}.attn_norm",
        _BLOCK + "0.SelfAttention.q": "enc.blk.{block}.attn_q",
        _BLOCK + "0.SelfAttention.k": "enc.blk.{block}.attn_k",
        _BLOCK + "0.SelfAttention.v": "enc.blk.{block}.attn_v",
        _BLOCK + "0.SelfAttention.o": "enc.blk.{block}.attn_o",
        _BLOCK + "0.SelfAttention.relative_attention_bias": "enc.blk.{block}.attn_rel_b",
        _BLOCK + "1.layer_norm": "enc.blk.{block}.ffn_norm",
        _BLOCK + "1.DenseReluDense.wi": "enc.blk.{block}.ffn_up",
        _BLOCK + "1.DenseReluDense.wi_0": "enc.blk.{block}.ffn_gate",
        _BLOCK + "1.DenseReluDense.wi_1": "enc.blk.{block}.ffn_up",
        _BLOCK + "1.DenseReluDense.wo": "enc.blk.{block}.ffn_down",
        "encoder.final_layer_norm": "enc.output_norm",
    },
    vocabularies=(unigram,),
    hyperparameters=(
        count("context_length", "n_positions"),
        count("embedding_length", "d_model"),
        count("feed_forward_length", "d_ff"),
        block_count,
        count("head_count", "num_heads"),
        count("key_length", "d_kv"),
        count("value_length", "d_kv"),
        number("layer_norm_eps", "layer_norm_epsilon"),
        count("relative_attn_buckets_count", "relative_attention_num_buckets"),
        number("layer_norm_rms_eps", "layer_norm_epsilon"),
        file_type,
    ),
    # The first block's bias serves all; not every T5 gates its feed-forward.
    optional=("enc.blk.{block}.attn_rel_b", "enc.blk.{block}.ffn_gate"),
    defaults={
        "n_positions": 512,
        "layer_norm_epsilon": 1e-6,
        "relative_attention_num_buckets": 32,
        "vocab_size": 32128,
    },
)
