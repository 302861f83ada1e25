"""The added tokens beside a SentencePiece model, of which it knows nothing: three files list them."""

from collections.abc import Iterator
from typing import Any

from gguf import TokenType

from modelpack.convert.checkpoint import Checkpoint
from modelpack.convert.vocabulary import ADDED_SCORE, Table, added_tokens, as_dict

_ID_DIGITS = 10


def put_listed(table: Table, checkpoint: Checkpoint, *, settings_rule: bool) -> None:
    """Into the table of a model's pieces. ``settings_rule`` is whether tokenizer_config.json has its way with any of
    them, or only where there is none or one that is text like any other, as tokenizer.json has.

    Raises InvalidCheckpointError.
    """
    for text, token in (checkpoint.read_json("added_tokens.json") or {}).items():
        table.put(token, text, TokenType.USER_DEFINED, ADDED_SCORE)
    # transformers 5 keeps them in tokenizer.json only; where settings have them, too, those count.
    for entry in added_tokens(checkpoint.read_json("tokenizer.json") or {}):
        if table.is_plain(entry["id"]):
            table.put_added(entry["id"], entry)
    for token, entry in _in_settings(checkpoint):
        if settings_rule or (token is not None and table.is_plain(token)):
            table.put_added(token, entry)


def listed(checkpoint: Checkpoint) -> dict[str, tuple[int, dict[str, Any]]]:
    """By text, the ids and what else is said of those that lie beside a model without a tokenizer.json."""
    found: dict[str, tuple[int, dict[str, Any]]] = {}
    for text, token in (checkpoint.read_json("added_tokens.json") or {}).items():
        if type(token) is int:
            found[text] = token, {}
    for number, entry in _in_settings(checkpoint):
        if number is not None and isinstance(entry.get("content"), str):
            found[entry["content"]] = number, entry
    return found


def _in_settings(checkpoint: Checkpoint) -> Iterator[tuple[int | None, dict[str, Any]]]:
    settings = checkpoint.read_json("tokenizer_config.json") or {}
    for key, entry in as_dict(settings.get("added_tokens_decoder")).items():
        yield (int(key) if key.isdecimal() and len(key) <= _ID_DIGITS else None), as_dict(entry)
