"""Unigram vocabularies, the other kind of SentencePiece: T5's and XLM-R's.

From a SentencePiece model, whose own settings its Python library does not show, or from tokenizer.json. XLM-R's model
file counts its pieces otherwise than the checkpoint does, as fairseq did.
"""

import base64
import binascii
from typing import Any

from gguf import TokenType

from modelpack.convert import protobuf
from modelpack.convert.checkpoint import Checkpoint
from modelpack.convert.tokenizer import load_sentencepiece, read_pieces
from modelpack.convert.vocabulary import ADDED_SCORE, Table, Vocabulary, added_tokens, as_dict, prepends_space, steps
from modelpack.errors import InvalidCheckpointError, UnsupportedError

MAX_CHARSMAP_SIZE = 16 << 20
_UNIGRAM = 1  # TrainerSpec.ModelType of sentencepiece_model.proto


def unigram(checkpoint: Checkpoint, size: int | None) -> Vocabulary | None:
    """Raises InvalidCheckpointError when the file cannot be read."""
    for name in ("sentencepiece.bpe.model", "tokenizer.model", "spiece.model"):
        model = checkpoint.read_bytes(name)
        if model is not None:
            return _from_model(checkpoint, name, model, size)
    return _from_json(checkpoint, size)


def _from_model(checkpoint: Checkpoint, name: str, model: bytes, size: int | None) -> Vocabulary | None:
    table = read_pieces(load_sentencepiece(name, model), size)
    try:
        parts = protobuf.parse(model)
        trainer = protobuf.parse(protobuf.last(parts, 2, b""))
        rules = protobuf.parse(protobuf.last(parts, 3, b""))
        charsmap = protobuf.last(rules, 2, b"")
        add_prefix, squeeze = bool(protobuf.last(rules, 3, 1)), bool(protobuf.last(rules, 4, 1))
        kind = protobuf.last(trainer, 3, _UNIGRAM)
        has_fallback = bool(protobuf.last(trainer, 35, 0))
    except ValueError as error:
        raise InvalidCheckpointError(f"{name} is no SentencePiece model: {error}") from error
    if kind != _UNIGRAM:
        return None
    _refuse_fallback(name, has_fallback)
    for text, token in (checkpoint.read_json("added_tokens.json") or {}).items():
        table.put(token, text, TokenType.USER_DEFINED, ADDED_SCORE)
    if name == "sentencepiece.bpe.model":
        _realign(table)
    return _vocabulary(checkpoint, table, add_prefix=add_prefix, squeeze=squeeze, charsmap=charsmap)


def _refuse_fallback(name: str, has_fallback: bool) -> None:
    if has_fallback:
        raise UnsupportedError(
            f"{name} is a Unigram model that falls back to bytes where it lacks a piece; llama.cpp has no such model"
        )


def _realign(table: Table) -> None:
    """<s> <pad> </s> <unk>, then the model's pieces from the fourth on; the last id is left for <mask>."""
    control, unknown = TokenType.CONTROL, TokenType.UNKNOWN
    table.tokens[:] = ["<s>", "<pad>", "</s>", "<unk>", *table.tokens[3:-1]]
    table.scores[:] = [0.0] * 4 + table.scores[3:-1]
    table.types[:] = [int(kind) for kind in (control, control, control, unknown)] + table.types[3:-1]


def _from_json(checkpoint: Checkpoint, size: int | None) -> Vocabulary | None:
    tokenizer = checkpoint.read_json("tokenizer.json")
    model = as_dict((tokenizer or {}).get("model"))
    if tokenizer is None or model.get("type") != "Unigram":
        return None
    _refuse_fallback("tokenizer.json", bool(model.get("byte_fallback")))
    pieces = model.get("vocab")
    if not isinstance(pieces, list) or not pieces:
        raise InvalidCheckpointError("tokenizer.json has no proper vocabulary")
    table = Table(max(size or 0, len(pieces)))
    for token, piece in enumerate(pieces):
        if not isinstance(piece, list) or len(piece) != 2 or not isinstance(piece[0], str):
            raise InvalidCheckpointError(f"tokenizer.json has no text and score for token {token}")
        score = piece[1]
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not abs(score) < 1e30:
            raise InvalidCheckpointError(f"tokenizer.json has no proper score for token {token}")
        kind = TokenType.UNKNOWN if token == model.get("unk_id") else TokenType.NORMAL
        table.put(token, piece[0], kind, score)
    for entry in added_tokens(tokenizer):
        place = entry.get("id")
        if type(place) is int and 0 <= place < table.size and table.types[place] != TokenType.UNKNOWN:
            score = table.scores[place] if place < len(pieces) else 0.0
            table.put_added(place, entry)
            table.scores[place] = score
    return _vocabulary(
        checkpoint,
        table,
        add_prefix=prepends_space(tokenizer),
        squeeze=_squeezes(tokenizer),
        charsmap=_charsmap(tokenizer),
    )


def _squeezes(tokenizer: dict[str, Any]) -> bool:
    """Whether several spaces count as one: a rule that replaces them, or words that are split at any."""
    for step in steps(tokenizer, "normalizer"):
        if step.get("type") == "Replace" and as_dict(step.get("pattern")).get("Regex") == " {2,}":
            return True
    return any(step.get("type") == "WhitespaceSplit" for step in steps(tokenizer, "pre_tokenizer"))


def _charsmap(tokenizer: dict[str, Any]) -> bytes:
    """SentencePiece's compiled table of what characters become."""
    for step in steps(tokenizer, "normalizer"):
        encoded = step.get("precompiled_charsmap")
        if isinstance(encoded, str):
            try:
                return base64.b64decode(encoded, validate=True)
            except binascii.Error as error:
                raise InvalidCheckpointError("tokenizer.json's precompiled_charsmap is not base64") from error
    return b""


def _vocabulary(
    checkpoint: Checkpoint, table: Table, *, add_prefix: bool, squeeze: bool, charsmap: bytes
) -> Vocabulary:
    if len(charsmap) > MAX_CHARSMAP_SIZE:
        raise InvalidCheckpointError(f"the tokenizer's charsmap is larger than {MAX_CHARSMAP_SIZE >> 20} MiB")
    settings: list[tuple[str, Any]] = [("add_space_prefix", add_prefix)]
    types = checkpoint.config.get("type_vocab_size")
    if type(types) is int and 0 < types < 1 << 16:
        settings.append(("token_type_count", types))
    settings.append(("remove_extra_whitespaces", squeeze))
    if charsmap:
        settings.append(("precompiled_charsmap", charsmap))
    return table.vocabulary("t5", "default", settings=tuple(settings))
