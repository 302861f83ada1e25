"""Which tensors are quantized by an importance matrix, and which must not be without: llama.cpp's rules for them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from modelpack.errors import ConversionError
from modelpack.gguf_types import FILE_TYPES, TYPE_IDS
from modelpack.quantize.layout import Tensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Importance = Mapping[bytes, NDArray[np.float32]]

# tensor_requires_imatrix and tensor_name_match_token_embd of llama-quant.cpp.
_FEW_BITS = {TYPE_IDS[name] for name in ("IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S")}
_EMBEDDINGS = {b"token_embd.weight", b"per_layer_token_embd.weight"}
_WITHOUT = _EMBEDDINGS | {b"output.weight"}


def match_importance(tensors: Sequence[Tensor], importance: "Importance", file_type: int) -> "Importance":
    """What there is for the tensors that are quantized, a value for each column of each matrix.

    Raises ConversionError where something is missing, or is of another size than its tensor.
    """
    matched = {}
    for tensor in tensors:
        if tensor.is_copied:
            continue
        columns, _, matrices = tensor.cut
        values = importance.get(tensor.name)
        if values is not None and len(values) == columns * matrices:
            matched[tensor.name] = values
        elif values is not None and tensor.name not in _EMBEDDINGS:
            raise ConversionError(
                f"imatrix size {len(values)} is different from tensor size {columns * matrices} "
                f"for {tensor.name.decode()}"
            )
        elif _needs_importance(tensor, file_type):
            raise ConversionError(
                f"Missing importance matrix for tensor {tensor.name.decode()} in a very low-bit quantization"
                if importance
                else "this quantization requires an imatrix!"
            )
    return matched


def _needs_importance(tensor: Tensor, file_type: int) -> bool:
    if tensor.name in _WITHOUT:
        return False
    is_small_q2 = tensor.new_type == TYPE_IDS["Q2_K"] and FILE_TYPES[file_type] == "Q2_K_S"
    return tensor.new_type in _FEW_BITS or is_small_q2
