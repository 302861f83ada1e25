"""``tokenizers``, as far as it is trusted with a stranger's tokenizer.json: sizes are checked before it is loaded, what
it raises is one error, and the time that it may take is limited.

It runs without the interpreter and cannot be stopped in the middle: a limit of time is looked at between texts, so what
one text may take has to be limited by what is allowed to be large. Its regular expressions give up after ten million
steps at one place of a text, about a tenth of a second.
"""

import base64
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from modelpack.convert.vocabulary import as_dict, check_length
from modelpack.errors import InvalidCheckpointError

MAX_GROWTH = 256
MAX_SECONDS = 60.0
"""For all that one loaded tokenizer is asked. Published ones take two, for everything."""
MAX_STEPS = 64
MAX_CHARSMAP_SIZE = 16 << 20
MAX_ADDED_TOKENS = 1 << 18
MAX_AFFIX = 64
MAX_TEMPLATE = 1024

_MAX_ADDED_LENGTH = 1024
_MAX_NORMALIZED = 2048
_AT_ONCE = 8
_KNOWN_EXPRESSIONS = (" {2,}", r"\s+")


class BoundedTokenizer:
    """A tokenizer that neither cuts nor pads. Every method raises InvalidCheckpointError."""

    def __init__(self, tokenizer_json: bytes, document: Mapping[str, Any] | None = None) -> None:
        """``document`` is the same, parsed already, if it was."""
        from tokenizers import Tokenizer

        self._spent = 0.0
        with self._asking():
            document = json.loads(tokenizer_json) if document is None else document
            check_sizes(document)
            check_growth(document)
            tokenizer = Tokenizer.from_buffer(tokenizer_json)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        if getattr(tokenizer.model, "dropout", None):
            tokenizer.model.dropout = None  # merges left out at random are for training
        self._tokenizer = tokenizer

    @property
    def kind(self) -> str:
        """``BPE``, ``Unigram``, ``WordPiece`` or ``WordLevel``."""
        return type(self._tokenizer.model).__name__

    @property
    def added_tokens(self) -> list[tuple[int, Any]]:
        """Ids and ``tokenizers.AddedToken``, by id."""
        return sorted(self._tokenizer.get_added_tokens_decoder().items())

    def encode(self, texts: Sequence[str], *, special: bool = False) -> list[list[int]]:
        """The ids of each text, with ``special`` those of the tokens that begin and end it, too."""
        result: list[list[int]] = []
        for first in range(0, len(texts), _AT_ONCE):
            with self._asking():
                some = list(texts[first : first + _AT_ONCE])
                result += [one.ids for one in self._tokenizer.encode_batch(some, add_special_tokens=special)]
        return result

    def round_trip(self, text: str) -> str:
        """A text as it comes out of its tokens again."""
        (ids,) = self.encode([text])
        with self._asking():
            result: str = self._tokenizer.decode(ids, skip_special_tokens=False)
        return result

    def normalize(self, text: str) -> str:
        with self._asking():
            normalizer = self._tokenizer.normalizer
            result: str = text if normalizer is None else normalizer.normalize_str(text)
        return result

    @contextmanager
    def _asking(self) -> Iterator[None]:
        started = time.monotonic()
        with refusing_what_tokenizers_refuses():
            yield
        self._spent += time.monotonic() - started
        if self._spent > MAX_SECONDS:
            raise InvalidCheckpointError(f"tokenizer.json takes more than {MAX_SECONDS:.0f} s for a few hundred texts")


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


def check_sizes(tokenizer: Mapping[str, Any]) -> None:
    """Raises InvalidCheckpointError where one thing is larger than any published tokenizer has it."""
    model = as_dict(tokenizer.get("model"))
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if len(str(model.get(name) or "")) > MAX_AFFIX:
            raise InvalidCheckpointError(f"tokenizer.json's {name} has more than {MAX_AFFIX} characters")
    vocabulary = model.get("vocab")
    pieces = (
        [piece[0] for piece in vocabulary if isinstance(piece, list) and piece] if isinstance(vocabulary, list) else ()
    )
    texts = [text for text in as_dict(vocabulary) or pieces if isinstance(text, str)]
    check_length(max(texts, key=len, default=""), "tokenizer.json")
    _check_added(tokenizer)
    for kind in ("normalizer", "pre_tokenizer", "decoder"):
        found = list(_every_step(as_dict(tokenizer.get(kind))))
        if len(found) > MAX_STEPS:
            raise InvalidCheckpointError(f"tokenizer.json's {kind} has more than {MAX_STEPS} steps")
        if any(len(str(step.get("precompiled_charsmap") or "")) > MAX_CHARSMAP_SIZE * 4 // 3 for step in found):
            raise InvalidCheckpointError(f"the tokenizer's charsmap is larger than {MAX_CHARSMAP_SIZE >> 20} MiB")
    if _template_length(as_dict(tokenizer.get("post_processor"))) > MAX_TEMPLATE:
        raise InvalidCheckpointError(f"tokenizer.json adds more than {MAX_TEMPLATE} tokens to every text")


def _check_added(tokenizer: Mapping[str, Any]) -> None:
    found = tokenizer.get("added_tokens")
    added = [as_dict(entry) for entry in found] if isinstance(found, list) else []
    if len(added) > MAX_ADDED_TOKENS:
        raise InvalidCheckpointError(f"tokenizer.json has more than {MAX_ADDED_TOKENS} added tokens")
    lengths = [len(str(entry.get("content"))) for entry in added]
    if max(lengths, default=0) > _MAX_ADDED_LENGTH:
        raise InvalidCheckpointError(f"tokenizer.json has an added token of more than {_MAX_ADDED_LENGTH} characters")
    # These go through the normalizer while the file is loaded.
    normalized = sum(length for entry, length in zip(added, lengths, strict=True) if entry.get("normalized"))
    expressions = [
        as_dict(step.get("pattern")).get("Regex") for step in _every_step(as_dict(tokenizer.get("normalizer")))
    ]
    if normalized > _MAX_NORMALIZED and any(one and one not in _KNOWN_EXPRESSIONS for one in expressions):
        raise InvalidCheckpointError(
            f"tokenizer.json has {normalized} characters of added tokens to normalize with a regular expression"
        )


def _template_length(processor: Mapping[str, Any]) -> int:
    """How many tokens a post-processor may add."""
    inner = processor.get("processors")
    length = sum(_template_length(as_dict(one)) for one in inner) if isinstance(inner, list) else 0
    special = as_dict(processor.get("special_tokens"))
    for name in ("single", "pair"):
        parts = processor.get(name)
        for part in parts if isinstance(parts, list) else ():
            ids = as_dict(special.get(str(as_dict(as_dict(part).get("SpecialToken")).get("id")))).get("ids")
            length += 1 + (len(ids) if isinstance(ids, list) else 0)
    return length


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
