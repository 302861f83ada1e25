"""WordPiece vocabularies, BERT's kind: a word's first piece is as written, the others begin with ``##``.

llama.cpp writes it the other way round: U+2581 before what begins a word, and nothing before the rest.
"""

from gguf import TokenType

from modelpack.convert.checkpoint import Checkpoint
from modelpack.convert.pre_tokenizer import find_pre_tokenizer
from modelpack.convert.vocabulary import SPACE, Table, Vocabulary, added_tokens, as_dict, token_ids, vocabulary_size


def wordpiece(checkpoint: Checkpoint, size: int | None) -> Vocabulary | None:
    """tokenizer.json. Raises InvalidCheckpointError when it cannot be read."""
    tokenizer = checkpoint.read_json("tokenizer.json")
    model = as_dict((tokenizer or {}).get("model"))
    if tokenizer is None or model.get("type") != "WordPiece":
        return None
    vocabulary = token_ids(model)
    continuing = model.get("continuing_subword_prefix", "##")
    table = Table(size or vocabulary_size(tokenizer, vocabulary))
    control = {entry.get("id") for entry in added_tokens(tokenizer) if entry.get("special")}
    for text, token in vocabulary.items():
        if token in control:
            table.put(token, text, TokenType.CONTROL, 0.0)
        else:
            table.put(token, _turned(text, continuing), TokenType.NORMAL, 0.0)
    for entry in added_tokens(tokenizer):
        table.put_added(entry.get("id"), entry)
    for token, text in enumerate(table.tokens):
        if table.types[token] in (TokenType.UNUSED, TokenType.USER_DEFINED):
            table.tokens[token] = _turned(text, continuing)
    content = checkpoint.read_bytes("tokenizer.json") or b""
    pre, _ = find_pre_tokenizer(content, tokenizer, fallback="default")
    return table.vocabulary("bert", pre, has_scores=False)


def _turned(text: str, continuing: str) -> str:
    return text.removeprefix(continuing) if continuing and text.startswith(continuing) else SPACE + text
