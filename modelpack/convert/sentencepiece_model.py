"""SentencePiece's model files: tokenizer.model, spiece.model and sentencepiece.bpe.model.

https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto; what its library does not tell is
read from the protocol buffer itself.
"""

from dataclasses import dataclass
from typing import Any

from gguf import TokenType

from modelpack.convert import protobuf
from modelpack.convert.vocabulary import Table
from modelpack.errors import InvalidCheckpointError, UnsupportedError

_UNIGRAM = 1  # TrainerSpec.ModelType


@dataclass(frozen=True, slots=True)
class Rules:
    """How a model treats text: whether it is of the Unigram kind, begins each text with a space, counts several as one,
    and SentencePiece's compiled table of what characters become.
    """

    is_unigram: bool
    adds_prefix: bool
    squeezes: bool
    charsmap: bytes


def read_rules(name: str, model: bytes) -> Rules:
    """Raises InvalidCheckpointError, and UnsupportedError for a Unigram model that falls back to bytes."""
    try:
        parts = protobuf.parse(model)
        trainer = protobuf.parse(protobuf.last(parts, 2, b""))
        rules = protobuf.parse(protobuf.last(parts, 3, b""))
        is_unigram = protobuf.last(trainer, 3, _UNIGRAM) == _UNIGRAM
        if is_unigram:
            refuse_fallback(name, bool(protobuf.last(trainer, 35, 0)))
        return Rules(
            is_unigram=is_unigram,
            adds_prefix=bool(protobuf.last(rules, 3, 1)),
            squeezes=bool(protobuf.last(rules, 4, 1)),
            charsmap=protobuf.last(rules, 2, b""),
        )
    except ValueError as error:
        raise InvalidCheckpointError(f"{name} is no SentencePiece model: {error}") from error


def refuse_fallback(name: str, has_fallback: bool) -> None:
    """Raises UnsupportedError for a Unigram model with such a fallback."""
    if has_fallback:
        raise UnsupportedError(
            f"{name} is a Unigram model that falls back to bytes where it lacks a piece; llama.cpp has no such model"
        )


def load_sentencepiece(name: str, model: bytes) -> Any:
    """A SentencePieceProcessor. Raises InvalidCheckpointError for what is no model."""
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)
    except (RuntimeError, OSError) as error:
        raise InvalidCheckpointError(f"{name} is no SentencePiece model: {error}") from error
    return processor


def read_pieces(processor: Any, size: int | None) -> Table:
    """The pieces of a model with their kinds and scores, as many as the vocabulary has room for.

    Raises InvalidCheckpointError where one is not text.
    """
    table = Table(size or processor.vocab_size())
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
        try:
            piece = processor.IdToPiece(token)
        except UnicodeDecodeError as error:
            raise InvalidCheckpointError(f"the SentencePiece model's token {token} is not UTF-8") from error
        table.put(token, piece, kind, processor.GetScore(token))
    return table


def user_defined_pieces(model: bytes) -> list[int]:
    """Which pieces are taken out of a text before it is split, as ``</div>`` is in Gemma; the library does not tell.

    ``ModelProto.pieces`` is field 1, ``SentencePiece.type`` field 3 and USER_DEFINED 4 in sentencepiece_model.proto.
    Raises InvalidCheckpointError.
    """
    marked = bytes([3 << 3, 4])
    if marked not in model:
        return []
    try:
        # SentencePiece passes over a field of another type.
        pieces = [content for number, content in protobuf.parse(model) if number == 1 and isinstance(content, bytes)]
        return [token for token, piece in enumerate(pieces) if marked in piece and _kind_of(piece) == 4]
    except ValueError as error:
        raise InvalidCheckpointError(f"tokenizer.model is no SentencePiece model: {error}") from error


def _kind_of(piece: bytes) -> int:
    return protobuf.last(protobuf.parse(piece), 3, 1)
