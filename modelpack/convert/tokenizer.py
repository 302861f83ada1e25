"""SentencePiece and byte-level BPE vocabularies, rebuilt from the checkpoint's own files without transformers.

Kinds: ``sentencepiece`` (tokenizer.model), ``sentencepiece_json`` (the same, shipped as tokenizer.json alone) and
``byte_level_bpe`` (tokenizer.json, GPT-2's kind). Each gives a Vocabulary, or None when the checkpoint has no such
tokenizer.
"""

import re
from dataclasses import replace

from gguf import TokenType

from modelpack.convert.checkpoint import Checkpoint
from modelpack.convert.listed_tokens import put_listed
from modelpack.convert.pre_tokenizer import find_pre_tokenizer
from modelpack.convert.sentencepiece_model import SentencePieceModel, refuse_fallback
from modelpack.convert.splitting import WHITESPACE
from modelpack.convert.unigram import unigram_vocabulary
from modelpack.convert.vocabulary import (
    SPACE,
    Table,
    Vocabulary,
    added_tokens,
    as_dict,
    prepends_space,
    read_merges,
    token_ids,
    vocabulary_size,
)

SPACED = "\u0120"  # a space in GPT-2's alphabet of bytes
_TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")


def sentencepiece(checkpoint: Checkpoint, size: int | None) -> Vocabulary | None:
    """tokenizer.model. Raises InvalidCheckpointError when SentencePiece cannot read it, UnsupportedError for a Unigram
    model that llama.cpp has nothing like.
    """
    content = checkpoint.read_bytes("tokenizer.model")
    if content is None or is_tiktoken(content):
        return None
    model = SentencePieceModel.load("tokenizer.model", content)
    processor = model.processor
    table = model.read_pieces(size)
    for token in model.user_defined:
        if token >= min(processor.vocab_size(), table.size):
            break
        text = processor.IdToPiece(token).replace(SPACE, " ")
        table.put(token, text, TokenType.USER_DEFINED, processor.GetScore(token))
    put_listed(table, checkpoint, settings_rule=True)
    settings = checkpoint.read_json("tokenizer_config.json") or {}
    if model.rules.is_unigram:
        # (Upstream calls it llama, too, and so joins pieces by their scores, which are no ranks.)
        refuse_fallback("tokenizer.model", model.rules.falls_back)
        found = unigram_vocabulary(checkpoint, table, model.rules)
        return replace(found, unknown=processor.unk_id(), adds={"bos": True, "eos": False})
    prefix = settings.get("add_prefix_space")
    if prefix is None and not processor.EncodeAsPieces("a")[0].startswith(SPACE):
        prefix = False  # llama.cpp would add one where nothing is said
    return table.vocabulary("llama", "default", add_space_prefix=prefix if isinstance(prefix, bool) else None)


def is_tiktoken(model: bytes) -> bool:
    """Whether a tokenizer.model is one of tiktoken's: a line for each token, its bytes in base64 and its rank."""
    return _TIKTOKEN.match(model) is not None


def sentencepiece_json(checkpoint: Checkpoint, size: int | None) -> Vocabulary | None:
    """SentencePiece BPE in the clothes of tokenizer.json: merges instead of scores, ``byte_fallback`` set.

    A token's score is the negative rank of the first merge that makes it, so that llama.cpp merges in the same order.
    (Upstream gives every token the same score here, and with it a model that cannot spell.)
    """
    tokenizer = checkpoint.read_json("tokenizer.json")
    model = as_dict((tokenizer or {}).get("model"))
    if tokenizer is None or model.get("type") != "BPE" or model.get("byte_fallback") is not True:
        return None
    vocabulary = token_ids(model)
    ranks: dict[str, int] = {}
    for left, right in read_merges(model):
        ranks.setdefault(left + right, len(ranks))
    table = Table(size or vocabulary_size(tokenizer, vocabulary))
    for text, token in vocabulary.items():
        kind, score = TokenType.NORMAL, -float(ranks.get(text, len(ranks)))
        if text == model.get("unk_token"):
            kind, score = TokenType.UNKNOWN, 0.0
        elif _is_byte(text):
            kind, score = TokenType.BYTE, 0.0
        table.put(token, text, kind, score)
    for entry in added_tokens(tokenizer):
        table.put_added(entry.get("id"), entry)
    settings = checkpoint.read_json("tokenizer_config.json") or {}
    prefix = settings.get("add_prefix_space")
    if not isinstance(prefix, bool):
        prefix = prepends_space(tokenizer)
    return table.vocabulary("llama", "default", add_space_prefix=prefix)


def byte_level_bpe(checkpoint: Checkpoint, size: int | None) -> Vocabulary | None:
    """GPT-2's kind, and those few with merges of characters that llama.cpp has a way to split for.

    Raises UnsupportedError when its way to split text is none of llama.cpp's.
    """
    tokenizer = checkpoint.read_json("tokenizer.json")
    model = as_dict((tokenizer or {}).get("model"))
    if tokenizer is None or model.get("type") != "BPE":
        return None
    content = checkpoint.read_bytes("tokenizer.json") or b""
    vocabulary = token_ids(model)
    table = Table(size or vocabulary_size(tokenizer, vocabulary))
    falls_back = model.get("byte_fallback") is True
    for piece, token in vocabulary.items():
        table.put(token, piece, TokenType.BYTE if falls_back and _is_byte(piece) else TokenType.NORMAL, 0.0)
    pre, normalize = find_pre_tokenizer(content, tokenizer)
    added = added_tokens(tokenizer)
    texts = [entry["content"] for entry in added if not entry.get("normalized")]
    normalized = dict(zip(texts, normalize(texts), strict=True))
    for entry in added:
        text = entry["content"] if entry.get("normalized") else normalized[entry["content"]]
        table.put_added(entry["id"], {**entry, "content": text})
    # A space ends the first part of a merge to llama.cpp.
    merges = [f"{left.replace(' ', SPACED)} {right.replace(' ', SPACED)}" for left, right in read_merges(model)]
    return table.vocabulary(WHITESPACE if pre == WHITESPACE else "gpt2", pre, merges=merges)


def _is_byte(piece: str) -> bool:
    return len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")
