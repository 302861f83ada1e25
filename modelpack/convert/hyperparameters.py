"""The hyper-parameter keys of a GGUF file: what each is called in config.json, and which of them a model has.

Each is a function that writes one key, or a few that belong together. An architecture lists its own; ``COMMON`` is what
most have. Keys and order are those of ``conversion/`` in the llama.cpp that llama-cpp-python 0.3.36 carries.
"""

from collections.abc import Callable

import gguf

from modelpack.convert.config import Config
from modelpack.errors import InvalidCheckpointError, UnsupportedError

Hyperparameter = Callable[[gguf.GGUFWriter, Config], None]

FILE_TYPES = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "BF16": gguf.LlamaFileType.MOSTLY_BF16,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
"""What a checkpoint can be converted to; anything smaller is llama.cpp's work (``modelpack.quantize``)."""

_POOLING = {"mean": gguf.PoolingType.MEAN, "cls": gguf.PoolingType.CLS, "last": gguf.PoolingType.LAST}
_GATING = {"sigmoid": gguf.ExpertGatingFuncType.SIGMOID, "softmax": gguf.ExpertGatingFuncType.SOFTMAX}


def count(field: str, *keys: str) -> Hyperparameter:
    """The first of ``keys`` that is there, as what gguf calls ``field``; nothing where none is."""

    def add(writer: gguf.GGUFWriter, config: Config) -> None:
        if (value := config.find_integer(*keys)) is not None:
            getattr(writer, f"add_{field}")(value)

    return add


def number(field: str, *keys: str) -> Hyperparameter:
    """As ``count``, for what need not be whole."""

    def add(writer: gguf.GGUFWriter, config: Config) -> None:
        if (value := config.find_number(*keys)) is not None:
            getattr(writer, f"add_{field}")(value)

    return add


def fixed(field: str, value: object) -> Hyperparameter:
    """What no checkpoint says, because all of an architecture have the same."""
    return lambda writer, _config: getattr(writer, f"add_{field}")(value)


def block_count(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_block_count(config.blocks)


context_length = count("context_length", "max_position_embeddings", "n_ctx", "n_positions", "max_sequence_length")
embedding_length = count("embedding_length", "hidden_size", "n_embd", "dim")
feed_forward_length = count("feed_forward_length", "intermediate_size", "n_inner", "hidden_dim")
head_count = count("head_count", "num_attention_heads", "n_head", "n_heads")
head_count_kv = count("head_count_kv", "num_key_value_heads", "n_kv_heads")
rms_epsilon = number("layer_norm_rms_eps", "rms_norm_eps", "norm_eps")
norm_epsilon = number("layer_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")
sliding_window = count("sliding_window", "sliding_window")
vocabulary_size = count("vocab_size", "vocab_size")
expert_feed_forward_length = count("expert_feed_forward_length", "moe_intermediate_size")


def four_times_the_width(writer: gguf.GGUFWriter, config: Config) -> None:
    """The feed-forward length of architectures that do not say it."""
    writer.add_feed_forward_length(config.find_integer("n_inner", "ffn_hidden_size") or 4 * config.width)


def head_lengths(writer: gguf.GGUFWriter, config: Config) -> None:
    if (length := config.find_integer("head_dim")) is not None:
        writer.add_key_length(length)
        writer.add_value_length(length)


def rotated_length(writer: gguf.GGUFWriter, config: Config) -> None:
    """How many elements of a head are rotated."""
    writer.add_rope_dimension_count(int(config.rotated_share * (config.width // config.heads)))


def parallel_residual(writer: gguf.GGUFWriter, config: Config) -> None:
    """Whether attention and feed-forward read the same input."""
    writer.add_parallel_residual(config.flag("use_parallel_residual"))


def no_rope_scaling(writer: gguf.GGUFWriter, _config: Config) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)


def rope_base(writer: gguf.GGUFWriter, config: Config) -> None:
    if (theta := config.rope.theta) is not None:
        writer.add_rope_freq_base(theta)
    if (theta := config.sliding_rope_theta) is not None:
        writer.add_rope_freq_base_swa(theta)


def rope_scaling(writer: gguf.GGUFWriter, config: Config) -> None:
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
    elif rope.kind in ("su", "longrope"):
        writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)


def experts(writer: gguf.GGUFWriter, config: Config) -> None:
    """Raises InvalidCheckpointError for a way to choose experts that llama.cpp has no name for."""
    for field, keys in (
        ("expert_count", ("num_local_experts", "num_experts", "n_routed_experts")),
        ("expert_used_count", ("num_experts_per_tok", "num_experts_per_token")),
        ("expert_group_count", ("n_group",)),
        ("expert_group_used_count", ("topk_group",)),
    ):
        count(field, *keys)(writer, config)
    function = config.values.get("scoring_func")
    if function is not None:
        if not isinstance(function, str) or function not in _GATING:
            raise InvalidCheckpointError(f"config.json has {function!r:.50} for scoring_func, which is not known")
        writer.add_expert_gating_func(_GATING[function])


def expert_weights_are_normed(expected: bool) -> Hyperparameter:
    """Writes nothing: llama.cpp takes it for granted of some architectures, and would compute something else.

    Raises UnsupportedError where the model does otherwise.
    """

    def check(_writer: gguf.GGUFWriter, config: Config) -> None:
        if "norm_topk_prob" in config.values and config.flag("norm_topk_prob") is not expected:
            raise UnsupportedError(
                f"config.json has {not expected} for norm_topk_prob, and llama.cpp knows this architecture otherwise"
            )

    return check


def pooling(writer: gguf.GGUFWriter, config: Config) -> None:
    if config.pooling is not None:
        writer.add_pooling_type(_POOLING[config.pooling])


def file_type(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_file_type(FILE_TYPES[config.file_type])


COMMON: tuple[Hyperparameter, ...] = (
    block_count,
    context_length,
    embedding_length,
    feed_forward_length,
    head_count,
    head_count_kv,
    rope_scaling,
    rope_base,
    rms_epsilon,
    norm_epsilon,
    experts,
    head_lengths,
    file_type,
)
