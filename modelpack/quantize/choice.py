"""Which type each tensor gets: llama.cpp's own choice, read from the log of a dry run of ``llama_model_quantize``."""

import ctypes
import os
import re
from dataclasses import dataclass
from typing import Any

from modelpack.errors import ConversionError
from modelpack.gguf_types import TYPE_IDS

# One call of the log announces a tensor, the next one says what becomes of it (llama_model_quantize_impl).
_TENSOR = re.compile(rb"\[ *\d+/ *\d+\] (.*\S) +- \[[ \d,]+\], type = +\S+, ", re.DOTALL)
_OUTCOME = re.compile(rb"size = +[\d.]+ MiB(?: -> +[\d.]+ MiB \((\w+)\))?\n")


@dataclass(frozen=True, slots=True)
class Choice:
    """``type`` is ggml's number of it, None for a tensor that keeps its own."""

    tensor: bytes
    type: int | None


def choose_types(llama: Any, source: bytes, parameters: Any) -> tuple[Choice, ...] | None:
    """What ``parameters`` make of each tensor, in the order of the new file; None where llama.cpp refuses.

    The log goes to standard output, but for the lines that are read here. Raises ConversionError if they make no sense.
    """
    tensors: list[bytes] = []
    outcomes: list[bytes] = []

    @llama.llama_log_callback  # type: ignore[untyped-decorator]  # a ctypes function type
    def read_log(_level: int, text: bytes, _data: object) -> None:
        if match := _TENSOR.fullmatch(text):
            tensors.append(match[1])
        elif len(outcomes) < len(tensors):
            outcomes.append(text)
        else:
            os.write(1, text)

    llama.llama_log_set(read_log, None)
    parameters.dry_run = True
    status = llama.llama_model_quantize(source, b"", ctypes.byref(parameters))
    llama.llama_log_set(llama.llama_log_callback(), None)
    return None if status else tuple(_read(*pair) for pair in zip(tensors, outcomes, strict=True))


def _read(tensor: bytes, outcome: bytes) -> Choice:
    match = _OUTCOME.fullmatch(outcome)
    name = match[1].decode().upper() if match and match[1] else None
    if not match or (name is not None and name not in TYPE_IDS):
        raise ConversionError(f"what llama.cpp would make of {tensor.decode()} is not understood: {outcome!r}")
    return Choice(tensor, None if name is None else TYPE_IDS[name])
