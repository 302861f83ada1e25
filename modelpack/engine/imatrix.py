"""An importance matrix, computed: the squares of what flows into each weight while a model reads a text.

The same sums as llama-imatrix's (tools/imatrix of llama.cpp), gathered through the scheduler's callback in a child
process. This module is both sides: the caller's function, and the program that the child runs.
"""

import ctypes
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelpack.engine.task import Advance, run_task, serve_task
from modelpack.errors import NotFoundError
from modelpack.gguf_shards import read_whole_header
from modelpack.imatrix import Entry, ImportanceMatrix
from modelpack.progress import SILENT, Progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Of ggml.h.
_GGML_TYPE_F32 = 0
_GGML_MAX_DIMS = 4
_GGML_MAX_OP_PARAMS = 64
_GGML_MAX_SRC = 10
_GGML_MAX_NAME = 64
_GGML_OBJECT_SIZE = 32

_SMALLEST_BATCH = 16
"""Products with fewer rows are no part of reading a text: llama-imatrix leaves them out, too."""


def compute_imatrix(
    model: Path,
    text: str,
    target: Path,
    *,
    dataset: str,
    context: int | None = None,
    threads: int | None = None,
    timeout: float = 24 * 3600,
    progress: Progress = SILENT,
) -> None:
    """Run ``model`` (GGUF) over ``text`` and write its importance matrix to ``target``, named to be of ``dataset``.

    ``context`` is the number of tokens in a chunk, 512 or what the model was trained with if that is less.
    Raises NotFoundError, InvalidGGUFError, InvalidInputError for a text of fewer than two chunks, WorkerError.
    """
    if not model.is_file():
        raise NotFoundError(f"no model file at {model}")
    read_whole_header(model)
    configuration = {
        "model": str(model.absolute()),
        "text": text,
        "target": str(target.resolve()),
        "dataset": dataset,
        "context": context,
        "threads": threads,
    }
    run_task(__name__, configuration, label="importance", name=model.name, timeout=timeout, progress=progress)


class _Tensor(ctypes.Structure):
    """``struct ggml_tensor`` of ggml.h."""


_Tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * _GGML_MAX_DIMS),
    ("nb", ctypes.c_size_t * _GGML_MAX_DIMS),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * (_GGML_MAX_OP_PARAMS // 4)),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(_Tensor) * _GGML_MAX_SRC),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * _GGML_MAX_NAME),
    ("extra", ctypes.c_void_p),
    ("padding", ctypes.c_char * 8),
]


class _Collector:
    """Sums and counts by the name of the weight."""

    def __init__(self) -> None:
        self.sums: dict[str, NDArray[np.float64]] = {}
        self.counts: dict[str, NDArray[np.int64]] = {}
        self.error: Exception | None = None
        self._ggml: Any = import_module("llama_cpp._ggml").libggml
        self._ggml.ggml_op_name.restype = ctypes.c_char_p
        self._ggml.ggml_nbytes.restype = self._ggml.ggml_tensor_overhead.restype = ctypes.c_size_t
        # Another layout than ours would be read as noise.
        if self._ggml.ggml_tensor_overhead() - _GGML_OBJECT_SIZE != ctypes.sizeof(_Tensor):
            raise RuntimeError("this llama.cpp keeps its tensors in another layout than the one that is known here")

    def look(self, address: int, ask: bool) -> bool:
        """ggml's scheduler asks whether a tensor is wanted, and comes again when it has been computed."""
        try:
            tensor = ctypes.cast(address, ctypes.POINTER(_Tensor)).contents
            operation = self._ggml.ggml_op_name(tensor.op).decode()
            if ask:
                return self._wants(tensor, operation)
            if operation == "MUL_MAT_ID":
                self._add_experts(tensor)
            else:
                self._add(tensor)
        except Exception as error:
            self.error = self.error or error
            return False  # ends the graph
        return True

    def _wants(self, tensor: _Tensor, operation: str) -> bool:
        if operation == "MUL_MAT_ID":
            return True
        if operation != "MUL_MAT":
            return False
        inputs = tensor.src[1].contents
        is_batch = inputs.ne[1] >= _SMALLEST_BATCH and inputs.type == _GGML_TYPE_F32
        return is_batch and _weight_name(tensor).startswith("blk.")

    def _add(self, tensor: _Tensor) -> None:
        import numpy as np

        weight, inputs = tensor.src[0].contents, self._read(tensor.src[1], np.float32)
        matrices = (weight.ne[3], weight.ne[2])
        sums, counts = self._entry(_weight_name(tensor), matrices[0] * matrices[1], inputs.shape[-1], 1)
        for outer in range(inputs.shape[0]):
            for inner in range(inputs.shape[1]):
                matrix = outer % matrices[0] * matrices[1] + inner % matrices[1]
                rows = inputs[outer, inner].astype(np.float64)
                sums[matrix] += np.einsum("rc,rc->c", rows, rows)
        counts += inputs[..., 0].size // (matrices[0] * matrices[1])

    def _add_experts(self, tensor: _Tensor) -> None:
        """``inputs`` are (1, tokens, 1 or experts used, columns), ``chosen`` (1, 1, tokens, experts used)."""
        import numpy as np

        weight = tensor.src[0].contents
        inputs, chosen = self._read(tensor.src[1], np.float32)[0], self._read(tensor.src[2], np.int32)[0, 0]
        experts = weight.ne[2]
        sums, counts = self._entry(_weight_name(tensor), experts, inputs.shape[-1], experts)
        for slot in range(chosen.shape[1]):
            rows = inputs[:, slot % inputs.shape[1]].astype(np.float64)
            for expert in np.unique(chosen[:, slot]):
                reached = rows[chosen[:, slot] == expert]
                sums[expert] += np.einsum("rc,rc->c", reached, reached)
                counts[expert] += len(reached)

    def _entry(
        self, name: str, matrices: int, columns: int, counts: int
    ) -> "tuple[NDArray[np.float64], NDArray[np.int64]]":
        import numpy as np

        sums = self.sums.setdefault(name, np.zeros((matrices, columns)))
        if sums.shape != (matrices, columns):
            raise RuntimeError(f"{name} changes its shape")
        return sums, self.counts.setdefault(name, np.zeros(counts, np.int64))

    def _read(self, pointer: Any, kind: Any) -> "NDArray[Any]":
        """A tensor's values, dimensions in numpy's order (the slowest first), wherever the backend keeps them."""
        import numpy as np

        tensor = pointer.contents
        size = self._ggml.ggml_nbytes(pointer)
        content = bytearray(size)
        view = (ctypes.c_char * size).from_buffer(content)
        self._ggml.ggml_backend_tensor_get(pointer, view, ctypes.c_size_t(0), ctypes.c_size_t(size))
        return np.ndarray(tuple(tensor.ne)[::-1], kind, content, strides=tuple(tensor.nb)[::-1])


def _weight_name(tensor: _Tensor) -> str:
    """``CUDA0#blk.0.attn_k.weight#0`` is how a scheduler calls its copy of a weight."""
    name: str = tensor.src[0].contents.name.decode()
    return name.split("#")[1] if "#" in name else name


def _work(configuration: dict[str, Any], advance: Advance) -> dict[str, Any]:
    import numpy as np

    from modelpack.engine.entry import take_log
    from modelpack.engine.inference import Inference

    llama_cpp: Any = import_module("llama_cpp")
    take_log(llama_cpp)
    collector = _Collector()

    @llama_cpp.ggml_backend_sched_eval_callback  # type: ignore[untyped-decorator]  # a ctypes function type
    def callback(address: int, ask: bool, _: object) -> bool:
        return collector.look(address, ask)

    model = Inference(
        configuration["model"],
        context=configuration["context"],
        threads=configuration["threads"],
        on_gpu=False,
        callback=callback,
    )
    chunks = model.chunks(model.tokenize(configuration["text"]))
    for chunk in chunks:
        # All outputs: the last layer would otherwise see only the positions that give one.
        model.run(chunk)
        if collector.error:
            raise collector.error
        advance(len(chunks))
    entries = {
        name: Entry(
            sums.reshape(len(collector.counts[name]), -1).astype(np.float32), collector.counts[name].astype("f4")
        )
        for name, sums in collector.sums.items()
    }
    matrix = ImportanceMatrix(entries, len(chunks), (configuration["dataset"],))
    matrix.save(Path(configuration["target"]))
    return {}


if __name__ == "__main__":
    serve_task(_work)
