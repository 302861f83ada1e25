"""BERT and the encoders that followed it: RoBERTa and XLM-R, Nomic's, and ModernBERT. They embed, and judge pairs."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import gguf

from modelpack.convert.architectures.architecture import Architecture
from modelpack.convert.config import Config
from modelpack.convert.hyperparameters import (
    COMMON,
    count,
    fixed,
    no_rope_scaling,
    pooling,
    vocabulary_size,
)
from modelpack.convert.tensor import Tensor, take_part
from modelpack.convert.tokenizer import byte_level_bpe
from modelpack.convert.unigram import unigram
from modelpack.convert.wordpiece import wordpiece
from modelpack.errors import InvalidCheckpointError, UnsupportedError


def _labels(writer: gguf.GGUFWriter, config: Config) -> None:
    """What a classifier's outputs mean; two labels called LABEL_0 and LABEL_1 mean nothing."""
    labels = config.values.get("id2label")
    if labels is None:
        return
    if not isinstance(labels, dict) or not all(key.isdecimal() and isinstance(labels[key], str) for key in labels):
        raise InvalidCheckpointError("config.json has no proper id2label")
    ordered = [labels[key] for key in sorted(labels, key=int)]
    if ordered and not (len(ordered) == 2 and ordered[0] == "LABEL_0"):
        writer.add_classifier_output_labels(ordered)


token_types = count("token_type_count", "type_vocab_size")
_ENCODER = (*COMMON, fixed("causal_attention", False), pooling, _labels)
_CLASSIFIER = {
    "classifier.dense": "cls",
    "classifier.out_proj": "cls.output",
    "classifier": "cls.output",
    # What pre-training needed.
    "pooler.dense": None,
    "lm_head.dense": None,
    "lm_head.layer_norm": None,
    "lm_head.decoder": None,
    "lm_head.bias": None,
    "cls.predictions.bias": None,
    "cls.predictions.decoder": None,
    "cls.predictions.transform.dense": None,
    "cls.predictions.transform.LayerNorm": None,
    "cls.seq_relationship": None,
}
_OPTIONAL = ("cls", "cls.output", "cls.norm", "token_types")

BERT = Architecture(
    gguf_name="bert",
    hf_names=("BertModel", "BertForMaskedLM", "BertForSequenceClassification"),
    tensors={
        "embeddings.word_embeddings": "token_embd",
        "embeddings.position_embeddings": "position_embd",
        "embeddings.token_type_embeddings": "token_types",
        "embeddings.LayerNorm": "token_embd_norm",
        "encoder.layer.{block}.attention.self.query": "blk.{block}.attn_q",
        "encoder.layer.{block}.attention.self.key": "blk.{block}.attn_k",
        "encoder.layer.{block}.attention.self.value": "blk.{block}.attn_v",
        "encoder.layer.{block}.attention.output.dense": "blk.{block}.attn_output",
        "encoder.layer.{block}.attention.output.LayerNorm": "blk.{block}.attn_output_norm",
        "encoder.layer.{block}.intermediate.dense": "blk.{block}.ffn_up",
        "encoder.layer.{block}.output.dense": "blk.{block}.ffn_down",
        "encoder.layer.{block}.output.LayerNorm": "blk.{block}.layer_output_norm",
        **_CLASSIFIER,
    },
    vocabularies=(wordpiece,),
    hyperparameters=_ENCODER,
    prefixes=("bert.",),
    optional=_OPTIONAL,
    defaults={
        "max_position_embeddings": 512,
        "layer_norm_eps": 1e-12,
        "type_vocab_size": 2,
        "vocab_size": 30522,
    },
    before_vocabulary=(token_types,),
)


def _padding(values: Mapping[str, Any]) -> int:
    """The first positions are padding's: its token's id, and those below."""
    token = values.get("pad_token_id", 1)
    if type(token) is not int or not 0 <= token < 1 << 16:
        raise InvalidCheckpointError(f"config.json has {token!r:.50} for pad_token_id")
    return token + 1


def _without_padding(values: Mapping[str, Any]) -> Mapping[str, Any]:
    length = values.get("max_position_embeddings", 512)
    return {**values, "max_position_embeddings": length - _padding(values) if type(length) is int else length}


def _cut_padding(tensor: Tensor, config: Config) -> Tensor:
    return take_part(tensor, _padding(config.values), tensor.shape[0])


ROBERTA = replace(
    BERT,
    hf_names=("RobertaModel", "RobertaForSequenceClassification"),
    vocabularies=(byte_level_bpe, wordpiece),
    prefixes=("roberta.",),
    configure=_without_padding,
    operations={"position_embd": _cut_padding},
    before_vocabulary=(),
    special_tokens=(token_types,),
)

XLM_ROBERTA = replace(
    ROBERTA,
    hf_names=("XLMRobertaModel", "XLMRobertaForSequenceClassification"),
    vocabularies=(unigram,),
    special_tokens=(),
)


def _trained_positions(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """What llama.cpp's graph takes for granted is checked; the context is what the model was trained with.

    Nomic's own code stretches positions beyond that at run time.
    """
    expected: dict[str, object] = {
        "activation_function": "swiglu",
        "causal": False,
        "qkv_proj_bias": False,
        "mlp_fc1_bias": False,
        "mlp_fc2_bias": False,
        "prenorm": False,
        "rotary_emb_fraction": 1.0,
        "rotary_emb_interleaved": False,
        "rotary_emb_scale_base": None,
    }
    for key, value in expected.items():
        if values.get(key, value) != value:
            raise UnsupportedError(f"config.json has {values[key]!r:.50} for {key}; llama.cpp knows {value!r} only")
    if values.get("moe_every_n_layers"):
        raise UnsupportedError("Nomic's encoder with experts is not converted natively")
    positions, trained = values.get("n_positions"), values.get("max_trained_positions") or 2048
    return {**values, "n_positions": min(positions, trained) if type(positions) is int else trained}


NOMIC_BERT = replace(
    BERT,
    gguf_name="nomic-bert",
    hf_names=("NomicBertModel",),
    tensors={
        "embeddings.word_embeddings": "token_embd",
        "embeddings.token_type_embeddings": "token_types",
        "emb_ln": "token_embd_norm",
        "encoder.layers.{block}.attn.Wqkv": "blk.{block}.attn_qkv",
        "encoder.layers.{block}.attn.out_proj": "blk.{block}.attn_output",
        "encoder.layers.{block}.norm1": "blk.{block}.attn_output_norm",
        "encoder.layers.{block}.mlp.fc11": "blk.{block}.ffn_up",
        "encoder.layers.{block}.mlp.fc12": "blk.{block}.ffn_gate",
        "encoder.layers.{block}.mlp.fc2": "blk.{block}.ffn_down",
        "encoder.layers.{block}.norm2": "blk.{block}.layer_output_norm",
        "pooler.dense": None,
    },
    prefixes=("bert.",),
    defaults={"layer_norm_epsilon": 1e-12, "rotary_emb_base": 1000, "type_vocab_size": 2},
    configure=_trained_positions,
)


def _window(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_sliding_window(config.integer("local_attention"))
    writer.add_sliding_window_pattern(config.integer("global_attn_every_n_layers"))


def _classifier_pooling(writer: gguf.GGUFWriter, config: Config) -> None:
    """PyPI's gguf has no name for this key yet."""
    kinds = {"cls": gguf.PoolingType.CLS, "mean": gguf.PoolingType.MEAN}
    kind = config.values["classifier_pooling"]
    if kind not in kinds:
        raise UnsupportedError(f"config.json has {kind!r:.50} for classifier_pooling, which llama.cpp does not know")
    writer.add_uint32(f"{writer.arch}.classifier.pooling_type", kinds[kind])


def _activation(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_string(f"{writer.arch}.hidden_activation", str(config.values["hidden_activation"])[:100])


def _one_epsilon(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """llama.cpp reads it under the name that ModernBERT's config.json has beside transformers' own."""
    return {"layer_norm_eps": values.get("norm_eps", 1e-5), **values}


MODERN_BERT = replace(
    BERT,
    gguf_name="modern-bert",
    hf_names=("ModernBertModel", "ModernBertForMaskedLM", "ModernBertForSequenceClassification"),
    tensors={
        "embeddings.tok_embeddings": "token_embd",
        "embeddings.norm": "token_embd_norm",
        "layers.{block}.attn_norm": "blk.{block}.attn_norm",
        "layers.{block}.attn.Wqkv": "blk.{block}.attn_qkv",
        "layers.{block}.attn.Wo": "blk.{block}.attn_output",
        "layers.{block}.mlp_norm": "blk.{block}.ffn_norm",
        "layers.{block}.mlp.Wi": "blk.{block}.ffn_up",
        "layers.{block}.mlp.Wo": "blk.{block}.ffn_down",
        "final_norm": "output_norm",
        "head.dense": "cls",
        "head.norm": "cls.norm",
        "classifier": "cls.output",
        "decoder": None,
    },
    vocabularies=(byte_level_bpe,),
    hyperparameters=(
        *COMMON,
        fixed("causal_attention", False),
        pooling,
        _classifier_pooling,
        _labels,
        _window,
        no_rope_scaling,
        vocabulary_size,
        _activation,
    ),
    prefixes=("model.",),
    optional=("cls", "cls.output", "cls.norm", "blk.{block}.attn_norm"),  # the first block needs no norm
    defaults={
        "max_position_embeddings": 8192,
        "norm_eps": 1e-5,
        "global_rope_theta": 160000.0,
        "local_rope_theta": 10000.0,
        "local_attention": 128,
        "global_attn_every_n_layers": 3,
        "hidden_activation": "gelu",
        "classifier_pooling": "cls",
        "vocab_size": 50368,
    },
    configure=_one_epsilon,
    before_vocabulary=tuple(fixed(f"add_{kind}_token", True) for kind in ("bos", "eos", "sep")),
)
