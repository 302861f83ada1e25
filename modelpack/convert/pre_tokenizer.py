"""Which of llama.cpp's ways to split text a byte-level BPE tokenizer wants: ``tokenizer.ggml.pre``.

A GGUF file names the way instead of describing it. Known vocabularies are recognised as upstream's converter does it,
by a hash of the ids that a probe text is encoded to (``pre_tokenizers.json``);
others, retrained or extended, by the splitting rule that tokenizer.json spells out.
"""

import hashlib
import json
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any

from modelpack.errors import InvalidCheckpointError, UnsupportedError

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_RULES = {
    _CONTRACTIONS + r"\p{N}{1,3}" + _REST: "llama-bpe",
    _CONTRACTIONS + r"\p{N}" + _REST: "qwen2",
}


def find_pre_tokenizer(tokenizer_json: bytes) -> tuple[str, Callable[[str], str]]:
    """llama.cpp's name for the splitting rule, and a function that gives a token's text as it comes out again.

    Raises InvalidCheckpointError when tokenizer.json cannot be loaded, UnsupportedError when its rule is unknown.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_buffer(tokenizer_json)
    except Exception as error:  # tokenizers raises nothing narrower
        raise InvalidCheckpointError(f"tokenizer.json cannot be loaded: {error}") from error
    # A tokenizer may come with truncation switched on, which would cut the probe short.
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def normalize(text: str) -> str:
        result: str = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False)
        return result

    table = _known()
    ids = tokenizer.encode(table["probe"]).ids
    name = table["names"].get(hashlib.sha256(str(ids).encode()).hexdigest()) or _by_rule(json.loads(tokenizer_json))
    if name is None:
        raise UnsupportedError("tokenizer.json splits text in a way that llama.cpp has no name for")
    return name, normalize


def _by_rule(tokenizer: dict[str, Any]) -> str | None:
    splitter = tokenizer.get("pre_tokenizer") or {}
    steps = splitter.get("pretokenizers") or [splitter]
    last = steps[-1]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    if len(steps) == 1:
        return "gpt-2" if last.get("use_regex", True) else None
    if len(steps) == 2 and steps[0].get("type") == "Split" and not last.get("use_regex", True):
        return _RULES.get(str((steps[0].get("pattern") or {}).get("Regex")))
    return None


@cache
def _known() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(files(__package__).joinpath("pre_tokenizers.json").read_text(encoding="utf-8"))
    return table
