"""The child process: quantize as its one argument says (JSON), and write llama.cpp's log to standard output.

Started by ``modelpack.quantize.run`` and by nobody else.
"""

import ctypes
import json
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from modelpack.imatrix import ImportanceMatrix, as_metadata
from modelpack.isolation import limit_resources
from modelpack.quantize.types import TENSOR_TYPE_IDS

_TEXT_SIZE = 128
"""Of a text in llama_model_kv_override, its terminating zero included."""


def main(arguments: list[str]) -> int:
    order: dict[str, Any] = json.loads(arguments[0])
    limit_resources(order["memory_limit"])
    llama_cpp: Any = import_module("llama_cpp")

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]  # a ctypes function type
    def write_log(_level: int, text: bytes, _data: object) -> None:
        os.write(1, text)

    llama_cpp.llama_log_set(write_log, ctypes.c_void_p(0))
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = order["file_type"]
    parameters.nthread = order["threads"]
    parameters.max_buf_size = order["buffer_size"]
    # What llama.cpp is given pointers to must live until it is done.
    kept = [_apply_recipe(llama_cpp, parameters, order["recipe"])]
    if order["imatrix"]:
        matrix = ImportanceMatrix.load(Path(order["imatrix"]))
        kept += [_apply_matrix(llama_cpp, parameters, matrix, order["imatrix_name"])]
    source, target = (os.fsencode(order[key]) for key in ("source", "target"))
    status = llama_cpp.llama_model_quantize(source, target, ctypes.byref(parameters))
    return 1 if status else 0


def _apply_recipe(llama_cpp: Any, parameters: Any, recipe: dict[str, Any]) -> object:
    parameters.pure = recipe["pure"]
    if recipe["output_tensor_type"]:
        parameters.output_tensor_type = TENSOR_TYPE_IDS[recipe["output_tensor_type"]]
    if recipe["token_embedding_type"]:
        parameters.token_embedding_type = TENSOR_TYPE_IDS[recipe["token_embedding_type"]]
    if not recipe["tensor_types"]:
        return None
    # The array ends with an entry without a pattern.
    rules = (llama_cpp.llama_model_tensor_override * (len(recipe["tensor_types"]) + 1))()
    for rule, wanted in zip(rules, recipe["tensor_types"], strict=False):
        rule.pattern, rule.type = wanted["pattern"].encode(), TENSOR_TYPE_IDS[wanted["type"]]
    parameters.tt_overrides = ctypes.cast(rules, type(parameters.tt_overrides))
    return rules


def _apply_matrix(llama_cpp: Any, parameters: Any, matrix: ImportanceMatrix, name: str) -> object:
    importance = {name.encode(): entry.importance for name, entry in matrix.entries.items()}
    entries = (llama_cpp.llama_model_imatrix_data * (len(importance) + 1))()
    for entry, (tensor, values) in zip(entries, importance.items(), strict=False):
        entry.name, entry.size = tensor, len(values)
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    parameters.imatrix = ctypes.cast(entries, type(parameters.imatrix))

    metadata = as_metadata(matrix, name)
    overrides = (llama_cpp.llama_model_kv_override * (len(metadata) + 1))()
    for override, (key, value) in zip(overrides, metadata.items(), strict=False):
        override.key = key.encode()
        if isinstance(value, int):
            override.tag, override.value.val_i64 = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_INT, value
        else:
            override.tag = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_STR
            override.value.val_str = _cut(value)
    parameters.kv_overrides = ctypes.cast(overrides, type(parameters.kv_overrides))
    return entries, overrides, importance


def _cut(text: str) -> bytes:
    """As much of a text as fits, without half a character at its end."""
    return text.encode()[: _TEXT_SIZE - 1].decode("utf-8", "ignore").encode()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
