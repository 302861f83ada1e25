"""What an architecture is to the converter: names, defaults, and what happens to some of its tensors."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from modelpack.convert.config import Config
from modelpack.convert.hyperparameters import COMMON, Hyperparameter
from modelpack.convert.tensor import Tensor
from modelpack.convert.vocabulary import VocabularyReader
from modelpack.errors import UnsupportedError

Operation = Callable[[Tensor, Config], Tensor]
Parts = tuple[tuple[str, Operation], ...]
"""GGUF names, with their ending, and how each is cut out of the checkpoint's tensor."""

_NUMBER = re.compile(r"(?<=\.)\d{1,6}(?=\.|$)", re.ASCII)
# BERT's first checkpoints call a norm's weight and bias as the paper does.
_SUFFIXES = {".weight": ".weight", ".bias": ".bias", ".gamma": ".weight", ".beta": ".bias"}
# Buffers that old checkpoints saved and that no model needs.
_BUFFERS = (".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias", ".position_ids")
_EMPTY: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class MappedTensor:
    """Where one of a checkpoint's tensors goes.

    ``stack`` is given for one of several that become one: what they share of their names, as ``position`` is the place.
    """

    name: str
    operation: Operation | None = None
    stack: str | None = None
    position: int = 0


@dataclass(frozen=True, slots=True)
class Architecture:
    """Everything about one architecture.

    ``tensors`` maps checkpoint names to GGUF names, both without ``.weight`` and ``.bias``, a block's number written
    ``{block}`` and an expert's ``{expert}``; tensors that differ by the latter alone are stacked. A name with its
    ending counts before one without. None leaves a tensor out, ``Parts`` makes several of one. ``operations`` are found
    by the GGUF name and apply to weight and bias alike. ``defaults`` are what the model's class in transformers fills
    in where config.json is silent. ``optional`` GGUF names are not in every block or model. ``extra_tensors`` come
    first in the file.
    """

    gguf_name: str
    hf_names: tuple[str, ...]
    tensors: Mapping[str, str | Parts | None]
    vocabularies: tuple[VocabularyReader, ...]
    hyperparameters: tuple[Hyperparameter, ...] = COMMON
    prefixes: tuple[str, ...] = ()
    """What some checkpoints put before all names."""
    optional: tuple[str, ...] = ("output",)
    defaults: Mapping[str, Any] = field(default_factory=lambda: _EMPTY)
    operations: Mapping[str, Operation] = field(default_factory=lambda: _EMPTY)
    configure: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict
    """Completes a config.json by values that depend on others."""
    before_vocabulary: tuple[Hyperparameter, ...] = ()
    special_tokens: tuple[Hyperparameter, ...] = ()
    """What no file of the tokenizer says; written last."""
    leaves_out: Callable[[str, Config], bool] = lambda _name, _config: False
    """Says of a checkpoint's tensor that the model does without it."""
    extra_tensors: Callable[[Config], Iterable[tuple[str, Tensor]]] = lambda _config: ()

    def config(self, values: Mapping[str, Any], **facts: Any) -> Config:
        return Config.of(self.configure(values), self.defaults, **facts)

    def map_tensor(self, name: str, config: Config) -> list[MappedTensor]:
        """What becomes of a checkpoint's tensor; nothing when it is to be left out.

        Raises UnsupportedError for a tensor that the architecture does not have.
        """
        if name.endswith(_BUFFERS) or self.leaves_out(name, config):
            return []
        short = next((name.removeprefix(prefix) for prefix in self.prefixes if name.startswith(prefix)), name)
        stem, ending = next(
            ((short.removesuffix(old), new) for old, new in _SUFFIXES.items() if short.endswith(old)), (short, "")
        )
        for text, suffix in ((short, ""), (stem, ending)):
            for pattern, numbers in _patterns(text):
                if pattern in self.tensors:
                    return self._found(text, self.tensors[pattern], suffix, numbers)
        raise UnsupportedError(f"tensor {name[:200]!r} is not one of a {self.hf_names[0]}")

    def _found(
        self, text: str, target: str | Parts | None, suffix: str, numbers: list[re.Match[str]]
    ) -> list[MappedTensor]:
        def named(pattern: str) -> str:
            return pattern.replace("{block}", numbers[0].group()) if numbers else pattern

        if target is None:
            return []
        if not isinstance(target, str):
            return [MappedTensor(named(name), operation) for name, operation in target]
        operation = self.operations.get(target)
        if len(numbers) < 2:
            return [MappedTensor(named(target) + suffix, operation)]
        return [MappedTensor(named(target) + suffix, operation, text[: numbers[1].start()], int(numbers[1].group()))]


def _patterns(text: str) -> Iterable[tuple[str, list[re.Match[str]]]]:
    """The name as it is, with its first number for any block's, and with its second for any expert's."""
    yield text, []
    numbers = list(_NUMBER.finditer(text))[:2]
    for taken in range(1, len(numbers) + 1):
        pattern = text
        for match, place in reversed(list(zip(numbers[:taken], ("{block}", "{expert}"), strict=False))):
            pattern = pattern[: match.start()] + place + pattern[match.end() :]
        yield pattern, numbers[:taken]
