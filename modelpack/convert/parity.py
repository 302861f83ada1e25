"""Whether llama.cpp tokenizes as the checkpoint does: the texts to try, what they must become, and the comparison.

llama.cpp implements every tokenizer anew, and a wrong name for a splitting rule, a missing score or one space too
many makes a model that loads and talks nonsense. Asking llama.cpp is left to ``modelpack.engine.tokenize``.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import combinations, pairwise
from typing import Any

from modelpack.convert.bounded_tokenizer import AddedToken, BoundedTokenizer
from modelpack.convert.checkpoint import Checkpoint
from modelpack.convert.limits import OVERLAP, Limit, find_limits
from modelpack.convert.listed_tokens import listed
from modelpack.convert.sentencepiece_model import SentencePieceModel
from modelpack.convert.vocabulary import MAX_TOKENS, SPACE
from modelpack.errors import InvalidCheckpointError, InvalidContentError, TokenizerMismatchError
from modelpack.oci import strict_json

_SHOWN = 3
_ADDED = 512
_NEIGHBOURED = 64
_LONGEST_SHARED = 64
# XLM-R counts its pieces one up from its SentencePiece model, but for those that both begin with.
_MODELS = {"tokenizer.model": 0, "spiece.model": 0, "sentencepiece.bpe.model": 1}

Tokenized = list[tuple[str, list[int]]]


@dataclass(frozen=True, slots=True)
class Trial:
    """A text and the ids that the checkpoint's own tokenizer gives it.

    ``known`` are others that llama.cpp may give it, each with what it is that llama.cpp does otherwise: there is no
    way to tell it, and real models are like that.
    """

    text: str
    ids: list[int]
    known: tuple[tuple[list[int], str], ...] = ()


def trials(checkpoint: Checkpoint, *, pre: str | None = None, rows: int | None = None) -> list[Trial]:
    """Texts in many scripts, and the added tokens, alone and in company; special tokens are not added where the text
    has none. ``pre`` is the name of the way to split text that llama.cpp was told,
    ``rows`` the number of tokens that were written (by default as many as config.json says, or all).

    Empty where the checkpoint has no tokenizer that can be asked. Raises InvalidCheckpointError.
    """
    content = checkpoint.read_bytes("tokenizer.json")
    if content is not None:
        return _of_json(content, pre, checkpoint.config.get("vocab_size") if rows is None else rows)
    for name, shift in _MODELS.items():
        model = checkpoint.read_bytes(name)
        if model is not None:
            return _of_model(SentencePieceModel.load(name, model).processor, shift, listed(checkpoint), rows)
    return []


def expected(checkpoint: Checkpoint, *, pre: str | None = None, rows: int | None = None) -> Tokenized:
    """Of the trials those in which llama.cpp has to give the checkpoint's own ids."""
    return [(one.text, one.ids) for one in trials(checkpoint, pre=pre, rows=rows) if not one.known]


def compare(
    tried: Sequence[Trial], actual: Sequence[Sequence[int]], *, cause: Callable[[], str | None] = lambda: None
) -> list[str]:
    """What llama.cpp, which gave the ids ``actual``, does otherwise as it is known to, one sentence for each of its
    limits. Raises TokenizerMismatchError for anything else, which names the likely ``cause`` and shows the first few.
    """
    pairs = [(one, list(got)) for one, got in zip(tried, actual, strict=True)]
    limits: dict[str, list[str]] = {}
    wrong = []
    for one, got in pairs:
        if got != one.ids:
            reason = next((reason for ids, reason in one.known if ids == got), None)
            if reason is None:
                wrong.append((one, got))
            else:
                limits.setdefault(reason, []).append(_difference(one, got))
    if wrong:
        shown = "; ".join(_difference(one, got) for one, got in wrong[:_SHOWN])
        why = f", because {found}" if (found := cause()) else ""
        raise TokenizerMismatchError(
            f"llama.cpp tokenizes {len(wrong)} of {len(tried)} texts otherwise than the checkpoint does{why}: {shown}",
            share=f"{len(wrong)}/{len(tried)}",
        )
    return [f"llama.cpp {reason} ({len(seen)} texts: {seen[0]})" for reason, seen in limits.items()]


def check(wanted: Tokenized, actual: Sequence[Sequence[int]]) -> None:
    """Raises TokenizerMismatchError, which shows the first few, where llama.cpp's ids are others."""
    compare([Trial(text, ids) for text, ids in wanted], actual)


def _difference(one: Trial, got: list[int]) -> str:
    return f"{one.text[:40]!r} becomes {got[:16]}, not {one.ids[:16]}"


def _of_json(content: bytes, pre: str | None, rows: object) -> list[Trial]:
    document = _parsed(content)
    tokenizer = BoundedTokenizer(content, document)
    added = _added_tokens(tokenizer, rows)
    plain = [*texts(), *(text for one in added for text in (one.content, "a" + one.content)), *_in_company(added)]
    shared = _sharing(added)
    tried = [*dict.fromkeys([*plain, *shared])]
    ids = tokenizer.encode(tried)
    known: dict[str, list[tuple[list[int], str]]] = {text: [] for text in tried}
    limits = find_limits(document, pre)
    for several in _every_choice(limits):
        changed = document
        for limit in several:
            changed = limit.change(changed)
        otherwise = BoundedTokenizer(json.dumps(changed).encode(), changed).encode(tried)
        reason = ", and ".join(limit.reason for limit in several)
        for text, own, other in zip(tried, ids, otherwise, strict=True):
            if own != other:
                known[text].append((other, reason))
    for text, (before, token) in shared.items():
        known[text] += [([*start, token], OVERLAP) for start in tokenizer.encode([before])]
    return [Trial(text, own, tuple(known[text])) for text, own in zip(tried, ids, strict=True)]


def _of_model(
    processor: Any, shift: int, added: Mapping[str, tuple[int, Mapping[str, Any]]], rows: int | None
) -> list[Trial]:
    """Added tokens stand at the end of a text: whether a space is put behind one is not said in any of the files."""
    unknown = processor.unk_id()

    def encode(text: str) -> list[int]:
        return [3 if shift and token == unknown else token + shift for token in processor.Encode(text)]

    kept = {
        text: token
        for text, (token, entry) in list(added.items())[:_ADDED]
        if 0 <= token < (MAX_TOKENS if rows is None else rows)
        and text.strip()
        and SPACE not in text
        and not entry.get("single_word")
    }
    by_length = sorted(kept, key=len, reverse=True)
    cut = re.compile(f"({'|'.join(map(re.escape, by_length))})" if by_length else "(?!)")
    tried = {text: encode(text) for text in texts() if not cut.search(text)}
    some = list(kept)[:_NEIGHBOURED]
    wanted = [[text] for text in kept] + [["a", text] for text in kept] + [list(pair) for pair in pairwise(some)]
    for parts in wanted:
        # What else lies in two that touch is found by llama.cpp in another order.
        if [part for part in cut.split("".join(parts)) if part] == parts:
            tried["".join(parts)] = [
                token for part in parts for token in ([kept[part]] if part in kept else encode(part))
            ]
    return [Trial(text, ids) for text, ids in tried.items()]


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        return strict_json.parse_object(content, what="tokenizer.json")
    except InvalidContentError as error:
        raise InvalidCheckpointError(str(error)) from error


def _every_choice(limits: Sequence[Limit]) -> Iterator[tuple[Limit, ...]]:
    """One limit, then several: of some llama.cpp is free for models with certain names."""
    for count in range(1, len(limits) + 1):
        yield from combinations(limits, count)


def _added_tokens(tokenizer: BoundedTokenizer, rows: object) -> list[AddedToken]:
    """Each added token that the model has a row for; but spaces, however written."""
    rows = rows if type(rows) is int else MAX_TOKENS
    added = [one for one in tokenizer.added_tokens if one.token < rows]
    return [one for one in added[:_ADDED] if one.content.strip() and SPACE not in one.content]


def _in_company(added: Sequence[AddedToken]) -> list[str]:
    """The first few, and the first few of those to which spaces belong: before a letter, between words, twice, and
    each before the next.
    """
    kinds = ([one.content for one in added if one.strips is strips] for strips in (False, True))
    contents = [content for kind in kinds for content in kind[:_NEIGHBOURED]]
    around = [text for one in contents for text in (one + "a", f"a {one} b", one + one)]
    return around + [first + second for first, second in pairwise(contents)]


def _sharing(added: Sequence[AddedToken]) -> dict[str, tuple[str, int]]:
    """Texts in which an added token ends with what a longer one begins with. Beside each: what comes before the longer
    one, and its id.
    """
    beginnings: dict[str, AddedToken] = {}
    for one in sorted(added, key=lambda one: len(one.content.encode()), reverse=True):
        for length in range(1, min(len(one.content), _LONGEST_SHARED)):
            beginnings.setdefault(one.content[:length], one)
    result: dict[str, tuple[str, int]] = {}
    for one in added:
        for length in reversed(range(1, min(len(one.content), _LONGEST_SHARED))):
            other = beginnings.get(one.content[-length:])
            if other is not None and other != one and len(other.content.encode()) >= len(one.content.encode()):
                before = one.content[:-length]
                result.setdefault(before + other.content, (before, other.token))
        if len(result) >= _NEIGHBOURED:
            break
    return result


@cache
def texts() -> tuple[str, ...]:
    """What is tried."""
    document = json.loads(files(__package__).joinpath("parity_texts.json").read_text(encoding="utf-8"))
    return tuple(document["texts"])
