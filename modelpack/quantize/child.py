"""The child process: quantize as its one argument says (JSON), and write a log to standard output.

Started by ``modelpack.quantize.run`` and by nobody else. llama.cpp chooses the types and ggml quantizes the rows; what
``llama_model_quantize`` does between the two is done here, because it has whole tensors of the source in memory.
"""

import ctypes
import errno
import json
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelpack.errors import ConversionError
from modelpack.gguf_types import GGML_TYPES, TYPE_IDS
from modelpack.imatrix import ImportanceMatrix, as_metadata
from modelpack.isolation import limit_resources
from modelpack.llama_library import load_llama
from modelpack.quantize.choice import choose_types
from modelpack.quantize.importance import match_importance
from modelpack.quantize.layout import Tensor, lay_out
from modelpack.quantize.libggml import load_ggml
from modelpack.quantize.rows import Work, write_rows

if TYPE_CHECKING:
    from modelpack.quantize.importance import Importance

# Of a text in llama_model_kv_override, which llama-quantize writes metadata through: without its terminating zero.
_TEXT_SIZE = 127


def main(arguments: list[str]) -> int:
    order: dict[str, Any] = json.loads(arguments[0])
    limit_resources(order["memory_limit"])
    try:
        return 0 if _quantize(order) else 1
    except ConversionError as refusal:
        _log(f"failed to quantize: {refusal}")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return errno.ENOSPC
        _log(f"failed to quantize: {error}")
    return 1


def _quantize(order: dict[str, Any]) -> bool:
    """False where llama.cpp refuses, and has said why."""
    llama = load_llama()
    ggml = load_ggml()
    importance: Importance = {}
    metadata: dict[str, int | bytes] = {}
    if order["imatrix"]:
        matrix = ImportanceMatrix.load(Path(order["imatrix"]))
        importance = {name.encode(): entry.importance for name, entry in matrix.entries.items()}
        for key, value in as_metadata(matrix, order["imatrix_name"]).items():
            metadata[key] = value if isinstance(value, int) else _shortened(value)

    sources = [os.fsencode(source) for source in order["sources"]]
    parameters = llama.llama_model_quantize_default_params()
    parameters.ftype = order["file_type"]
    # What llama.cpp is given pointers to must live until it is done.
    kept = _apply_recipe(llama, parameters, order["recipe"]), _apply_importance(llama, parameters, importance)
    choices = choose_types(llama, sources[0], parameters)
    del kept
    if choices is None:
        return False
    layout = lay_out(ggml, sources, choices, order["file_type"], metadata)
    if not order["recipe"]["allow_requantize"]:
        _refuse_requantizing(layout.tensors, order["sources"])
    importance = match_importance(layout.tensors, importance, order["file_type"])
    with ExitStack() as stack:
        shards = [stack.enter_context(open(source, "rb", buffering=0)) for source in sources]  # noqa: PTH123  # bytes
        target = stack.enter_context(Path(order["target"]).open("wb"))
        target.write(layout.head)
        target.truncate(layout.size)  # what is not written to is padding
        target.flush()
        work = Work(
            sources=[shard.fileno() for shard in shards],
            target=target.fileno(),
            tensors=layout.tensors,
            importance=importance,
            threads=order["threads"],
            buffer_size=order["buffer_size"],
        )
        numbers = count(1)
        write_rows(
            ggml, work, announce=lambda tensor: _log(f"[{next(numbers)}/{len(work.tensors)}] {tensor.name.decode()}")
        )
    return True


def _refuse_requantizing(tensors: Sequence[Tensor], sources: Sequence[str]) -> None:
    for tensor in tensors:
        name, block, _ = GGML_TYPES[tensor.type]
        if block > 1 and not tensor.is_copied:
            raise ConversionError(
                f"{Path(sources[tensor.shard]).name} is quantized already ({name}), and {tensor.name.decode()} would"
                " lose twice; only --allow-requantize allows that"
            )


def _apply_recipe(llama: Any, parameters: Any, recipe: dict[str, Any]) -> object:
    parameters.pure = recipe["pure"]
    if recipe["output_tensor_type"]:
        parameters.output_tensor_type = TYPE_IDS[recipe["output_tensor_type"]]
    if recipe["token_embedding_type"]:
        parameters.token_embedding_type = TYPE_IDS[recipe["token_embedding_type"]]
    if not recipe["tensor_types"]:
        return None
    # The array ends with an entry without a pattern.
    rules = (llama.llama_model_tensor_override * (len(recipe["tensor_types"]) + 1))()
    for rule, wanted in zip(rules, recipe["tensor_types"], strict=False):
        rule.pattern, rule.type = wanted["pattern"].encode(), TYPE_IDS[wanted["type"]]
    parameters.tt_overrides = ctypes.cast(rules, type(parameters.tt_overrides))
    return rules


def _apply_importance(llama: Any, parameters: Any, importance: "Importance") -> object:
    if not importance:
        return None
    entries = (llama.llama_model_imatrix_data * (len(importance) + 1))()
    for entry, (tensor, values) in zip(entries, importance.items(), strict=False):
        entry.name, entry.size = tensor, len(values)
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    parameters.imatrix = ctypes.cast(entries, type(parameters.imatrix))
    return entries


def _shortened(text: str) -> bytes:
    """As much of a text as fits, without half a character at its end."""
    return text.encode()[:_TEXT_SIZE].decode("utf-8", "ignore").encode()


def _log(line: str) -> None:
    os.write(1, f"{line}\n".encode())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
