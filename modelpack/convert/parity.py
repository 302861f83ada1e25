"""Whether llama.cpp tokenizes as the checkpoint does: the texts to try, what they must become, and the comparison.

llama.cpp implements every tokenizer anew, and a wrong name for a splitting rule, a missing score or one space too
many makes a model that loads and talks nonsense. Asking llama.cpp is left to ``modelpack.engine.tokenize``.
"""

import json
import unicodedata
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from modelpack.convert.checkpoint import Checkpoint
from modelpack.convert.pre_tokenizer import load_tokenizer, refusing_what_tokenizers_refuses
from modelpack.convert.tokenizer import load_sentencepiece
from modelpack.convert.vocabulary import MAX_TOKENS, SPACE
from modelpack.errors import TokenizerMismatchError

_SHOWN = 3
_ADDED = 512
# XLM-R counts its pieces one up from its SentencePiece model, but for those that both begin with.
_MODELS = {"tokenizer.model": 0, "spiece.model": 0, "sentencepiece.bpe.model": 1}

CUT_AT_MARKS = frozenset({"gpt-4o", "kimi-k2", "tekken"})
"""Ways to split text in which llama.cpp, in every model of the kind, cuts words at combining marks: vowel signs of
Hindi or Thai, accents that stand alone. Texts with such marks are not compared, and whoever converts is told."""

Tokenized = list[tuple[str, list[int]]]


def expected(checkpoint: Checkpoint, *, pre: str | None = None, rows: int | None = None) -> Tokenized:
    """Texts in many scripts, and the added tokens, with the ids that the checkpoint's own tokenizer gives them; special
    tokens are not added where the text has none. ``pre`` is the name of the way to split text that llama.cpp was told,
    ``rows`` the number of tokens that were written (by default as many as config.json says, or all).

    Empty where the checkpoint has no tokenizer that can be asked. Raises InvalidCheckpointError.
    """
    content = checkpoint.read_bytes("tokenizer.json")
    if content is not None:
        tokenizer = load_tokenizer(content)
        tried = [text for text in texts() if not _is_beyond_llama_cpp(text, tokenizer, pre)]
        tried += _added_tokens(tokenizer, checkpoint.config.get("vocab_size") if rows is None else rows)
        with refusing_what_tokenizers_refuses():
            encoded = tokenizer.encode_batch(tried, add_special_tokens=False)
        return [(text, encoding.ids) for text, encoding in zip(tried, encoded, strict=True)]
    for name, shift in _MODELS.items():
        model = checkpoint.read_bytes(name)
        if model is not None:
            processor = load_sentencepiece(name, model)
            unknown = processor.unk_id()
            return [
                (text, [3 if shift and token == unknown else token + shift for token in processor.Encode(text)])
                for text in texts()
            ]
    return []


def check(wanted: Tokenized, actual: Sequence[Sequence[int]]) -> None:
    """Raises TokenizerMismatchError, which shows the first few, where llama.cpp's ids are others."""
    wrong = [(text, ids, list(got)) for (text, ids), got in zip(wanted, actual, strict=True) if ids != list(got)]
    if wrong:
        shown = "; ".join(f"{text[:40]!r} becomes {got[:16]}, not {ids[:16]}" for text, ids, got in wrong[:_SHOWN])
        raise TokenizerMismatchError(
            f"llama.cpp tokenizes {len(wrong)} of {len(wanted)} texts otherwise than the checkpoint does: {shown}",
            share=f"{len(wrong)}/{len(wanted)}",
        )


def _has_marks(text: str) -> bool:
    return any(unicodedata.category(character).startswith("M") for character in text)


def _added_tokens(tokenizer: Any, rows: object) -> list[str]:
    """Each added token that the model has a row for, alone and behind a letter; but spaces, however written."""
    rows = rows if type(rows) is int else MAX_TOKENS
    added = [token.content for number, token in sorted(tokenizer.get_added_tokens_decoder().items()) if number < rows]
    return [
        text
        for content in added[:_ADDED]
        if content.strip() and SPACE not in content
        for text in (content, "a" + content)
    ]


def _is_beyond_llama_cpp(text: str, tokenizer: Any, pre: str | None) -> bool:
    """Whether llama.cpp treats a text otherwise in every model of a kind, however it was converted."""
    kind = type(tokenizer.model).__name__
    if pre in CUT_AT_MARKS:
        return _has_marks(text)
    if kind == "BPE" and "Metaspace(" in (rule := repr(tokenizer.pre_tokenizer)) and "scheme=never" not in rule:
        # Metaspace puts no space before a text that has one; SentencePiece does, and llama.cpp does as SentencePiece.
        return text[0].isspace()
    return kind == "WordPiece" and (_loses_letters(text) or _is_lowered_by_half(text, tokenizer.normalizer))


def _loses_letters(text: str) -> bool:
    """Whether llama.cpp's WordPiece drops more than accents: vowel signs, and all but the first of Hangul's letters."""
    return any("\uac00" <= character <= "\ud7a3" or unicodedata.category(character) == "Mc" for character in text)


def _is_lowered_by_half(text: str, normalizer: Any) -> bool:
    """Whether a letter becomes one and an accent that stays: llama.cpp makes only the letter of Turkish's dotted I."""
    return "\u0130" in text and normalizer is not None and "\u0307" in normalizer.normalize_str("\u0130")


@cache
def texts() -> tuple[str, ...]:
    """What is tried."""
    document = json.loads(files(__package__).joinpath("parity_texts.json").read_text(encoding="utf-8"))
    return tuple(document["texts"])
