"""The way to split text that a BPE tokenizer.json spells out, and llama.cpp's name for it.

The same way can be spelled in many forms. All are brought into one: regular expressions whose matches stand alone, and
``bytes`` where text turns into GPT-2's alphabet or U+2581 where it stays characters and spaces are written so; then
they are looked up in ``splitting_rules.json``.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from modelpack.convert.vocabulary import SPACE, as_dict, read_merges, steps
from modelpack.errors import UnsupportedError

BYTES = "bytes"
WHITESPACE = "whitespace"
"""llama.cpp's name for what splits at spaces and drops them: a kind of vocabulary and a way to split text in one."""

# The ``regex`` crates' Punctuation is ASCII's with its symbols, and Unicode's; GPT-2's expression is ByteLevel's own.
_PUNCTUATION = r"[\p{P}!-/:-@\[-`{-~]"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_COVERS_ALL = ("|\\s+", "|\\s")  # with one of these as the last choice nothing is left between the matches
# How text is described that never becomes bytes.
_LINES, _WORDS = (SPACE, r"[^\n]+|[\n]+"), (r"\S+",)
_SPACE_WRITTEN = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_UNCOMPOSED = "NFC"  # llama.cpp composes nothing, and text comes composed nearly always


def name_by_rule(tokenizer: Mapping[str, Any]) -> str:
    """llama.cpp's name for how ``tokenizer``, a tokenizer.json, splits text.

    Raises UnsupportedError, which says what it is that llama.cpp cannot do.
    """
    described = _described_without_bytes(tokenizer) or _described(tokenizer)
    names = _names().get(described)
    if names is None:
        shown = ", ".join(repr(text if len(text) <= 60 else text[:60] + "...") for text in described[:4])
        raise _nameless(shown or "not at all")
    minding, ignoring = names.get("name"), names.get("ignoring_merges")
    is_ignoring = bool(as_dict(tokenizer.get("model")).get("ignore_merges"))
    name = (ignoring or minding) if is_ignoring else (minding or ignoring)
    if (name == ignoring) != is_ignoring and not all_tokens_are_merged(tokenizer):
        raise UnsupportedError(
            f"tokenizer.json's ignore_merges is {str(is_ignoring).lower()}, and llama.cpp has its way to split text"
            f" only the other way round ({name})"
        )
    return str(name)


def splits_at_spaces(tokenizer: Mapping[str, Any]) -> bool:
    """Whether text is words between spaces, which are dropped, and never bytes."""
    return _described_without_bytes(tokenizer) == _WORDS


def _described(tokenizer: Mapping[str, Any]) -> tuple[str, ...]:
    for step in steps(tokenizer, "normalizer"):
        if step.get("type") not in (None, _UNCOMPOSED):
            raise UnsupportedError(
                f"tokenizer.json normalizes text with {str(step['type'])[:40]}, which llama.cpp never does to text that"
                " it splits into bytes"
            )
    return tuple(text for step in _flat(steps(tokenizer, "pre_tokenizer")) for text in _describe(step))


def _described_without_bytes(tokenizer: Mapping[str, Any]) -> tuple[str, ...]:
    """The two ways in which text stays characters: spaces written as U+2581 and nothing split, as SentencePiece does
    it, or words between spaces. Nothing for any other.
    """
    normalizers = [step for step in steps(tokenizer, "normalizer") if step.get("type") not in (None, _UNCOMPOSED)]
    splits = [step for step in _flat(steps(tokenizer, "pre_tokenizer")) if step.get("type") is not None]
    if normalizers == [_SPACE_WRITTEN] and all(as_dict(step.get("pattern")) == {"String": " "} for step in splits):
        # llama.cpp splits at the ends of lines.
        return _LINES if _merges_within(tokenizer, lambda text: "\n" not in text or not text.strip("\n")) else ()
    if len(splits) == 1 and all(step == {"type": "Lowercase"} for step in normalizers):
        if splits[0] == {"type": "WhitespaceSplit"}:
            return _WORDS
        # llama.cpp does not split between words and punctuation, which makes no difference where no merge joins them.
        if splits[0] == {"type": "Whitespace"} and _merges_within(tokenizer, _is_one_word):
            return _WORDS
    return ()


def _merges_within(tokenizer: Mapping[str, Any], is_one: Callable[[str], bool]) -> bool:
    return all(is_one(left + right) for left, right in read_merges(as_dict(tokenizer.get("model"))))


def _is_one_word(text: str) -> bool:
    from tokenizers.pre_tokenizers import Whitespace

    return len(Whitespace().pre_tokenize_str(text)) == 1


def all_tokens_are_merged(tokenizer: Mapping[str, Any]) -> bool:
    """Whether each token is what its own characters are merged to, so that ``ignore_merges`` changes nothing."""
    from tokenizers import Tokenizer

    model = {**as_dict(tokenizer.get("model")), "ignore_merges": False, "dropout": None}
    bare = Tokenizer.from_str(json.dumps({"version": "1.0", "added_tokens": [], "model": model})).model
    added = {entry.get("content") for entry in tokenizer.get("added_tokens") or () if isinstance(entry, dict)}
    return all(
        [token.id for token in bare.tokenize(text)] == [number]
        for text, number in as_dict(model.get("vocab")).items()
        if text and text not in added
    )


def adds_bos_unasked(name: str) -> bool:
    """Whether llama.cpp begins texts with bos under this name wherever the file does not forbid it."""
    return name in _document()["adds_bos"]


def refuse_unequal(name: str) -> None:
    """Raises UnsupportedError where llama.cpp's code for a name is known to split otherwise than the rule does."""
    reason = _document()["unequal"].get(name)
    if reason is not None:
        raise UnsupportedError(f"llama.cpp does not split text as this tokenizer ({name}) does: {reason}")


def _flat(found: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for step in found:
        inner = step.get("pretokenizers")
        if step.get("type") == "Sequence" and isinstance(inner, list):
            yield from _flat([as_dict(one) for one in inner])
        else:
            yield step


def _describe(step: Mapping[str, Any]) -> tuple[str, ...]:
    """A step as regular expressions in their shortest spelling."""
    match step.get("type"):
        case "ByteLevel":
            if step.get("add_prefix_space", True):
                raise _nameless("a space is put before every text (ByteLevel with add_prefix_space)")
            return (_shortest(_GPT2), BYTES) if step.get("use_regex", True) else (BYTES,)
        case "Split":
            return (_shortest(_matched(step)),)
        case "Digits":
            return (r"\p{N}" if step.get("individual_digits") else r"\p{N}+",)
        case "Punctuation" if step.get("behavior") in ("Isolated", "Contiguous"):
            return (_PUNCTUATION if step["behavior"] == "Isolated" else _PUNCTUATION + "+",)
        case None:
            return ()
    raise _nameless(str(step.get("type"))[:40])


def _matched(step: Mapping[str, Any]) -> str:
    """The expression whose matches a Split step leaves standing alone."""
    pattern = as_dict(step.get("pattern"))
    literal = pattern.get("String")
    expression = re.escape(literal) if isinstance(literal, str) else str(pattern.get("Regex"))
    # Whether matches or what lies between them is meant makes no difference where both stand alone.
    is_all_kept = step.get("behavior") == "Removed" and step.get("invert") is True and expression.endswith(_COVERS_ALL)
    if step.get("behavior") != "Isolated" and not is_all_kept:
        raise _nameless(f"Split with {step.get('behavior')}")
    return expression


def _nameless(what: str) -> UnsupportedError:
    return UnsupportedError(f"tokenizer.json splits text in a way that llama.cpp has no name for: {what}")


def _shortest(expression: str) -> str:
    """One spelling of expressions that match alike."""
    for long, short in _document()["spellings"]:
        expression = expression.replace(long, short)
    # A space that nothing matches stands alone just as well.
    for end in _COVERS_ALL:
        if expression.endswith(r"|\s+(?!\S)" + end):
            return expression.removesuffix(end)
    return expression


@cache
def _names() -> dict[tuple[str, ...], dict[str, Any]]:
    return {tuple(_shortest(step) for step in rule["steps"]): rule for rule in reversed(_document()["rules"])}


@cache
def _document() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(
        files(__package__).joinpath("splitting_rules.json").read_text(encoding="utf-8")
    )
    return document
