"""StarCoder 2. (The first one is a GPT BigCode, with GPT-2.)"""

from modelpack.convert.architectures.architecture import Architecture
from modelpack.convert.architectures.decoder import ATTENTION
from modelpack.convert.tokenizer import byte_level_bpe

STARCODER2 = Architecture(
    gguf_name="starcoder2",
    hf_names=("Starcoder2ForCausalLM",),
    tensors={
        **ATTENTION,
        "model.layers.{block}.mlp.c_fc": "blk.{block}.ffn_up",
        "model.layers.{block}.mlp.c_proj": "blk.{block}.ffn_down",
    },
    vocabularies=(byte_level_bpe,),
    defaults={
        "max_position_embeddings": 4096,
        "num_key_value_heads": 2,
        "norm_epsilon": 1e-5,
        "rope_theta": 10000.0,
        "vocab_size": 49152,
    },
)
