"""Which of llama.cpp's ways to split text a byte-level BPE tokenizer wants: ``tokenizer.ggml.pre``.

A GGUF file names the way instead of describing it. Known vocabularies are recognised as upstream's converter does it,
by a hash of the ids that a probe text is encoded to (``pre_tokenizers.json``);
others, retrained or extended, by the splitting rule that tokenizer.json spells out (``splitting``).
"""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from typing import Any

from modelpack.convert.splitting import name_by_rule, refuse_unequal
from modelpack.convert.vocabulary import steps
from modelpack.errors import InvalidCheckpointError

MAX_GROWTH = 256


def find_pre_tokenizer(tokenizer_json: bytes, *, fallback: str | None = None) -> tuple[str, Callable[[str], str]]:
    """llama.cpp's name for the splitting rule, and a function that gives a token's text as it comes out again.

    ``fallback`` is for kinds of tokenizer to which llama.cpp does the same under any name.

    Raises InvalidCheckpointError when tokenizer.json cannot be loaded, UnsupportedError when llama.cpp cannot do as it
    says.
    """
    tokenizer = load_tokenizer(tokenizer_json)

    def normalize(text: str) -> str:
        result: str = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False)
        # DeepSeek's added tokens are single bytes in GPT-2's alphabet, which are no text of their own.
        return text if "\ufffd" in result else result

    table = _known()
    with refusing_what_tokenizers_refuses():
        ids = tokenizer.encode(table["probe"]).ids
    name = table["names"].get(hashlib.sha256(str(ids).encode()).hexdigest())
    name = name or fallback or name_by_rule(json.loads(tokenizer_json))
    refuse_unequal(name)
    return name, normalize


def load_tokenizer(tokenizer_json: bytes) -> Any:
    """A ``tokenizers.Tokenizer`` that neither cuts nor pads. Raises InvalidCheckpointError."""
    from tokenizers import Tokenizer

    with refusing_what_tokenizers_refuses():
        check_growth(json.loads(tokenizer_json))
        tokenizer = Tokenizer.from_buffer(tokenizer_json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if getattr(tokenizer.model, "dropout", None):
        tokenizer.model.dropout = None  # merges left out at random are for training
    return tokenizer


@contextmanager
def refusing_what_tokenizers_refuses() -> Iterator[None]:
    """Turns errors of ``tokenizers`` into InvalidCheckpointError. It raises nothing narrower than Exception, and where
    it panics not even that.
    """
    try:
        yield
    except InvalidCheckpointError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InvalidCheckpointError(f"tokenizer.json cannot be loaded: {str(error)[:300]}") from error


def check_growth(tokenizer: Mapping[str, Any]) -> None:
    """Raises InvalidCheckpointError where normalizing would make much text of little, and tokenizers run out of memory.

    A published tokenizer makes at most three characters of a space, and at most 18 of one of Unicode's ligatures.
    """
    factor = 1
    for step in steps(tokenizer, "normalizer"):
        if step.get("type") == "Sequence":
            raise InvalidCheckpointError("tokenizer.json's normalizer is a sequence of sequences")
        for key in ("content", "prepend"):
            factor *= max(1, len(str(step.get(key, ""))))
        charsmap = step.get("precompiled_charsmap")
        if isinstance(charsmap, str):
            factor *= longest_replacement(base64.b64decode(charsmap))
    if factor > MAX_GROWTH:
        raise InvalidCheckpointError(f"tokenizer.json's normalizer may make {factor} characters of one")


def longest_replacement(charsmap: bytes) -> int:
    """Bytes of the longest text in SentencePiece's table of what characters become.

    It is a trie behind its size, then texts that end with a zero.
    """
    texts = re.compile(rb"[^\0]+").finditer(charsmap, 4 + int.from_bytes(charsmap[:4], "little"))
    return max((match.end() - match.start() for match in texts), default=1)


@cache
def _known() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(files(__package__).joinpath("pre_tokenizers.json").read_text(encoding="utf-8"))
    return table
