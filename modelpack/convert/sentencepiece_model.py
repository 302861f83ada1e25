"""SentencePiece's model files: tokenizer.model, spiece.model and sentencepiece.bpe.model.

https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto; what its library does not tell is
read from the protocol buffer itself, and checked before the library gets it.
"""

from dataclasses import dataclass
from typing import Any

from gguf import TokenType

from modelpack.convert import protobuf
from modelpack.convert.bounded_tokenizer import MAX_CHARSMAP_SIZE, MAX_GROWTH, longest_replacement
from modelpack.convert.vocabulary import MAX_TOKEN_LENGTH, Table
from modelpack.errors import InvalidCheckpointError, UnsupportedError

_UNIGRAM = 1  # TrainerSpec.ModelType
_USER_DEFINED = 4  # SentencePiece.Type


@dataclass(frozen=True, slots=True)
class Rules:
    """How a model treats text: whether it is of the Unigram kind, falls back to bytes where it lacks a piece, begins
    each text with a space, counts several as one, and SentencePiece's compiled table of what characters become.
    """

    is_unigram: bool
    falls_back: bool
    adds_prefix: bool
    squeezes: bool
    charsmap: bytes


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """``processor`` is the library's; ``user_defined`` are pieces that are taken out of a text before it is split, as
    ``</div>`` is in Gemma.
    """

    name: str
    processor: Any
    rules: Rules
    user_defined: tuple[int, ...]

    @classmethod
    def load(cls, name: str, content: bytes) -> "SentencePieceModel":
        """Raises InvalidCheckpointError for what is no model, or larger in one place than any."""
        from sentencepiece import SentencePieceProcessor

        try:
            parts = protobuf.parse(content)
            # SentencePiece passes over a field of another type.
            pieces = [part for number, part in parts if number == 1 and isinstance(part, bytes)]
            rules = _read_rules(parts)
            user_defined = tuple(token for token, piece in enumerate(pieces) if _is_user_defined(piece))
        except ValueError as error:
            raise InvalidCheckpointError(f"{name} is no SentencePiece model: {error}") from error
        if max(map(len, pieces), default=0) > 4 * MAX_TOKEN_LENGTH:
            raise InvalidCheckpointError(f"{name} has a piece of more than {4 * MAX_TOKEN_LENGTH} bytes")
        if len(rules.charsmap) > MAX_CHARSMAP_SIZE:
            raise InvalidCheckpointError(f"the charsmap of {name} is larger than {MAX_CHARSMAP_SIZE >> 20} MiB")
        if longest_replacement(rules.charsmap) > MAX_GROWTH:
            raise InvalidCheckpointError(f"the charsmap of {name} may make more than {MAX_GROWTH} bytes of one")
        processor = SentencePieceProcessor()
        try:
            processor.LoadFromSerializedProto(content)
        except (RuntimeError, OSError) as error:
            raise InvalidCheckpointError(f"{name} is no SentencePiece model: {error}") from error
        return cls(name, processor, rules, user_defined)

    def read_pieces(self, size: int | None) -> Table:
        """The pieces with their kinds and scores, as many as the vocabulary has room for.

        Raises InvalidCheckpointError where one is not text.
        """
        processor = self.processor
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
                raise InvalidCheckpointError(f"{self.name}'s token {token} is not UTF-8") from error
            table.put(token, piece, kind, processor.GetScore(token))
        return table


def refuse_fallback(name: str, falls_back: bool) -> None:
    """Raises UnsupportedError for a Unigram model with such a fallback."""
    if falls_back:
        raise UnsupportedError(
            f"{name} is a Unigram model that falls back to bytes where it lacks a piece; llama.cpp has no such model"
        )


def _read_rules(parts: list[tuple[int, Any]]) -> Rules:
    trainer, normalizer = _message(parts, 2), _message(parts, 3)
    return Rules(
        is_unigram=protobuf.last(trainer, 3, _UNIGRAM) == _UNIGRAM,
        falls_back=bool(protobuf.last(trainer, 35, 0)),
        adds_prefix=bool(protobuf.last(normalizer, 3, 1)),
        squeezes=bool(protobuf.last(normalizer, 4, 1)),
        charsmap=protobuf.last(normalizer, 2, b""),
    )


def _message(parts: list[tuple[int, Any]], number: int) -> list[tuple[int, Any]]:
    """A message in a field. Where the field is there again, it goes on: that is how protocol buffers are merged."""
    return protobuf.parse(b"".join(part for found, part in parts if found == number and isinstance(part, bytes)))


def _is_user_defined(piece: bytes) -> bool:
    marked = bytes([3 << 3, _USER_DEFINED])
    return marked in piece and protobuf.last(protobuf.parse(piece), 3, 1) == _USER_DEFINED
