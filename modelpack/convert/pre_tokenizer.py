"""Which of llama.cpp's ways to split text a byte-level BPE tokenizer wants: ``tokenizer.ggml.pre``.

A GGUF file names the way instead of describing it. Known vocabularies are recognised as upstream's converter does it,
by a hash of the ids that a probe text is encoded to (``pre_tokenizers.json``);
others, retrained or extended, by the splitting rule that tokenizer.json spells out (``splitting``).
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from modelpack.convert.bounded_tokenizer import BoundedTokenizer
from modelpack.convert.splitting import name_by_rule, refuse_unequal, splits_at_spaces


def find_pre_tokenizer(
    tokenizer_json: bytes, document: Mapping[str, Any], *, fallback: str | None = None
) -> tuple[str, Callable[[Sequence[str]], list[str]]]:
    """llama.cpp's name for the splitting rule, and a function that gives tokens' texts as they come out again.

    ``document`` is tokenizer.json parsed.
    ``fallback`` is for kinds of tokenizer to which llama.cpp does the same under any name.

    Raises InvalidCheckpointError when tokenizer.json cannot be loaded, UnsupportedError when llama.cpp cannot do as it
    says.
    """
    tokenizer = BoundedTokenizer(tokenizer_json, document)

    def normalize(texts: Sequence[str]) -> list[str]:
        results = tokenizer.round_trips(texts)
        # DeepSeek's added tokens are single bytes in GPT-2's alphabet, which are no text of their own.
        return [text if "\ufffd" in result else result for text, result in zip(texts, results, strict=True)]

    table = _known()
    (ids,) = tokenizer.encode([table["probe"]], special=True)
    # Of several vocabularies without the probe's characters the ids are the same.
    known = None if splits_at_spaces(document) else hashlib.sha256(str(ids).encode()).hexdigest()
    name = table["names"].get(known) or fallback or name_by_rule(document)
    refuse_unequal(name)
    return name, normalize


@cache
def _known() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(files(__package__).joinpath("pre_tokenizers.json").read_text(encoding="utf-8"))
    return table
