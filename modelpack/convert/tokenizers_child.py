"""The child process: loads one tokenizer.json with ``tokenizers`` and answers what it is asked, a line for a line.

Started by ``modelpack.convert.bounded_tokenizer`` and by nobody else, with its limits of memory and time as arguments.
Standard input: the size of tokenizer.json as a line, the file, then one request a line: ``[METHOD, ARGUMENT...]``.
Standard output: one answer a line, ``{"answer": ...}`` or ``{"refusal": ...}``; the first is of loading.
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from modelpack.isolation import leave_network, limit_resources, limit_time


def main(arguments: list[str]) -> None:
    memory, seconds = map(int, arguments)
    limit_resources(memory)
    limit_time(seconds)
    leave_network()
    content = sys.stdin.buffer.read(int(sys.stdin.buffer.readline()))
    asked = _Asked()
    _answer(partial(asked.load, content))
    for line in sys.stdin.buffer:
        method, *parameters = json.loads(line)
        _answer(partial(getattr(asked, method), *parameters))


class _Asked:
    """The tokenizer. What its methods return is what JSON can say."""

    def __init__(self) -> None:
        self._tokenizer: Any = None

    def load(self, content: bytes) -> dict[str, Any]:
        from tokenizers import Tokenizer

        self._tokenizer = tokenizer = Tokenizer.from_buffer(content)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        if getattr(tokenizer.model, "dropout", None):
            tokenizer.model.dropout = None  # merges left out at random are for training
        added = sorted(tokenizer.get_added_tokens_decoder().items())
        return {
            "kind": type(tokenizer.model).__name__,
            "added": [(number, token.content, token.lstrip or token.rstrip) for number, token in added],
        }

    def encode(self, texts: list[str], special: bool) -> list[list[int]]:
        return [one.ids for one in self._tokenizer.encode_batch(texts, add_special_tokens=special)]

    def round_trips(self, texts: list[str]) -> list[str]:
        return [self._tokenizer.decode(ids, skip_special_tokens=False) for ids in self.encode(texts, special=False)]


def _answer(work: Callable[[], Any]) -> None:
    try:
        answer = {"answer": work()}
    except BaseException as error:
        # tokenizers raises nothing narrower than Exception, and where it panics not even that.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        answer = {"refusal": str(error)}
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
