"""A vocabulary, as it goes into a GGUF file, and the parts of tokenizer.json that it is rebuilt from.

How each kind of tokenizer is read is left to ``tokenizer`` (SentencePiece and byte-level BPE), ``wordpiece`` and
``unigram``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gguf import TokenType

from modelpack.convert.checkpoint import Checkpoint
from modelpack.errors import InvalidCheckpointError

MAX_TOKENS = 1 << 21
MAX_TOKEN_LENGTH = 8192
"""Characters; the longest published tokens are runs of some hundred spaces."""
SPACE = "\u2581"  # how SentencePiece writes a space

# llama.cpp never merges to these: their scores only have to be lower than any other.
ADDED_SCORE = -1000.0
HOLE_SCORE = -10000.0


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens by id; ``scores`` where the kind has them, ``merges`` as pairs with a space between."""

    model: str
    pre: str
    tokens: list[bytes]
    types: list[int]
    scores: list[float] | None = None
    merges: list[str] | None = None
    add_space_prefix: bool | None = None
    settings: tuple[tuple[str, Any], ...] = ()
    """What else this kind has, by gguf's names, in the order of the file."""
    unknown: int | None = None
    """The id for what no token stands for, where no file of the checkpoint says it."""
    adds: Mapping[str, bool] = field(default_factory=dict)
    """Whether texts begin with bos and end with eos, where no file of the checkpoint says it."""


VocabularyReader = Callable[[Checkpoint, int | None], Vocabulary | None]
"""Reads one kind; the integer is the vocabulary's size by config.json, to which it is padded."""


class Table:
    """Tokens by id; what nobody puts stays an unused hole."""

    def __init__(self, size: int) -> None:
        if not 1 <= size <= MAX_TOKENS:
            raise InvalidCheckpointError(f"a vocabulary of {size} tokens is not one")
        self.size = size
        self.tokens = [f"[PAD{token}]" for token in range(size)]
        self.types = [int(TokenType.UNUSED)] * size
        self.scores = [HOLE_SCORE] * size

    def put(self, token: object, text: str, kind: TokenType, score: float) -> None:
        """Ids outside the vocabulary are dropped: the model has no row for them."""
        if type(token) is int and 0 <= token < self.size:
            check_length(text, "the tokenizer")
            self.tokens[token], self.types[token], self.scores[token] = text, int(kind), score

    def is_plain(self, token: int) -> bool:
        """Whether a token is text like any other, or a hole."""
        return 0 <= token < self.size and self.types[token] in (TokenType.NORMAL, TokenType.UNUSED)

    def put_added(self, token: object, entry: object) -> None:
        """An added token, as tokenizer.json and tokenizer_config.json describe it."""
        entry = as_dict(entry)
        text = entry.get("content")
        if not isinstance(text, str):
            raise InvalidCheckpointError(f"the tokenizer's added token {token!r} has no text")
        if entry.get("special") or looks_special(text):
            self.put(token, text, TokenType.CONTROL, ADDED_SCORE)
        else:
            self.put(token, text.replace(SPACE, " "), TokenType.USER_DEFINED, ADDED_SCORE)

    def vocabulary(
        self,
        model: str,
        pre: str,
        *,
        has_scores: bool = True,
        merges: list[str] | None = None,
        add_space_prefix: bool | None = None,
        settings: tuple[tuple[str, Any], ...] = (),
    ) -> Vocabulary:
        self._keep_apart()
        tokens = [text.encode("utf-8") for text in self.tokens]
        scores = self.scores if has_scores and merges is None else None
        return Vocabulary(model, pre, tokens, self.types, scores, merges, add_space_prefix, settings)

    def _keep_apart(self) -> None:
        """llama.cpp aborts when it loads two tokens of the same text. Raises InvalidCheckpointError."""
        places: dict[str, int] = {}
        holes = [token for token, kind in enumerate(self.types) if kind == TokenType.UNUSED]
        for token, text in enumerate(self.tokens):
            if text and self.types[token] != TokenType.UNUSED and places.setdefault(text, token) != token:
                raise InvalidCheckpointError(
                    f"the tokenizer's tokens {places[text]} and {token} are both {text[:40]!r} to llama.cpp"
                )
        for token in holes:
            while places.setdefault(self.tokens[token], token) != token:
                self.tokens[token] += "_"


def looks_special(text: str) -> bool:
    """Published tokenizers forget to mark some control tokens as special; these are known by their looks."""
    return (
        text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<\uff5c") and text.endswith("\uff5c>"))
        or (text.startswith("<unused") and text.endswith(">"))
    )


def check_length(text: str, where: str) -> None:
    """Raises InvalidCheckpointError for a token that is longer than any."""
    if len(text) > MAX_TOKEN_LENGTH:
        raise InvalidCheckpointError(
            f"{where} has a token of {len(text)} characters ({text[:40]!r}...); {MAX_TOKEN_LENGTH} are the most"
        )


def token_ids(model: Mapping[str, Any]) -> dict[str, int]:
    vocabulary = as_dict(model.get("vocab"))
    if not vocabulary or not all(type(token) is int for token in vocabulary.values()):
        raise InvalidCheckpointError("tokenizer.json has no proper vocabulary")
    return vocabulary


def read_merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs; older files write each as one text with a space between."""
    result = []
    for merge in model.get("merges") or ():
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list) or len(parts) != 2 or type(parts[0]) is not str or type(parts[1]) is not str:
            raise InvalidCheckpointError("tokenizer.json has a merge that is no pair")
        result.append((parts[0], parts[1]))
    return result


def added_tokens(tokenizer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The added tokens under the ids that ``tokenizers`` gives them, as the model was trained with.

    It goes by the text: what the vocabulary has keeps its id, the rest is counted on, whatever the file says.
    """
    added = tokenizer.get("added_tokens")
    known = _ids_by_text(as_dict(tokenizer.get("model")).get("vocab"))
    free = len(known)
    result, ids = [], dict[str, int]()
    for entry in added if isinstance(added, list) else []:
        text = as_dict(entry).get("content")
        if not isinstance(text, str) or not text:
            continue
        token = ids.get(text, known.get(text))
        if token is None:
            token = free
        ids[text] = token
        free = max(free, token + 1)
        result.append({**entry, "id": token})
    return result


def _ids_by_text(vocabulary: object) -> Mapping[str, int]:
    if isinstance(vocabulary, list):  # Unigram's
        return {piece[0]: token for token, piece in enumerate(vocabulary) if _is_piece(piece)}
    return {text: token for text, token in as_dict(vocabulary).items() if type(token) is int}


def _is_piece(piece: object) -> bool:
    return isinstance(piece, list) and bool(piece) and isinstance(piece[0], str)


def vocabulary_size(tokenizer: Mapping[str, Any], vocabulary: Mapping[str, int]) -> int:
    added: list[int] = [entry["id"] for entry in added_tokens(tokenizer) if type(entry.get("id")) is int]
    return 1 + max(*vocabulary.values(), *added, 0)


def steps(tokenizer: Mapping[str, Any], kind: str) -> list[dict[str, Any]]:
    """The steps of a tokenizer's ``normalizer`` or ``pre_tokenizer``, one or several."""
    value = as_dict(tokenizer.get(kind))
    several = value.get("normalizers" if kind == "normalizer" else "pretokenizers")
    return [as_dict(step) for step in (several if isinstance(several, list) else [value])]


def prepends_space(tokenizer: Mapping[str, Any]) -> bool:
    """Whether text gets a leading space before it is split: a Prepend normalizer, or a Metaspace that says so."""
    if any(step.get("type") == "Prepend" for step in steps(tokenizer, "normalizer")):
        return True
    for step in steps(tokenizer, "pre_tokenizer"):
        if step.get("type") == "Metaspace":
            scheme = step.get("prepend_scheme")
            return scheme in ("always", "first") if scheme else step.get("add_prefix_space") is True
    return False


def as_dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
