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

from modelpack.convert.splitting import name_by_rule, refuse_unequal, splits_at_spaces
from modelpack.convert.vocabulary import as_dict
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
        with refusing_what_tokenizers_refuses():
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            result: str = tokenizer.decode(ids, skip_special_tokens=False)
        # DeepSeek's added tokens are single bytes in GPT-2's alphabet, which are no text of their own.
        return text if "\ufffd" in result else result

    table = _known()
    with refusing_what_tokenizers_refuses():
        ids = tokenizer.encode(table["probe"]).ids
    # Of several vocabularies without the probe's characters the ids are the same.
    document = json.loads(tokenizer_json)
    known = None if splits_at_spaces(document) else hashlib.sha256(str(ids).encode()).hexdigest()
    name = table["names"].get(known) or fallback or name_by_rule(document)
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
    """Raises InvalidCheckpointError where text would become much longer on its way to tokens and back, and tokenizers
    run out of memory.

    A published tokenizer makes at most three characters of a space, and at most 18 of one of Unicode's ligatures.
    """
    normalizers = as_dict(tokenizer.get("normalizer")).get("normalizers")
    if any(as_dict(step).get("type") == "Sequence" for step in normalizers or ()):
        raise InvalidCheckpointError("tokenizer.json's normalizer is a sequence of sequences")
    factor = 1
    for kind in ("normalizer", "pre_tokenizer", "decoder"):
        for step in _every_step(as_dict(tokenizer.get(kind))):
            factor *= _growth(step)
            if factor > MAX_GROWTH:
                raise InvalidCheckpointError(f"tokenizer.json's {kind} may make {factor} characters of one")


def _every_step(step: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A step and those that it is made of."""
    yield step
    for key in ("normalizers", "pretokenizers", "decoders"):
        inner = step.get(key)
        for one in inner if isinstance(inner, list) else ():
            yield from _every_step(as_dict(one))


def _growth(step: Mapping[str, Any]) -> int:
    """How many characters a step may make of one."""
    if step.get("type") == "ByteLevel":
        return 2  # GPT-2's alphabet has a character for each byte, half of them of two bytes
    charsmap = step.get("precompiled_charsmap")
    replacement = longest_replacement(base64.b64decode(charsmap)) if isinstance(charsmap, str) else 1
    pattern = as_dict(step.get("pattern"))
    sought = (pattern.get("String"), step.get("suffix"), step.get("word_delimiter_token"))
    # What is found between any two characters leaves them as they are, and adds to them.
    is_additional = "Regex" in pattern or "" in sought
    return max(replacement, len(str(step.get("content", ""))), len(str(step.get("prepend", "")))) + is_additional


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
