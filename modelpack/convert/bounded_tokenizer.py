"""``tokenizers``, as far as it is trusted with a stranger's tokenizer.json: sizes are checked before it is loaded, and
it runs in a child process (``tokenizers_child``) with a limit of memory and of time.

It runs without the interpreter and cannot be stopped in the middle, and its regular expressions give up only after ten
million steps at one place of a text, about a tenth of a second.
"""

import base64
import binascii
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from modelpack.convert.vocabulary import as_dict, check_length, steps
from modelpack.errors import InvalidCheckpointError, InvalidContentError
from modelpack.oci import strict_json

MAX_GROWTH = 256
MAX_SECONDS = 60
"""Of a processor, for all that one loaded tokenizer is asked. Published ones take two, for everything."""
MEMORY_LIMIT = 4 << 30
"""Bytes that the child may own."""
MAX_STEPS = 64
MAX_CHARSMAP_SIZE = 16 << 20
MAX_ADDED_TOKENS = 1 << 18
MAX_AFFIX = 64
MAX_TEMPLATE = 1024

_MAX_ADDED_LENGTH = 1024
_MAX_NORMALIZED = 2048
_MAX_ANSWER = 1 << 28
_KNOWN_EXPRESSIONS = (" {2,}", r"\s+")
_KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")


@dataclass(frozen=True, slots=True)
class AddedToken:
    """``strips`` is whether spaces beside it are its own."""

    token: int
    content: str
    strips: bool


class BoundedTokenizer:
    """A tokenizer that neither cuts nor pads. Every method raises InvalidCheckpointError.

    Its child process ends with it.
    """

    def __init__(self, tokenizer_json: bytes, document: Mapping[str, Any] | None = None) -> None:
        """``document`` is the same, parsed already, if it was."""
        if document is None:
            try:
                document = strict_json.parse_object(tokenizer_json, what="tokenizer.json")
            except InvalidContentError as error:
                raise InvalidCheckpointError(str(error)) from error
        check_sizes(document)
        check_growth(document)
        # Not in the directory that we happen to be in, and as few threads as the limit of time is counted for.
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", "modelpack.convert.tokenizers_child", str(MEMORY_LIMIT), str(MAX_SECONDS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={
                **{name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ},
                "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
                "TOKENIZERS_PARALLELISM": "false",
            },
        )
        weakref.finalize(self, _end, self._child)
        loaded = self._ask(b"%d\n%b" % (len(tokenizer_json), tokenizer_json))
        self.kind: str = loaded["kind"]
        """``BPE``, ``Unigram``, ``WordPiece`` or ``WordLevel``."""
        self.added_tokens = [AddedToken(*one) for one in loaded["added"]]
        """By id."""

    def encode(self, texts: Sequence[str], *, special: bool = False) -> list[list[int]]:
        """The ids of each text, with ``special`` those of the tokens that begin and end it, too."""
        ids: list[list[int]] = self._call("encode", list(texts), special)
        return ids

    def round_trips(self, texts: Sequence[str]) -> list[str]:
        """Each text as it comes out of its tokens again."""
        result: list[str] = self._call("round_trips", list(texts))
        return result

    def _call(self, method: str, *parameters: object) -> Any:
        return self._ask(json.dumps([method, *parameters]).encode("ascii") + b"\n")

    def _ask(self, request: bytes) -> Any:
        stdin, stdout = _pipes(self._child)
        with contextlib.suppress(BrokenPipeError):  # it ended; the answer that is missing tells how
            stdin.write(request)
            stdin.flush()
        line = stdout.readline(_MAX_ANSWER)
        if not line.endswith(b"\n"):
            raise InvalidCheckpointError(self._describe_end())
        answer = json.loads(line)
        if "refusal" in answer:
            raise InvalidCheckpointError(f"tokenizer.json cannot be loaded: {answer['refusal'][:300]}")
        return answer["answer"]

    def _describe_end(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(1.0)
        status = self._child.poll()
        if status == -signal.SIGXCPU:
            return f"tokenizer.json takes more than {MAX_SECONDS} s for a few hundred texts"
        if status is None:
            how = "gave no end of answers"
        else:
            how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        return f"tokenizer.json cannot be loaded: tokenizers, which may own {MEMORY_LIMIT >> 30} GiB, {how}"


def _pipes(child: "subprocess.Popen[bytes]") -> tuple[IO[bytes], IO[bytes]]:
    assert child.stdin is not None and child.stdout is not None  # noqa: S101, PT018  # pipes were asked for
    return child.stdin, child.stdout


def _end(child: "subprocess.Popen[bytes]") -> None:
    child.kill()
    child.wait()
    for pipe in _pipes(child):
        with contextlib.suppress(OSError):
            pipe.close()


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
    if any(step.get("type") == "Sequence" for step in steps(tokenizer, "normalizer")):
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
    try:
        replacement = longest_replacement(base64.b64decode(charsmap)) if isinstance(charsmap, str) else 1
    except binascii.Error as error:
        raise InvalidCheckpointError("tokenizer.json's precompiled_charsmap is not base64") from error
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
