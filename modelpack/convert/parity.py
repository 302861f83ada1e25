"""Whether llama.cpp tokenizes as the checkpoint does: the texts to try, what they must become, and the comparison.

llama.cpp implements every tokenizer anew, and a wrong name for a splitting rule, a missing score or one space too
many makes a model that loads and talks nonsense. Asking llama.cpp is left to ``modelpack.engine.tokenize``.
"""

import json
import unicodedata
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from modelpack.convert.checkpoint import Checkpoint
from modelpack.convert.pre_tokenizer import load_tokenizer
from modelpack.convert.tokenizer import load_sentencepiece
from modelpack.errors import ConversionError

_SHOWN = 3
# XLM-R counts its pieces one up from its SentencePiece model, but for those that both begin with.
_MODELS = {"tokenizer.model": 0, "spiece.model": 0, "sentencepiece.bpe.model": 1}

_MARKS = "all of them have combining marks, at which some of its ways to split text, tekken and gpt-4o, cut words"

Tokenized = list[tuple[str, list[int]]]


def expected(checkpoint: Checkpoint) -> Tokenized:
    """Texts in many scripts with the ids that the checkpoint's own tokenizer gives them, special tokens not added.

    Empty where the checkpoint has no tokenizer that can be asked. Raises InvalidCheckpointError.
    """
    content = checkpoint.read_bytes("tokenizer.json")
    if content is not None:
        tokenizer = load_tokenizer(content)
        tried = list(texts())
        if type(tokenizer.model).__name__ == "WordPiece":
            tried = [text for text in tried if not _loses_letters(text)]
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
    """Raises ConversionError, which shows the first few, where llama.cpp's ids are others."""
    wrong = [(text, ids, list(got)) for (text, ids), got in zip(wanted, actual, strict=True) if ids != list(got)]
    if wrong:
        shown = "; ".join(f"{text[:40]!r} becomes {got[:16]}, not {ids[:16]}" for text, ids, got in wrong[:_SHOWN])
        reason = "" if not all(_has_marks(text) for text, _, _ in wrong) else f" ({_MARKS})"
        raise ConversionError(
            f"llama.cpp tokenizes {len(wrong)} of {len(wanted)} texts otherwise than the checkpoint does{reason}:"
            f" {shown}"
        )


def _has_marks(text: str) -> bool:
    return any(unicodedata.category(character).startswith("M") for character in text)


def _loses_letters(text: str) -> bool:
    """Whether llama.cpp's WordPiece drops more than accents: vowel signs, and all but the first of Hangul's letters.

    That is so in every model of this kind, however it was converted.
    """
    return any("\uac00" <= character <= "\ud7a3" or unicodedata.category(character) == "Mc" for character in text)


@cache
def texts() -> tuple[str, ...]:
    """What is tried."""
    document = json.loads(files(__package__).joinpath("parity_texts.json").read_text(encoding="utf-8"))
    return tuple(document["texts"])
