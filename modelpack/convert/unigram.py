"""Unigram vocabularies, the other kind of SentencePiece: T5's and XLM-R's.

From a SentencePiece model, whose own settings its Python library does not show, or from tokenizer.json. XLM-R's model
file counts its pieces otherwise than the checkpoint does, as fairseq did.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gguf import TokenType

from modelpack.convert.checkpoint import Checkpoint
from modelpack.convert.listed_tokens import put_listed
from modelpack.convert.sentencepiece_model import Rules, SentencePieceModel, refuse_fallback
from modelpack.convert.vocabulary import Table, Vocabulary, added_tokens, as_dict, prepends_space, steps
from modelpack.errors import InvalidCheckpointError


def unigram(checkpoint: Checkpoint, size: int | None) -> Vocabulary | None:
    """Raises InvalidCheckpointError when the file cannot be read."""
    for name in ("sentencepiece.bpe.model", "tokenizer.model", "spiece.model"):
        model = checkpoint.read_bytes(name)
        if model is not None:
            return _from_model(checkpoint, name, model, size)
    return _from_json(checkpoint, size)


def unigram_of_decoder(checkpoint: Checkpoint, size: int | None) -> Vocabulary | None:
    """tokenizer.json, for models whose texts begin and end with nothing unless some file says so."""
    found = _from_json(checkpoint, size)
    return found and replace(found, adds={"bos": False, "eos": False})


def _from_model(checkpoint: Checkpoint, name: str, content: bytes, size: int | None) -> Vocabulary | None:
    model = SentencePieceModel.load(name, content)
    if not model.rules.is_unigram:
        return None
    refuse_fallback(name, model.rules.falls_back)
    table = model.read_pieces(size)
    is_realigned = name == "sentencepiece.bpe.model"
    if is_realigned:
        _realign(table)
    put_listed(table, checkpoint, settings_rule=False)
    found = unigram_vocabulary(checkpoint, table, model.rules)
    # llama.cpp would take T5's unknown token, and its way to end a text but not to begin one.
    return replace(found, unknown=_UNKNOWN, adds={"bos": True, "eos": True}) if is_realigned else found


_UNKNOWN = 3


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
    refuse_fallback("tokenizer.json", bool(model.get("byte_fallback")))
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
    rules = Rules(
        is_unigram=True,
        falls_back=False,
        adds_prefix=prepends_space(tokenizer),
        squeezes=squeezes(tokenizer),
        charsmap=_charsmap(tokenizer),
    )
    return unigram_vocabulary(checkpoint, table, rules)


def squeezes(tokenizer: Mapping[str, Any]) -> bool:
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


def unigram_vocabulary(checkpoint: Checkpoint, table: Table, rules: Rules) -> Vocabulary:
    """The pieces of ``table`` as llama.cpp's kind of that name, which T5 had first."""
    settings: list[tuple[str, Any]] = [("add_space_prefix", rules.adds_prefix)]
    types = checkpoint.config.get("type_vocab_size")
    if type(types) is int and 0 < types < 1 << 16:
        settings.append(("token_type_count", types))
    settings.append(("remove_extra_whitespaces", rules.squeezes))
    if rules.charsmap:
        settings.append(("precompiled_charsmap", rules.charsmap))
    return table.vocabulary("t5", "default", settings=tuple(settings))
