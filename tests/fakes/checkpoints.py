"""Small checkpoints with random weights, the same on every machine, written with numpy alone.

``scripts/make-conversion-goldens`` converts them with upstream's converter and records the digests; the tests convert
them with ours. So this file must not change without the goldens. Which tensors an architecture has comes from
transformers, recorded by the same script in ``tests/data/conversion/shapes.json``.
"""

import base64
import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).parent.parent / "data"
TINY = DATA / "tiny-llama"
SHAPES = DATA / "conversion" / "shapes.json"
_STORED = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F8_E4M3": "u1"}


@dataclass(frozen=True)
class Synthetic:
    """``config`` goes over what ``shared`` ones have in common; the weights are spread over ``shards`` files."""

    architecture: str
    model_type: str
    dtype: str
    tokenizer: str
    config: Mapping[str, Any] = field(default_factory=dict)
    shared: bool = True
    shards: int = 1
    generation: Mapping[str, Any] = field(default_factory=dict)
    card: str = ""
    pooling: str = ""


_BPE, _SPM, _WPM, _UGM = "byte_level_bpe", "sentencepiece", "wordpiece", "unigram"
_GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, "vocab_size": 520}
_EXPERTS = {"num_experts": 12, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_FALCON = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 520, "alibi": False}
_GRANITE = {
    "attention_multiplier": 0.25,
    "embedding_multiplier": 2.0,
    "residual_multiplier": 0.5,
    "logits_scaling": 4.0,
}
_DEEPSEEK = {
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 24,
    "first_k_dense_replace": 1,
}
_BERT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 520,
}

SYNTHETIC = {
    "llama3-rope": Synthetic(
        "LlamaForCausalLM",
        "llama",
        "F16",
        _SPM,
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
        "llama",
        "BF16",
        _SPM,
        {"rope_scaling": {"type": "linear", "factor": 4.0}, "attention_bias": True, "head_dim": 32},
    ),
    "mistral-7b-instruct": Synthetic("MistralForCausalLM", "mistral", "BF16", _SPM, {"sliding_window": None}, shards=2),
    "llama-bpe": Synthetic("LlamaForCausalLM", "llama", "BF16", _BPE),
    "mixtral": Synthetic(
        "MixtralForCausalLM", "mixtral", "BF16", _SPM, {"num_local_experts": 4, "num_experts_per_tok": 2}, shards=3
    ),
    "smollm3": Synthetic("SmolLM3ForCausalLM", "smollm3", "BF16", _BPE, {"num_hidden_layers": 4, "pad_token_id": 0}),
    "qwen2-0.5b": Synthetic("Qwen2ForCausalLM", "qwen2", "BF16", _BPE, {"rope_theta": 1000000.0}),
    "qwen2-moe": Synthetic(
        "Qwen2MoeForCausalLM", "qwen2_moe", "F32", _BPE, {**_EXPERTS, "shared_expert_intermediate_size": 64}
    ),
    "qwen3-yarn": Synthetic(
        "Qwen3ForCausalLM",
        "qwen3",
        "F32",
        _BPE,
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
    ),
    "qwen3-moe": Synthetic(
        "Qwen3MoeForCausalLM", "qwen3_moe", "BF16", _BPE, {**_EXPERTS, "head_dim": 16, "norm_topk_prob": True}, shards=2
    ),
    "gemma": Synthetic("GemmaForCausalLM", "gemma", "BF16", _SPM, {"head_dim": 16}),
    "gemma2": Synthetic(
        "Gemma2ForCausalLM",
        "gemma2",
        "F32",
        _SPM,
        {"head_dim": 16, "sliding_window": 64, "query_pre_attn_scalar": 16},
    ),
    "gemma3": Synthetic(
        "Gemma3ForCausalLM",
        "gemma3_text",
        "BF16",
        _SPM,
        {"head_dim": 16, "sliding_window": 64, "query_pre_attn_scalar": 16, "num_hidden_layers": 6},
    ),
    "phi2": Synthetic(
        "PhiForCausalLM",
        "phi",
        "BF16",
        _BPE,
        {
            "num_key_value_heads": 4,
            "partial_rotary_factor": 0.5,
            "intermediate_size": 256,
            "tie_word_embeddings": False,
        },
    ),
    "phi-mini": Synthetic(
        "Phi3ForCausalLM",
        "phi3",
        "BF16",
        _SPM,
        {
            "original_max_position_embeddings": 256,
            "sliding_window": 64,
            "tie_word_embeddings": False,
            "pad_token_id": 0,
        },
    ),
    "phi-mini-longrope": Synthetic(
        "Phi3ForCausalLM",
        "phi3",
        "BF16",
        _SPM,
        {
            "original_max_position_embeddings": 256,
            "max_position_embeddings": 512,
            "rope_scaling": {
                "type": "longrope",
                "long_factor": [1.0 + 0.5 * place for place in range(8)],
                "short_factor": [1.0 + 0.25 * place for place in range(8)],
            },
            "tie_word_embeddings": False,
            "pad_token_id": 0,
        },
    ),
    "gpt2": Synthetic("GPT2LMHeadModel", "gpt2", "F32", _BPE, {**_GPT2, "n_ctx": 256}, shared=False),
    "gpt-bigcode": Synthetic("GPTBigCodeForCausalLM", "gpt_bigcode", "BF16", _BPE, _GPT2, shared=False),
    "gpt-neox": Synthetic(
        "GPTNeoXForCausalLM",
        "gpt_neox",
        "F16",
        _BPE,
        {"num_key_value_heads": None, "rotary_pct": 0.25, "tie_word_embeddings": False},
    ),
    "starcoder2": Synthetic("Starcoder2ForCausalLM", "starcoder2", "BF16", _BPE),
    "stablelm": Synthetic(
        "StableLmForCausalLM",
        "stablelm",
        "BF16",
        _BPE,
        {"partial_rotary_factor": 0.25, "use_qkv_bias": True, "tie_word_embeddings": False},
    ),
    "stablelm-head-norms": Synthetic(
        "StableLmForCausalLM",
        "stablelm",
        "BF16",
        _BPE,
        {
            "partial_rotary_factor": 0.25,
            "qk_layernorm": True,
            "use_parallel_residual": True,
            "tie_word_embeddings": False,
        },
    ),
    "olmo": Synthetic("OlmoForCausalLM", "olmo", "BF16", _BPE, {"clip_qkv": 8.0, "tie_word_embeddings": False}),
    "olmo2": Synthetic("Olmo2ForCausalLM", "olmo2", "BF16", _BPE, {"tie_word_embeddings": False}),
    "olmoe": Synthetic(
        "OlmoeForCausalLM",
        "olmoe",
        "BF16",
        _BPE,
        {"num_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 4},
    ),
    "granite": Synthetic("GraniteForCausalLM", "granite", "BF16", _BPE, _GRANITE),
    "granite-moe": Synthetic(
        "GraniteMoeForCausalLM",
        "granitemoe",
        "BF16",
        _BPE,
        {**_GRANITE, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "cohere": Synthetic("CohereForCausalLM", "cohere", "BF16", _BPE, {"logit_scale": 0.0625}),
    "cohere2": Synthetic(
        "Cohere2ForCausalLM",
        "cohere2",
        "BF16",
        _BPE,
        {"logit_scale": 0.0625, "sliding_window": 64, "num_hidden_layers": 4, "head_dim": 16, "rotary_pct": 1.0},
    ),
    "falcon": Synthetic("FalconForCausalLM", "falcon", "BF16", _BPE, _FALCON, shared=False),
    "falcon-grouped": Synthetic(
        "FalconForCausalLM",
        "falcon",
        "BF16",
        _BPE,
        {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "ffn_hidden_size": 256},
        shared=False,
    ),
    "deepseek-v2": Synthetic(
        "DeepseekV2ForCausalLM",
        "deepseek_v2",
        "BF16",
        _BPE,
        {**_DEEPSEEK, "n_routed_experts": 4, "n_shared_experts": 1, "q_lora_rank": 32, "n_group": 1, "topk_group": 1},
    ),
    "deepseek-v3": Synthetic(
        "DeepseekV3ForCausalLM",
        "deepseek_v3",
        "BF16",
        _BPE,
        {
            **_DEEPSEEK,
            "n_routed_experts": 8,
            "n_shared_experts": 1,
            "q_lora_rank": 32,
            "n_group": 2,
            "topk_group": 1,
            "scoring_func": "sigmoid",
            "tie_word_embeddings": False,
        },
    ),
    "bert": Synthetic("BertModel", "bert", "F32", _WPM, _BERT, shared=False, pooling="mean"),
    "roberta": Synthetic(
        "RobertaModel",
        "roberta",
        "F32",
        _BPE,
        {**_BERT, "max_position_embeddings": 130, "pad_token_id": 1, "bos_token_id": 1, "eos_token_id": 2},
        shared=False,
        pooling="cls",
    ),
    "xlm-roberta": Synthetic(
        "XLMRobertaModel",
        "xlm-roberta",
        "F32",
        _UGM,
        {**_BERT, "max_position_embeddings": 130, "pad_token_id": 1, "type_vocab_size": 1},
        shared=False,
    ),
    "modern-bert": Synthetic(
        "ModernBertModel",
        "modernbert",
        "F32",
        _BPE,
        {
            **_BERT,
            "num_hidden_layers": 4,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "cls_token_id": 1,
            "sep_token_id": 2,
            "max_position_embeddings": 256,
            "norm_eps": 1e-5,
            "layer_norm_eps": 1e-5,
        },
        shared=False,
    ),
    "nomic-bert": Synthetic(
        "NomicBertModel",
        "nomic_bert",
        "F32",
        _WPM,
        {
            "n_embd": 64,
            "n_inner": 96,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 8192,
            "vocab_size": 520,
            "type_vocab_size": 2,
            "layer_norm_epsilon": 1e-12,
            "rotary_emb_base": 1000,
            "rotary_emb_fraction": 1.0,
            "rotary_emb_interleaved": False,
            "rotary_emb_scale_base": None,
            "activation_function": "swiglu",
            "causal": False,
            "qkv_proj_bias": False,
            "mlp_fc1_bias": False,
            "mlp_fc2_bias": False,
            "prenorm": False,
        },
        shared=False,
    ),
    "t5-encoder": Synthetic(
        "T5EncoderModel",
        "t5",
        "F32",
        "unigram_model",
        {
            "d_model": 64,
            "d_kv": 16,
            "d_ff": 96,
            "num_layers": 2,
            "num_heads": 4,
            "vocab_size": 520,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "feed_forward_proj": "gated-gelu",
            "n_positions": 512,
        },
        shared=False,
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


def config_of(synthetic: Synthetic) -> dict[str, Any]:
    common = _CONFIG if synthetic.shared else {}
    return {"architectures": [synthetic.architecture], "model_type": synthetic.model_type, **common, **synthetic.config}


def write_checkpoint(name: str, directory: Path) -> Path:
    """Write one of SYNTHETIC to ``directory``, which is returned."""
    write_checkpoint_files(name, directory)
    shapes = json.loads(SHAPES.read_text(encoding="utf-8"))[name]
    synthetic = SYNTHETIC[name]
    write_weights(directory, _weights(synthetic, shapes), shards=synthetic.shards)
    return directory


def write_checkpoint_files(name: str, directory: Path) -> None:
    """All but the weights."""
    synthetic = SYNTHETIC[name]
    directory.mkdir(parents=True, exist_ok=True)
    _write_json(directory / "config.json", config_of(synthetic))
    if synthetic.generation:
        _write_json(directory / "generation_config.json", synthetic.generation)
    if synthetic.card:
        (directory / "README.md").write_text(synthetic.card, encoding="utf-8")
    if synthetic.pooling:
        modules = [{"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]
        (directory / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
        (directory / "1_Pooling").mkdir()
        modes = {f"pooling_mode_{mode}": mode.startswith(synthetic.pooling) for mode in ("cls_token", "mean_tokens")}
        _write_json(directory / "1_Pooling" / "config.json", modes)
    _TOKENIZERS[synthetic.tokenizer](directory)


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


def _weights(synthetic: Synthetic, shapes: Mapping[str, list[int]]) -> dict[str, tuple[str, np.ndarray]]:
    # RandomState's stream is frozen for good, default_rng's is not.
    random = np.random.RandomState(1234)
    weights = {}
    for name in sorted(shapes):
        values = random.standard_normal(shapes[name]).astype("<f4") * np.float32(0.1)
        if len(shapes[name]) == 1 and name.endswith(".weight"):  # a norm's
            values += np.float32(1)
        if synthetic.dtype == "BF16":
            values = (values.view("<u4") >> 16).astype("<u2")
        weights[name] = (synthetic.dtype, values.astype(_STORED[synthetic.dtype]))
    return weights


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


# SentencePiece's compiled form of: full-width A and B, the ligature fi, an ellipsis and e with acute to what NFKD makes
# of each, and every kind of space (no-break, thin, ideographic, tab, ends of lines) to the plain one.
_CHARSMAP = (
    "eNol03XMllUUAPDzvgMGbPAXSksYIz9aUFARA6Sku1NABUQR+/sECemS7u7ubtkAKaWVcuimqGCA/Xvhbr+dc+/ZznO359zIFBGF"
    "I7Jli8ieOVIrfXbBiBx5I5bYZ7dPL5yMYcUjkqm8QDLSn4pYnjUZGeo5nc0Rs4hZmSt/QJNc5OZBtIo85Ccf2sf21ckoJD5EkftX"
    "iIcpyqM8wsI1EY+JPh3FKEkJSlOKMqRRjrJUoDyVqEhlHucJqlCVJ3H9qMYzPM2zVOc5avACz1OTF3mJWtShNvWoy8vUpyENaEwj"
    "mtKE5jSjJS1oTSva0ob2tKMjHehMJ7rShe50owev0IuevMar9OZ1+tKHfrzBW7zJ2/TnHQbwHu/yAe/zER+SkfrpDORjPmEQQxjM"
    "MIYynE8ZyQhGM4qxjGE845jIBCbxGVOYzDSmMoPpzGImc5jNPOaygPksSs0AS1jMMpayguWsYiXGJFazjrVsYD2b2MgWNrONrexI"
    "zR+72MkedrOPvRxgP4c4yGE+T9U2J2LfmEQclR/hC45xguOc4iRfcpozfMU5znKB81ziIt/wNVe4zDWu8i3XucFPeRLxvfhdqjY0"
    "EdfSE/Gj/IdUjZv8ws/c5ha/8St/8Dt3ucNf/Mk//M1//Hvv7aWlpXkFNaLrkYzo1iP+B6BLkX8="
)
CHARSMAP = base64.b64encode(zlib.decompress(base64.b64decode(_CHARSMAP))).decode()

_WORDS = [
    "the",
    "ing",
    "and",
    "of",
    "to",
    "in",
    "is",
    "it",
    "for",
    "on",
    "with",
    "as",
    "at",
    "by",
    "this",
    "that",
    "from",
    "model",
    "token",
    "llama",
    "who",
    "what",
    "are",
    "you",
    "1",
    "2",
    "3",
]


def _write_wordpiece(directory: Path) -> None:
    """BERT's: special tokens, single characters at the start of a word and within, a few words."""
    characters = [chr(code) for code in (*range(33, 65), *range(91, 127), *range(0x3B1, 0x3CA), *range(0x430, 0x450))]
    characters += [chr(code) for code in range(0x4E00, 0x4E20)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{c}" for c in characters)]
    vocabulary += [word for word in _WORDS if len(word) > 1] + ["##ing", "##er", "##s2"]
    specials = {text: number for number, text in enumerate(vocabulary[:5])}
    tokenizer = {
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 16, "strategy": "LongestFirst", "stride": 0},
        "padding": None,
        "added_tokens": [_added(number, text) for text, number in specials.items()],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": _template("[CLS]", 2, "[SEP]", 3),
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {text: number for number, text in enumerate(vocabulary)},
        },
    }
    _write_json(directory / "tokenizer.json", tokenizer)
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"} | {f"{kind}_token": text for kind, text in names.items()}
    _write_json(directory / "tokenizer_config.json", settings)


def _write_unigram(directory: Path) -> None:
    """XLM-R's: log probabilities instead of merges, U+2581 for a space."""
    pieces = [["<s>", 0.0], ["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0]]
    pieces += [[text, score] for text, score in _unigram_pieces()]
    mask = len(pieces)
    pieces.append(["<mask>", 0.0])
    specials = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": mask}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(number, text) for text, number in specials.items()],
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": CHARSMAP},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "WhitespaceSplit"},
                {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True},
            ],
        },
        "post_processor": _template("<s>", 0, "</s>", 2),
        "decoder": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True},
        "model": {"type": "Unigram", "unk_id": 3, "vocab": pieces, "byte_fallback": False},
    }
    _write_json(directory / "tokenizer.json", tokenizer)
    settings = {
        "tokenizer_class": "XLMRobertaTokenizer",
        "clean_up_tokenization_spaces": True,
        "add_prefix_space": True,
    }
    names = {"bos": "<s>", "cls": "<s>", "eos": "</s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"}
    _write_json(directory / "tokenizer_config.json", settings | {f"{kind}_token": text for kind, text in names.items()})


def _write_unigram_model(directory: Path) -> None:
    """T5's: a SentencePiece model, written field by field as sentencepiece_model.proto describes it."""
    pieces = [("<pad>", 0.0, 3), ("</s>", 0.0, 3), ("<unk>", 0.0, 2)]
    pieces += [(text, score, 1) for text, score in _unigram_pieces()]
    model = b""
    for text, score, kind in pieces:
        model += _field(1, _field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18" + bytes([kind]))
    model += _field(
        2, b"\x18\x01" + b"\xc0\x02\x02" + b"\xc8\x02" + b"\xff" * 9 + b"\x01" + b"\xd0\x02\x01" + b"\xd8\x02\x00"
    )
    model += _field(3, _field(1, b"test") + _field(2, base64.b64decode(CHARSMAP)) + b"\x18\x01\x20\x01\x28\x01")
    (directory / "spiece.model").write_bytes(model)
    settings = {"tokenizer_class": "T5Tokenizer", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    _write_json(directory / "tokenizer_config.json", settings | {"extra_ids": 0})


def _unigram_pieces() -> list[tuple[str, float]]:
    characters = [chr(code) for code in (0x2581, *range(33, 127), *range(0x3B1, 0x3CA), *range(0x430, 0x450))]
    pieces = [(character, -8.0 - place / 64) for place, character in enumerate(characters)]
    return pieces + [(f"\u2581{word}", -4.0 - place / 16) for place, word in enumerate(_WORDS)] + [("ing", -5.0)]


def _field(number: int, content: bytes) -> bytes:
    length, encoded = len(content), b""
    while length > 0x7F:
        encoded += bytes([length & 0x7F | 0x80])
        length >>= 7
    return bytes([number << 3 | 2]) + encoded + bytes([length]) + content


def _added(number: int, text: str, *, special: bool = True) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": number, "content": text, "special": special, **plain}


def _template(first: str, first_id: int, last: str, last_id: int) -> dict[str, Any]:
    """[CLS] A [SEP] B [SEP]"""
    before, after = {"SpecialToken": {"id": first, "type_id": 0}}, {"SpecialToken": {"id": last, "type_id": 0}}
    one, two = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}
    tokens = {
        text: {"id": text, "ids": [number], "tokens": [text]} for text, number in ((first, first_id), (last, last_id))
    }
    return {
        "type": "TemplateProcessing",
        "single": [before, one, after],
        "pair": [before, one, after, two, after],
        "special_tokens": tokens,
    }


def _write_json(path: Path, document: object) -> None:
    path.write_text(json.dumps(document, ensure_ascii=False, indent=1), encoding="utf-8")


_TOKENIZERS = {
    _SPM: _write_sentencepiece,
    _BPE: _write_byte_level_bpe,
    _WPM: _write_wordpiece,
    _UGM: _write_unigram,
    "unigram_model": _write_unigram_model,
}
