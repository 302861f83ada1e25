"""What llama.cpp is known to do otherwise than a tokenizer.json says, however it is converted.

Each limit comes with the change that makes ``tokenizers`` do as llama.cpp does, so that what it makes of a text is
known exactly and anything else is still a mistake. From ``llama-vocab.cpp`` in llama-cpp-python 0.3.36: a GGUF file
says which tokens there are and of what kind, and neither which spaces beside them are theirs nor where one is put.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from modelpack.convert.checkpoint import Checkpoint
from modelpack.convert.sentencepiece_model import SentencePieceModel
from modelpack.convert.splitting import WHITESPACE
from modelpack.convert.unigram import squeezes
from modelpack.convert.vocabulary import SPACE, as_dict, prepends_space, steps

CUT_AT_MARKS = frozenset({"gpt-4o", "kimi-k2", "tekken"})
"""Ways to split text in which llama.cpp, in every model of the kind, cuts words at combining marks: vowel signs of
Hindi or Thai, accents that stand alone."""

OVERLAP = "looks for the longest added token first, where the checkpoint's tokenizer takes the one that begins first"

Json = dict[str, Any]

# By kind of model, the normalizers that llama.cpp has, or that change next to nothing.
_UNDERSTOOD = {
    "BPE": ("NFC", "Prepend", "Replace", "Lowercase"),
    "Unigram": ("NFC", "Prepend", "Replace", "Precompiled", "Strip"),
    "WordPiece": ("BertNormalizer", "Lowercase", "StripAccents", "NFD"),
}

# Letters of one case and marks, as o200k's family has them: in llama.cpp the marks are missing.
_MARKED_WORD = re.compile(r"(?<=\\p\{Lo\})\\p\{M\}")


@dataclass(frozen=True, slots=True)
class Limit:
    """``reason`` continues "llama.cpp ..."; ``change`` makes of a tokenizer.json one that does as llama.cpp does."""

    reason: str
    change: Callable[[Json], Json]


def find_limits(tokenizer: Mapping[str, Any], pre: str | None) -> list[Limit]:
    """Those that this tokenizer.json meets. ``pre`` is the name of the way to split text that llama.cpp was told."""
    limits = []
    stripping = [entry for entry in _added(tokenizer) if entry.get("lstrip") or entry.get("rstrip")]
    if stripping:
        shown = str(stripping[-1].get("content"))[:40]
        limits.append(Limit(f"keeps the spaces beside added tokens such as {shown!r} that are theirs", _kept_spaces))
    kind = as_dict(tokenizer.get("model")).get("type")
    has_metaspace = any(step.get("type") == "Metaspace" for step in steps(tokenizer, "pre_tokenizer"))
    if kind == "Unigram" and squeezes(tokenizer):
        limits.append(Limit("drops the spaces at the end of a text and before an added token", _stripped))
    if kind == "BPE" and has_metaspace and prepends_space(tokenizer):
        reason = "puts a space before every text and behind every added token, also where the checkpoint's tokenizer"
        limits.append(Limit(f"{reason} puts none", _always_prefixed))
    if kind == "WordPiece" or pre == WHITESPACE:
        if _strips_accents(tokenizer):
            if kind == "WordPiece":
                limits.append(
                    Limit("drops vowel signs, and of a Korean syllable all but the first letter", _cut_letters)
                )
        elif _lowers(tokenizer):
            limits.append(Limit("makes a plain i of \u0130, where the checkpoint's tokenizer keeps the dot", _undotted))
    if pre in CUT_AT_MARKS:
        reason = (
            f"splits text the {pre} way and cuts words at combining marks: in scripts such as Devanagari and Thai it"
            " gives this model other tokens than it was trained with"
        )
        limits.append(Limit(reason, _cut_at_marks))
    return limits


def normalization(checkpoint: Checkpoint) -> str | None:
    """What a checkpoint's tokenizer does to text before it is split that llama.cpp never does, for an error to name."""
    tokenizer = checkpoint.read_json("tokenizer.json")
    if tokenizer is not None:
        kinds = [str(step.get("type")) for step in steps(tokenizer, "normalizer") if step]
        odd = [
            kind for kind in kinds if kind not in _UNDERSTOOD.get(str(as_dict(tokenizer.get("model")).get("type")), ())
        ]
        return f"tokenizer.json normalizes text with {odd[0][:40]}" if odd else None
    content = checkpoint.read_bytes("tokenizer.model")
    if content is None:
        return None
    rules = SentencePieceModel.load("tokenizer.model", content).rules
    if rules.is_unigram or not (rules.charsmap or rules.squeezes):
        return None
    does = "replaces characters" if rules.charsmap else "squeezes spaces"
    return f"tokenizer.model {does} (it was trained with normalization_rule_name or remove_extra_whitespaces)"


def _added(tokenizer: Mapping[str, Any]) -> list[Json]:
    entries = tokenizer.get("added_tokens")
    return [as_dict(entry) for entry in entries] if isinstance(entries, list) else []


def _lowers(tokenizer: Mapping[str, Any]) -> bool:
    return any(
        step.get("type") == "Lowercase" or step.get("lowercase") is True for step in steps(tokenizer, "normalizer")
    )


def _strips_accents(tokenizer: Mapping[str, Any]) -> bool:
    for step in steps(tokenizer, "normalizer"):
        stripped = step.get("strip_accents")
        if step.get("type") == "BertNormalizer" and bool(step.get("lowercase") if stripped is None else stripped):
            return True
        if step.get("type") == "StripAccents":
            return True
    return False


def _kept_spaces(tokenizer: Json) -> Json:
    return {**tokenizer, "added_tokens": [{**one, "lstrip": False, "rstrip": False} for one in _added(tokenizer)]}


def _always_prefixed(tokenizer: Json) -> Json:
    """A normalizer, as Llama 2's, in the place of Metaspace, which looks at what is there already."""
    is_split = any(
        step.get("type") == "Metaspace" and step.get("split") is not False for step in steps(tokenizer, "pre_tokenizer")
    )
    normalizers = [
        *(step for step in steps(tokenizer, "normalizer") if step),
        {"type": "Prepend", "prepend": SPACE},
        {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
    ]
    words = {"type": "Split", "pattern": {"String": SPACE}, "behavior": "MergedWithNext", "invert": False}
    pre_tokenizers = [
        words if step.get("type") == "Metaspace" else step
        for step in steps(tokenizer, "pre_tokenizer")
        if is_split or step.get("type") != "Metaspace"
    ]
    return {
        **tokenizer,
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre_tokenizers} if pre_tokenizers else None,
    }


def _cut_letters(tokenizer: Json) -> Json:
    """Behind what takes syllables apart and accents away."""
    normalizers = [step for step in steps(tokenizer, "normalizer") if step]
    syllables = "(?<=[\u1100-\u1112])[\u1161-\u1175][\u11a8-\u11c2]?"
    cuts = [{"type": "Replace", "pattern": {"Regex": found}, "content": ""} for found in (syllables, r"\p{M}")]
    return {**tokenizer, "normalizer": {"type": "Sequence", "normalizers": [*normalizers, *cuts]}}


def _undotted(tokenizer: Json) -> Json:
    normalizers = [step for step in steps(tokenizer, "normalizer") if step]
    plain = {"type": "Replace", "pattern": {"String": "\u0130"}, "content": "I"}
    return {**tokenizer, "normalizer": {"type": "Sequence", "normalizers": [plain, *normalizers]}}


def _stripped(tokenizer: Json) -> Json:
    normalizers = [step for step in steps(tokenizer, "normalizer") if step]
    strip = {"type": "Replace", "pattern": {"Regex": f"[ {SPACE}]+$"}, "content": ""}
    return {**tokenizer, "normalizer": {"type": "Sequence", "normalizers": [*normalizers, strip]}}


def _cut_at_marks(tokenizer: Json) -> Json:
    return {**tokenizer, "pre_tokenizer": _without_marks(tokenizer.get("pre_tokenizer"))}


def _without_marks(step: object) -> object:
    if isinstance(step, list):
        return [_without_marks(one) for one in step]
    if not isinstance(step, dict):
        return step
    if isinstance(expression := as_dict(step.get("pattern")).get("Regex"), str):
        return {**step, "pattern": {"Regex": _MARKED_WORD.sub("", expression)}}
    return {key: _without_marks(value) for key, value in step.items()}
