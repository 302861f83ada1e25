"""Vocabularies: what llama.cpp needs of a tokenizer, rebuilt from the checkpoint's own files without transformers.

Kinds: ``sentencepiece`` (tokenizer.model), ``sentencepiece_json`` (the same, shipped as tokenizer.json alone) and
``byte_level_bpe`` (tokenizer.json, GPT-2's kind). Each gives a Vocabulary, or None when the checkpoint has no such
tokenizer.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gguf import TokenType

from modelpack.convert.checkpoint import Checkpoint
from modelpack.convert.pre_tokenizer import find_pre_tokenizer
from modelpack.errors import InvalidCheckpointError

MAX_TOKENS = 1 << 21
_SPACE = "\u2581"  # how SentencePiece writes a space

# llama.cpp never merges to these: their scores only have to be lower than any other.
_ADDED_SCORE = -1000.0
_HOLE_SCORE = -10000.0


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


VocabularyReader = Callable[[Checkpoint, int | None], Vocabulary | None]
"""Reads one kind; the integer is the vocabulary's size by config.json, to which it is padded."""


def sentencepiece(checkpoint: Checkpoint, size: int | None) -> Vocabulary | None:
    """tokenizer.model. Raises InvalidCheckpointError when SentencePiece cannot read it."""
    model = checkpoint.read_bytes("tokenizer.model")
    if model is None:
        return None
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)
    except (RuntimeError, OSError) as error:
        raise InvalidCheckpointError(f"tokenizer.model is no SentencePiece model: {error}") from error
    table = _Table(size or processor.vocab_size())
    for token in range(min(processor.vocab_size(), table.size)):
        kind = TokenType.NORMAL
        if processor.IsUnknown(token):
            kind = TokenType.UNKNOWN
        elif processor.IsControl(token):
            kind = TokenType.CONTROL
        elif processor.IsUnused(token):
            kind = TokenType.UNUSED
        elif processor.IsByte(token):
            kind = TokenType.BYTE
        table.put(token, processor.IdToPiece(token), kind, processor.GetScore(token))
    for text, token in (checkpoint.read_json("added_tokens.json") or {}).items():
        table.put(token, text, TokenType.USER_DEFINED, _ADDED_SCORE)
    settings = checkpoint.read_json("tokenizer_config.json") or {}
    for key, entry in _as_dict(settings.get("added_tokens_decoder")).items():
        table.put_added(int(key) if key.isdecimal() else None, entry)
    prefix = settings.get("add_prefix_space")
    if prefix is None and not processor.EncodeAsPieces("a")[0].startswith(_SPACE):
        prefix = False  # llama.cpp would add one where nothing is said
    return table.vocabulary("llama", "default", add_space_prefix=prefix if isinstance(prefix, bool) else None)


def sentencepiece_json(checkpoint: Checkpoint, size: int | None) -> Vocabulary | None:
    """SentencePiece BPE in the clothes of tokenizer.json: merges instead of scores, ``byte_fallback`` set.

    A token's score is the negative rank of the first merge that makes it, so that llama.cpp merges in the same order.
    (Upstream gives every token the same score here, and with it a model that cannot spell.)
    """
    tokenizer = checkpoint.read_json("tokenizer.json")
    model = _as_dict((tokenizer or {}).get("model"))
    if tokenizer is None or model.get("type") != "BPE" or model.get("byte_fallback") is not True:
        return None
    vocabulary = _token_ids(model)
    ranks: dict[str, int] = {}
    for left, right in _merges(model):
        ranks.setdefault(left + right, len(ranks))
    table = _Table(size or _size(tokenizer, vocabulary))
    for text, token in vocabulary.items():
        kind, score = TokenType.NORMAL, -float(ranks.get(text, len(ranks)))
        if text == model.get("unk_token"):
            kind, score = TokenType.UNKNOWN, 0.0
        elif len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            kind, score = TokenType.BYTE, 0.0
        table.put(token, text, kind, score)
    for entry in _added_tokens(tokenizer):
        table.put_added(entry.get("id"), entry)
    settings = checkpoint.read_json("tokenizer_config.json") or {}
    prefix = settings.get("add_prefix_space")
    if not isinstance(prefix, bool):
        prefix = _prepends_space(tokenizer)
    return table.vocabulary("llama", "default", add_space_prefix=prefix)


def byte_level_bpe(checkpoint: Checkpoint, size: int | None) -> Vocabulary | None:
    """GPT-2's kind. Raises UnsupportedError when its way to split text is none of llama.cpp's."""
    tokenizer = checkpoint.read_json("tokenizer.json")
    model = _as_dict((tokenizer or {}).get("model"))
    if tokenizer is None or model.get("type") != "BPE" or model.get("byte_fallback"):
        return None
    content = checkpoint.read_bytes("tokenizer.json") or b""
    vocabulary = _token_ids(model)
    table = _Table(size or _size(tokenizer, vocabulary))
    for piece, token in vocabulary.items():
        table.put(token, piece, TokenType.NORMAL, 0.0)
    pre, normalize = find_pre_tokenizer(content)
    for entry in _added_tokens(tokenizer):
        text = entry.get("content")
        if isinstance(text, str) and not entry.get("normalized"):
            text = normalize(text)
        table.put_added(entry.get("id"), {**entry, "content": text})
    merges = [" ".join(part.replace(" ", "\u0120") for part in pair) for pair in _merges(model)]
    return table.vocabulary("gpt2", pre, merges=merges)


class _Table:
    """Tokens by id; what nobody puts stays an unused hole."""

    def __init__(self, size: int) -> None:
        if not 1 <= size <= MAX_TOKENS:
            raise InvalidCheckpointError(f"a vocabulary of {size} tokens is not one")
        self.size = size
        self.tokens = [f"[PAD{token}]" for token in range(size)]
        self.types = [int(TokenType.UNUSED)] * size
        self.scores = [_HOLE_SCORE] * size

    def put(self, token: object, text: str, kind: TokenType, score: float) -> None:
        """Ids outside the vocabulary are dropped: the model has no row for them."""
        if type(token) is int and 0 <= token < self.size:
            self.tokens[token], self.types[token], self.scores[token] = text, int(kind), score

    def put_added(self, token: object, entry: object) -> None:
        """An added token, as tokenizer.json and tokenizer_config.json describe it."""
        entry = _as_dict(entry)
        text = entry.get("content")
        if not isinstance(text, str):
            raise InvalidCheckpointError(f"the tokenizer's added token {token!r} has no text")
        if entry.get("special") or _looks_special(text):
            self.put(token, text, TokenType.CONTROL, _ADDED_SCORE)
        else:
            self.put(token, text.replace(_SPACE, " "), TokenType.USER_DEFINED, _ADDED_SCORE)

    def vocabulary(
        self, model: str, pre: str, *, merges: list[str] | None = None, add_space_prefix: bool | None = None
    ) -> Vocabulary:
        try:
            tokens = [text.encode("utf-8") for text in self.tokens]
        except UnicodeEncodeError as error:
            raise InvalidCheckpointError("the tokenizer has a token that is not Unicode text") from error
        scores = self.scores if merges is None else None
        return Vocabulary(model, pre, tokens, self.types, scores, merges, add_space_prefix)


def _looks_special(text: str) -> bool:
    """Published tokenizers forget to mark some control tokens as special; these are known by their looks."""
    return (
        text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<\uff5c") and text.endswith("\uff5c>"))
        or (text.startswith("<unused") and text.endswith(">"))
    )


def _token_ids(model: Mapping[str, Any]) -> dict[str, int]:
    vocabulary = _as_dict(model.get("vocab"))
    if not vocabulary or not all(type(token) is int for token in vocabulary.values()):
        raise InvalidCheckpointError("tokenizer.json has no proper vocabulary")
    return vocabulary


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs; older files write each as one text with a space between."""
    result = []
    for merge in model.get("merges") or ():
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
            raise InvalidCheckpointError("tokenizer.json has a merge that is no pair")
        result.append((parts[0], parts[1]))
    return result


def _added_tokens(tokenizer: Mapping[str, Any]) -> list[dict[str, Any]]:
    added = tokenizer.get("added_tokens")
    return [entry for entry in added if isinstance(entry, dict)] if isinstance(added, list) else []


def _size(tokenizer: Mapping[str, Any], vocabulary: Mapping[str, int]) -> int:
    added: list[int] = [entry["id"] for entry in _added_tokens(tokenizer) if type(entry.get("id")) is int]
    return 1 + max(*vocabulary.values(), *added, 0)


def _prepends_space(tokenizer: Mapping[str, Any]) -> bool:
    """Whether text gets a leading space before it is split: a Prepend normalizer, or a Metaspace that says so."""
    normalizer = _as_dict(tokenizer.get("normalizer"))
    steps = normalizer.get("normalizers") or [normalizer]
    if any(_as_dict(step).get("type") == "Prepend" for step in steps):
        return True
    splitter = _as_dict(tokenizer.get("pre_tokenizer"))
    steps = splitter.get("pretokenizers") or [splitter]
    for step in map(_as_dict, steps):
        if step.get("type") == "Metaspace":
            scheme = step.get("prepend_scheme")
            return scheme in ("always", "first") if scheme else step.get("add_prefix_space") is True
    return False


def _as_dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
