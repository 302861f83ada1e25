"""The ``general.*`` and hyper-parameter keys of a GGUF file, under the names and in the order of upstream's converter.

The keys, their types and the reading of model names are gguf's; the order is that of ``conversion/base.py`` in the
llama.cpp that llama-cpp-python 0.3.36 carries.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf

from modelpack.convert.config import Config, as_number
from modelpack.convert.model_card import ModelCard

# generation_config.json's name for each field of gguf.Metadata; of two names the first that is there counts.
_SAMPLING = {
    "sampling_top_k": ("top_k",),
    "sampling_top_p": ("top_p",),
    "sampling_min_p": ("min_p",),
    "sampling_xtc_probability": ("xtc_probability",),
    "sampling_xtc_threshold": ("xtc_threshold",),
    "sampling_temp": ("temperature",),
    "sampling_penalty_last_n": ("penalty_last_n",),
    "sampling_penalty_repeat": ("penalty_repeat", "repetition_penalty"),
    "sampling_mirostat": ("mirostat",),
    "sampling_mirostat_tau": ("mirostat_tau",),
    "sampling_mirostat_eta": ("mirostat_eta",),
}
_WHOLE = {"sampling_top_k", "sampling_penalty_last_n", "sampling_mirostat"}


def add_general(
    writer: gguf.GGUFWriter, *, name: str, card: ModelCard, config: Mapping[str, Any], generation: Mapping[str, Any]
) -> None:
    """Write what the model is called and under which terms. The tensors must be known to ``writer``: the size label
    (``7B``) is counted from them.
    """
    parameters = writer.get_total_parameter_count()
    metadata = gguf.Metadata()
    for field, keys in _SAMPLING.items():
        value = next((generation[key] for key in keys if generation.get(key) is not None), None)
        if value is not None:
            number = as_number(value, f"{keys[0]} of generation_config.json")
            setattr(metadata, field, int(number) if field in _WHOLE else number)
    known = config.get("_name_or_path")
    gguf.Metadata.apply_metadata_heuristic(
        metadata,
        dict(card.fields),
        {"_name_or_path": known} if isinstance(known, str) else {},
        # Upstream gives its folder; only the last component counts, and ours comes as an argument.
        Path(name),
        parameters[0],
    )
    metadata.name = metadata.name or name
    if metadata.size_label is None and parameters[0] > 0:
        metadata.size_label = gguf.size_label(*parameters)
    writer.add_type(gguf.GGUFType.MODEL)
    metadata.set_gguf_meta_model(writer)


def add_hyperparameters(writer: gguf.GGUFWriter, config: Config) -> None:
    """Write the hyper-parameters that architectures share. Raises InvalidCheckpointError for impossible values."""
    writer.add_block_count(config.integer("num_hidden_layers", "n_layers", "n_layer", "num_layers"))
    for add, keys in (
        (writer.add_context_length, ("max_position_embeddings", "n_ctx", "n_positions", "max_sequence_length")),
        (writer.add_embedding_length, ("hidden_size", "n_embd")),
        (writer.add_feed_forward_length, ("intermediate_size", "n_inner")),
        (writer.add_head_count, ("num_attention_heads", "n_head")),
        (writer.add_head_count_kv, ("num_key_value_heads",)),
    ):
        if (count := config.find_integer(*keys)) is not None:
            add(count)
    _add_rope(writer, config)
    if (epsilon := config.find_number("rms_norm_eps", "norm_eps")) is not None:
        writer.add_layer_norm_rms_eps(epsilon)
    if (epsilon := config.find_number("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")) is not None:
        writer.add_layer_norm_eps(epsilon)
    if (length := config.find_integer("head_dim")) is not None:
        writer.add_key_length(length)
        writer.add_value_length(length)


def _add_rope(writer: gguf.GGUFWriter, config: Config) -> None:
    rope = config.rope
    factor = rope.find_number("factor")
    if rope.kind == "linear" and factor is not None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(factor)
    elif rope.kind == "yarn" and factor is not None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(factor)
        original = rope.find_number("original_max_position_embeddings")
        writer.add_rope_scaling_orig_ctx_len(
            config.integer("original_max_position_embeddings", "max_position_embeddings")
            if original is None
            else int(original)
        )
        for add, keys in (
            (writer.add_rope_scaling_yarn_ext_factor, ("extrapolation_factor",)),
            (writer.add_rope_scaling_yarn_attn_factor, ("attention_factor", "attn_factor")),
            (writer.add_rope_scaling_yarn_beta_fast, ("beta_fast",)),
            (writer.add_rope_scaling_yarn_beta_slow, ("beta_slow",)),
        ):
            if (value := rope.find_number(*keys)) is not None:
                add(value)
    if rope.theta is not None:
        writer.add_rope_freq_base(rope.theta)
