"""The functions of ggml.h and gguf.h that quantizing needs. Only for the child process."""

import ctypes
from importlib import import_module
from typing import Any

_size, _int64, _pointer, _text = ctypes.c_size_t, ctypes.c_int64, ctypes.c_void_p, ctypes.c_char_p


class InitParams(ctypes.Structure):
    """``struct ggml_init_params`` of ggml.h."""

    _fields_ = (("mem_size", _size), ("mem_buffer", _pointer), ("no_alloc", ctypes.c_bool))


class GGUFInitParams(ctypes.Structure):
    """``struct gguf_init_params`` of gguf.h."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", _pointer))


class TypeTraits(ctypes.Structure):
    """``struct ggml_type_traits`` of ggml.h; ``to_float`` is a null pointer where weights are not widened."""

    _fields_ = (
        ("type_name", _text),
        ("block", _int64),
        ("interleaved_block", _int64),
        ("block_size", _size),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, _pointer, _pointer, _int64)),
        ("from_float_ref", _pointer),
    )


# ggml.h and gguf.h: what each function returns and takes.
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "ggml_row_size": (_size, ctypes.c_int, _int64),
    "ggml_validate_row_data": (ctypes.c_bool, ctypes.c_int, _pointer, _size),
    "ggml_quantize_chunk": (_size, ctypes.c_int, _pointer, _pointer, _int64, _int64, _int64, _pointer),
    "ggml_get_type_traits": (ctypes.POINTER(TypeTraits), ctypes.c_int),
    "ggml_tensor_overhead": (_size,),
    "ggml_init": (_pointer, InitParams),
    "ggml_free": (None, _pointer),
    "ggml_new_tensor": (_pointer, _pointer, ctypes.c_int, ctypes.c_int, ctypes.POINTER(_int64)),
    "ggml_set_name": (_pointer, _pointer, _text),
    "gguf_init_from_file": (_pointer, _text, GGUFInitParams),
    "gguf_init_empty": (_pointer,),
    "gguf_free": (None, _pointer),
    "gguf_set_kv": (None, _pointer, _pointer),
    "gguf_set_val_u32": (None, _pointer, _text, ctypes.c_uint32),
    "gguf_set_val_str": (None, _pointer, _text, _text),
    "gguf_remove_key": (_int64, _pointer, _text),
    "gguf_add_tensor": (None, _pointer, _pointer),
    "gguf_get_n_tensors": (_int64, _pointer),
    "gguf_get_tensor_name": (_text, _pointer, _int64),
    "gguf_get_tensor_type": (ctypes.c_int, _pointer, _int64),
    "gguf_get_tensor_ne": (ctypes.POINTER(_int64), _pointer, _int64),
    "gguf_get_tensor_offset": (_size, _pointer, _int64),
    "gguf_get_tensor_size": (_size, _pointer, _int64),
    "gguf_get_data_offset": (_size, _pointer),
    "gguf_get_alignment": (_size, _pointer),
    "gguf_get_meta_size": (_size, _pointer),
    "gguf_get_meta_data": (None, _pointer, _pointer),
}


def load_ggml() -> ctypes.CDLL:
    """The functions, after llama.h was loaded. They let go of Python's lock while they run."""
    library: ctypes.CDLL = import_module("llama_cpp._ggml").libggml
    for name, (result, *arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
