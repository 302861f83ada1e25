"""checkpoint -> GGUF: first a plan, from headers and small files alone, then the work, a few MiB at a time.

The output equals that of upstream's ``convert_hf_to_gguf.py`` (in the llama.cpp of llama-cpp-python 0.3.36) byte for
byte, but for what ``tests/data/conversion/README.md`` lists.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from modelpack.convert.architectures import Architecture, find_architecture
from modelpack.convert.checkpoint import Checkpoint
from modelpack.convert.config import Config
from modelpack.convert.metadata import add_general, add_hyperparameters
from modelpack.convert.special_tokens import read_special_tokens
from modelpack.convert.tensor import Shards
from modelpack.convert.tokenizer import Vocabulary
from modelpack.convert.writer import PlannedTensor, data_size, header_bytes, write_file
from modelpack.errors import InvalidCheckpointError, InvalidInputError
from modelpack.progress import SILENT, Progress

FILE_TYPES = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "BF16": gguf.LlamaFileType.MOSTLY_BF16,
}
"""What a checkpoint can be converted to; anything smaller is llama.cpp's work (``modelpack.quantize``)."""


@dataclass(frozen=True, slots=True)
class ConversionPlan:
    """What a conversion will write. ``tensors`` are in the order of the file, their weights not yet read."""

    architecture: str
    """llama.cpp's name, for example ``llama``."""
    file_type: str
    """F32, F16 or BF16."""
    metadata: Mapping[str, Any]
    """GGUF keys and values, tokens and all, in the order of the file."""
    tensors: tuple[PlannedTensor, ...]
    header: bytes = field(repr=False)
    shards: Shards = field(repr=False)

    @property
    def tensor_count(self) -> int:
        return len(self.tensors)

    @property
    def parameters(self) -> int:
        """How many weights there are."""
        return sum(prod(planned.tensor.shape) for planned in self.tensors)

    @property
    def output_size(self) -> int:
        """Bytes of the file."""
        return len(self.header) + data_size(self.tensors)


def plan_conversion(checkpoint: Checkpoint, *, file_type: str | None = None, name: str | None = None) -> ConversionPlan:
    """Decide everything about a conversion; reads no weights.

    ``file_type`` is the checkpoint's own unless given, so that nothing is rounded. ``name`` is what the model is called
    where its card is silent (``general.name``); without it the directory's name is used, and ends up in the file.

    Raises UnknownArchitectureError, InvalidCheckpointError, UnsupportedError, InvalidInputError.
    """
    architecture = find_architecture(checkpoint.architecture)
    config = architecture.config(checkpoint.config)
    file_type = _choose_type(checkpoint, file_type)
    shards = Shards()
    tensors = _plan_tensors(architecture, checkpoint, config, shards, file_type)
    vocabulary = _read_vocabulary(architecture, checkpoint, config)
    _check_tensors(tensors, config, vocabulary)

    writer = gguf.GGUFWriter(None, architecture.gguf_name)
    for planned in tensors:  # the writer counts parameters; it never sees the weights
        writer.add_tensor_info(planned.name, planned.tensor.shape, np.dtype("<f4"), planned.size)
    add_general(
        writer,
        name=name or checkpoint.name,
        card=checkpoint.card,
        config=checkpoint.config,
        generation=checkpoint.read_json("generation_config.json") or {},
    )
    add_hyperparameters(writer, config)
    writer.add_file_type(FILE_TYPES[file_type])
    architecture.add_hyperparameters(writer, config)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_vocabulary(writer, checkpoint, vocabulary)
    architecture.add_special_tokens(writer, config)
    values = writer.kv_data[0]
    return ConversionPlan(
        architecture=architecture.gguf_name,
        file_type=file_type,
        metadata={key: value.value for key, value in values.items()},
        tensors=tuple(tensors),
        header=header_bytes(values, tensors),
        shards=shards,
    )


def run_conversion(plan: ConversionPlan, path: Path, *, progress: Progress = SILENT) -> None:
    """Write the GGUF file of a plan to ``path``, whole or not at all. The same plan gives the same bytes.

    Raises InsufficientDiskError, ConversionError.
    """
    write_file(path, plan.header, plan.tensors, forget=plan.shards.forget, progress=progress)


def _choose_type(checkpoint: Checkpoint, file_type: str | None) -> str:
    if file_type is not None:
        if file_type.upper() not in FILE_TYPES:
            raise InvalidInputError(f"a checkpoint is converted to F32, F16 or BF16, not to {file_type!r}")
        return file_type.upper()
    # config.json's torch_dtype is not to be believed: the matrices say what they are.
    for stored in checkpoint.tensors.values():
        if len(stored.shape) > 1 and stored.dtype in FILE_TYPES:
            return stored.dtype
    raise InvalidCheckpointError(f"{checkpoint.directory} has no matrix of F32, F16 or BF16")


def _plan_tensors(
    architecture: Architecture, checkpoint: Checkpoint, config: Config, shards: Shards, file_type: str
) -> list[PlannedTensor]:
    planned = [PlannedTensor(name, "F32", tensor) for name, tensor in architecture.extra_tensors(config)]
    for hf_name, stored in checkpoint.tensors.items():
        mapped = architecture.map_tensor(hf_name)
        if mapped is None:
            continue
        name, operation = mapped
        tensor = shards.tensor(hf_name, stored)
        if operation is not None:
            tensor = operation(tensor, config)
        # llama.cpp computes with vectors in F32 only, whatever the file's type.
        is_vector = len(tensor.shape) == 1 or name.endswith("_norm.weight") or not name.endswith(".weight")
        planned.append(PlannedTensor(name, "F32" if is_vector else file_type, tensor))
    return planned


def _check_tensors(tensors: Sequence[PlannedTensor], config: Config, vocabulary: Vocabulary) -> None:
    """Find out now what llama.cpp would find out when it loads the file."""
    shapes = {planned.name: planned.tensor.shape for planned in tensors}
    if len(shapes) != len(tensors):
        raise InvalidCheckpointError("two of the checkpoint's tensors are the same one to llama.cpp")
    for name in ("token_embd.weight", "output.weight"):
        expected = (len(vocabulary.tokens), config.integer("hidden_size"))
        if shapes.get(name, expected) != expected:
            raise InvalidCheckpointError(f"{name} has the shape {list(shapes[name])}, not {list(expected)}")
    first = {name.removeprefix("blk.0.") for name in shapes if name.startswith("blk.0.")}
    required = ["token_embd.weight", "output_norm.weight"]
    required += [f"blk.{block}.{name}" for block in range(config.integer("num_hidden_layers")) for name in first]
    missing = next((name for name in required if name not in shapes), None)
    if missing or not first:
        raise InvalidCheckpointError(f"the checkpoint has no tensor for {missing or 'blk.0'}")
    if extra := shapes.keys() - {*required, "output.weight", "rope_freqs.weight"}:
        raise InvalidCheckpointError(f"the checkpoint has a tensor for {min(extra)}, of a block that there is not")


def _read_vocabulary(architecture: Architecture, checkpoint: Checkpoint, config: Config) -> Vocabulary:
    for read in architecture.vocabularies:
        vocabulary = read(checkpoint, config.find_integer("vocab_size"))
        if vocabulary is not None:
            return vocabulary
    raise InvalidCheckpointError(f"{checkpoint.directory} has no tokenizer that modelpack reads")


def _add_vocabulary(writer: gguf.GGUFWriter, checkpoint: Checkpoint, vocabulary: Vocabulary) -> None:
    if vocabulary.add_space_prefix is not None:
        writer.add_add_space_prefix(vocabulary.add_space_prefix)
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
    writer.add_token_types(vocabulary.types)
    special = read_special_tokens(checkpoint, vocabulary_size=len(vocabulary.tokens))
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    for kind, token in special.ids.items():
        if kind != "cls":  # GGUF has no key for it: it is where bos is
            getattr(writer, f"add_{kind}_token_id")(token)
    for kind, is_added in special.added.items():
        if kind in ("bos", "eos", "sep"):
            getattr(writer, f"add_add_{kind}_token")(is_added)
    if special.chat_template is not None:
        writer.add_chat_template(special.chat_template)
