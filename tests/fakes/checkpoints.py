"""Small checkpoints with random weights, the same on every machine, written with numpy alone.

``scripts/make-conversion-goldens`` converts them with upstream's converter and records the digests; the tests convert
them with ours. So this file must not change without the goldens.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

TINY = Path(__file__).parent.parent / "data" / "tiny-llama"
_STORED = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass(frozen=True)
class Synthetic:
    """``changes`` go over the config that all share; ``shards`` is how many files the weights are spread over."""

    architecture: str
    dtype: str
    tokenizer: str
    changes: Mapping[str, Any]
    shards: int = 1
    biases: bool = False
    head_norms: bool = False
    generation: Mapping[str, Any] = field(default_factory=dict)
    card: str = ""


SYNTHETIC = {
    "llama3-rope": Synthetic(
        "LlamaForCausalLM",
        "F16",
        "sentencepiece",
        {
            "tie_word_embeddings": False,
            "rope_theta": 500000.0,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
        shards=3,
        generation={"temperature": 0.6, "top_p": 0.9, "top_k": 40, "repetition_penalty": 1.1},
        card="---\nlicense: llama3.1\nbase_model: meta-llama/Llama-3.1-8B\nlanguage: [en, 'no']\n---\n# Card\n",
    ),
    "linear-rope-biases": Synthetic(
        "LlamaForCausalLM",
        "BF16",
        "sentencepiece",
        {"rope_scaling": {"type": "linear", "factor": 4.0}, "attention_bias": True, "head_dim": 32},
        biases=True,
    ),
    "mistral-7b-instruct": Synthetic("MistralForCausalLM", "BF16", "sentencepiece", {"sliding_window": None}, shards=2),
    "llama-bpe": Synthetic("LlamaForCausalLM", "BF16", "byte_level_bpe", {}),
    "qwen2-0.5b": Synthetic("Qwen2ForCausalLM", "BF16", "byte_level_bpe", {"rope_theta": 1000000.0}, biases=True),
    "qwen3-yarn": Synthetic(
        "Qwen3ForCausalLM",
        "F32",
        "byte_level_bpe",
        {
            "head_dim": 32,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 64,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
            },
        },
        head_norms=True,
    ),
}

_CONFIG = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "vocab_size": 520,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def write_checkpoint(name: str, directory: Path) -> Path:
    """Write one of SYNTHETIC to ``directory``, which is returned."""
    synthetic = SYNTHETIC[name]
    directory.mkdir(parents=True, exist_ok=True)
    config = {"architectures": [synthetic.architecture], "model_type": _model_type(synthetic)} | _CONFIG
    config |= dict(synthetic.changes)
    _write_json(directory / "config.json", config)
    if synthetic.generation:
        _write_json(directory / "generation_config.json", synthetic.generation)
    if synthetic.card:
        (directory / "README.md").write_text(synthetic.card, encoding="utf-8")
    _TOKENIZERS[synthetic.tokenizer](directory)
    write_weights(directory, _weights(synthetic, config), shards=synthetic.shards)
    return directory


def write_weights(directory: Path, weights: Mapping[str, tuple[str, np.ndarray]], *, shards: int = 1) -> None:
    """Write tensors (dtype and array, BF16 as its 16 bits) as one safetensors file, or as several with an index."""
    names = sorted(weights)
    if shards == 1:
        write_safetensors(directory / "model.safetensors", weights)
        return
    weight_map = {}
    for number in range(shards):
        part = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        mine = names[number::shards]
        write_safetensors(directory / part, {name: weights[name] for name in mine})
        weight_map |= dict.fromkeys(mine, part)
    _write_json(directory / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def write_safetensors(path: Path, tensors: Mapping[str, tuple[str, np.ndarray]]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, (dtype, array) in tensors.items():
        content = array.tobytes()
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)


def _weights(synthetic: Synthetic, config: Mapping[str, Any]) -> dict[str, tuple[str, np.ndarray]]:
    hidden, ffn, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    length = config.get("head_dim", hidden // config["num_attention_heads"])
    queries, keys = config["num_attention_heads"] * length, config["num_key_value_heads"] * length
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
    }
    if not config.get("tie_word_embeddings", True):
        shapes["lm_head.weight"] = (vocabulary, hidden)
    for block in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{block}."
        for name, rows, columns in (
            ("self_attn.q_proj", queries, hidden),
            ("self_attn.k_proj", keys, hidden),
            ("self_attn.v_proj", keys, hidden),
            ("self_attn.o_proj", hidden, queries),
            ("mlp.gate_proj", ffn, hidden),
            ("mlp.up_proj", ffn, hidden),
            ("mlp.down_proj", hidden, ffn),
        ):
            shapes[f"{prefix}{name}.weight"] = (rows, columns)
            if synthetic.biases and name[-6] in "qkv":
                shapes[f"{prefix}{name}.bias"] = (rows,)
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}{name}.weight"] = (hidden,)
        if synthetic.head_norms:
            for name in ("self_attn.q_norm", "self_attn.k_norm"):
                shapes[f"{prefix}{name}.weight"] = (length,)
    # RandomState's stream is frozen for good, default_rng's is not.
    random = np.random.RandomState(1234)
    weights = {}
    for name in sorted(shapes):
        values = random.standard_normal(shapes[name]).astype("<f4") * np.float32(0.1)
        if synthetic.dtype == "BF16":
            values = (values.view("<u4") >> 16).astype("<u2")
        weights[name] = (synthetic.dtype, values.astype(_STORED[synthetic.dtype]))
    return weights


def _model_type(synthetic: Synthetic) -> str:
    return synthetic.architecture.removesuffix("ForCausalLM").lower()


def _write_sentencepiece(directory: Path) -> None:
    """The tiny checkpoint's model, eight holes after it, and added tokens of both kinds."""
    (directory / "tokenizer.model").write_bytes((TINY / "tokenizer.model").read_bytes())
    added = {
        "2": {"content": "</s>", "special": True},
        "513": {"content": "<|tool|>", "special": False},
        "514": {"content": "\u2581two words", "special": False},
    }
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": {"content": "</s>"}}
    settings |= {
        "add_bos_token": True,
        "add_eos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
    }
    _write_json(directory / "tokenizer_config.json", settings)
    _write_json(directory / "added_tokens.json", {"<extra>": 512})


def _write_byte_level_bpe(directory: Path) -> None:
    """Every byte, a few dozen merges, and added tokens of both kinds."""
    alphabet = _byte_alphabet()
    words = ["\u0120the", "ing", "\u0120and", "tion", "1", "\u0120model", "er", "\u0120token", "ab", "abab"]
    vocabulary, merges = ["<unk>", "<s>", "</s>", *alphabet], []
    for word in words:
        left = word[0]
        for right in word[1:]:
            if left + right not in vocabulary:
                merges.append([left, right])
                vocabulary.append(left + right)
            left += right
    specials = [
        {"id": 1, "content": "<s>", "normalized": False, "special": True},
        {"id": 2, "content": "</s>", "normalized": False, "special": True},
        {"id": len(vocabulary), "content": "<|im_start|>", "normalized": False, "special": True},
        {"id": len(vocabulary) + 1, "content": "<tool_call>", "normalized": False, "special": False},
    ]
    plain = {"single_word": False, "lstrip": False, "rstrip": False}
    tokenizer = {
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 16, "strategy": "LongestFirst", "stride": 0},
        "padding": None,
        "added_tokens": [plain | special for special in specials],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True},
        "post_processor": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: number for number, token in enumerate(vocabulary)},
            "merges": merges,
        },
    }
    _write_json(directory / "tokenizer.json", tokenizer)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    settings |= {"chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"}
    _write_json(directory / "tokenizer_config.json", settings)


def _byte_alphabet() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)]


def _write_json(path: Path, document: object) -> None:
    path.write_text(json.dumps(document, ensure_ascii=False, indent=1), encoding="utf-8")


_TOKENIZERS = {"sentencepiece": _write_sentencepiece, "byte_level_bpe": _write_byte_level_bpe}
