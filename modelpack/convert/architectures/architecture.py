"""What an architecture is to the converter: names, defaults, and what happens to some of its tensors."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import gguf

from modelpack.convert.config import Config
from modelpack.convert.tensor import Tensor
from modelpack.convert.tokenizer import VocabularyReader
from modelpack.errors import UnsupportedError

Operation = Callable[[Tensor, Config], Tensor]

_BLOCK = re.compile(r"(?<=\.)\d{1,6}(?=\.)", re.ASCII)
_SUFFIXES = (".weight", ".bias")
# Buffers that old checkpoints saved and that no model needs.
_BUFFERS = (".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias")


def _nothing(_writer: gguf.GGUFWriter, _config: Config) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Architecture:
    """Everything about one architecture.

    ``tensors`` maps checkpoint names to GGUF names, both without ``.weight`` and ``.bias``, a block's number written
    ``{block}``. ``operations`` are found by the GGUF name and apply to weight and bias alike. ``defaults`` are what the
    model's class in transformers fills in where config.json is silent. ``extra_tensors`` come first in the file.
    """

    gguf_name: str
    hf_names: tuple[str, ...]
    tensors: Mapping[str, str]
    vocabularies: tuple[VocabularyReader, ...]
    defaults: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    operations: Mapping[str, Operation] = field(default_factory=lambda: MappingProxyType({}))
    configure: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict
    """Completes a config.json by values that depend on others."""
    add_hyperparameters: Callable[[gguf.GGUFWriter, Config], None] = _nothing
    add_special_tokens: Callable[[gguf.GGUFWriter, Config], None] = _nothing
    """What no file of the tokenizer says; written last."""
    extra_tensors: Callable[[Config], Iterable[tuple[str, Tensor]]] = lambda _config: ()

    def config(self, values: Mapping[str, Any]) -> Config:
        return Config.of(self.configure(values), self.defaults)

    def map_tensor(self, name: str) -> tuple[str, Operation | None] | None:
        """The GGUF name of a checkpoint's tensor, and what to do with it; None when it is to be left out.

        Raises UnsupportedError for a tensor that the architecture does not have.
        """
        if name.endswith(_BUFFERS):
            return None
        stem, suffix = next(((name.removesuffix(end), end) for end in _SUFFIXES if name.endswith(end)), (name, ""))
        block = _BLOCK.search(stem)
        pattern = _BLOCK.sub("{block}", stem, count=1)
        mapped = self.tensors.get(pattern)
        if mapped is None:
            raise UnsupportedError(f"tensor {name[:200]!r} is not one of a {self.hf_names[0]}")
        operation = self.operations.get(mapped)
        return mapped.replace("{block}", block.group() if block else "") + suffix, operation
