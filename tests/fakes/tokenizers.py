"""tokenizer.json files as model families publish them, trained on the texts of the parity gate.

``trained`` learns merges within the words that the splitting rule makes, as a family does. ``trained_across`` learns
them across everything: with such a vocabulary any other place to split shows in the ids.
"""

import json
from pathlib import Path
from typing import Any

import gguf
from tokenizers import Tokenizer, models, trainers
from tokenizers.pre_tokenizers import ByteLevel

from modelpack.convert import parity
from modelpack.convert.special_tokens import SpecialTokens

END = "<|endoftext|>"

Json = dict[str, Any]


def split(regex: str, behavior: str = "Isolated", invert: bool = False) -> Json:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert}


def byte_level(*, use_regex: bool = False, add_prefix_space: bool = False) -> Json:
    return {"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": True, "use_regex": use_regex}


def digits(individual: bool) -> Json:
    return {"type": "Digits", "individual_digits": individual}


def punctuation(behavior: str) -> Json:
    return {"type": "Punctuation", "behavior": behavior}


def sequence(*steps: Json) -> Json:
    return {"type": "Sequence", "pretokenizers": list(steps)}


def trained(pre_tokenizer: Json, *, ignore_merges: bool = False) -> Json:
    return _train(pre_tokenizer, pre_tokenizer, ignore_merges)


def trained_across(pre_tokenizer: Json, *, ignore_merges: bool = False) -> Json:
    return _train(byte_level(), pre_tokenizer, ignore_merges)


def _train(while_training: Json, afterwards: Json, ignore_merges: bool) -> Json:
    empty = json.loads(Tokenizer(models.BPE()).to_str())
    tokenizer = Tokenizer.from_str(json.dumps(empty | {"pre_tokenizer": while_training}))
    trainer = trainers.BpeTrainer(
        vocab_size=6000,
        min_frequency=1,
        initial_alphabet=ByteLevel.alphabet(),
        special_tokens=[END],
        show_progress=False,
    )
    tokenizer.train_from_iterator(parity.texts(), trainer)
    document: Json = json.loads(tokenizer.to_str())
    document["pre_tokenizer"] = afterwards
    document["model"]["ignore_merges"] = ignore_merges
    document["decoder"] = byte_level()
    return document


def trained_on_characters(
    normalizer: Json | None, while_training: Json, afterwards: Json | None, *, falls_back: bool = False
) -> Json:
    """Merges of characters, as SentencePiece learns them; with ``falls_back`` rare ones are bytes."""
    empty = json.loads(Tokenizer(models.BPE()).to_str())
    tokenizer = Tokenizer.from_str(json.dumps(empty | {"normalizer": normalizer, "pre_tokenizer": while_training}))
    octets = [f"<0x{octet:02X}>" for octet in range(256)] if falls_back else []
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        min_frequency=1,
        limit_alphabet=300 if falls_back else 2000,
        special_tokens=[END, *octets],
        show_progress=False,
    )
    tokenizer.train_from_iterator(parity.texts(), trainer)
    document: Json = json.loads(tokenizer.to_str())
    document["added_tokens"] = document["added_tokens"][:1]
    document["pre_tokenizer"] = afterwards
    document["model"]["byte_fallback"] = falls_back
    return document


def write_vocabulary(
    vocabulary: Any, path: Path, *, special: SpecialTokens | None = None, name: str | None = None
) -> Path:
    """A GGUF file with nothing but a vocabulary."""
    writer = gguf.GGUFWriter(path, "llama")
    if name is not None:
        writer.add_name(name)
    writer.add_context_length(128)
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.merges is not None:
        writer.add_token_merges(vocabulary.merges)
    if vocabulary.add_space_prefix is not None:
        writer.add_add_space_prefix(vocabulary.add_space_prefix)
    for key, value in vocabulary.settings:
        getattr(writer, f"add_{key}")(value)
    if special is not None:
        for key, is_done in special.normalizer.items():
            writer.add_bool(f"tokenizer.ggml.normalizer.{key}", is_done)
        if "unk" in special.ids:
            writer.add_unk_token_id(special.ids["unk"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path
