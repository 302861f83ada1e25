"""checkpoint -> GGUF: first a plan, from headers and small files alone, then the work, a few MiB at a time.

The output equals that of upstream's ``convert_hf_to_gguf.py`` (in the llama.cpp of llama-cpp-python 0.3.36) byte for
byte, but for what ``tests/data/conversion/README.md`` lists.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from modelpack.atomic_file import disk_errors
from modelpack.convert import fp8, q8_0
from modelpack.convert.architectures import Architecture, find_architecture
from modelpack.convert.checkpoint import Checkpoint
from modelpack.convert.config import Config
from modelpack.convert.hyperparameters import FILE_TYPES
from modelpack.convert.metadata import add_general, spelled_for_llama_cpp
from modelpack.convert.special_tokens import SpecialTokens, read_special_tokens, strips_behind
from modelpack.convert.splitting import adds_bos_unasked
from modelpack.convert.tensor import Shards, Tensor, as_type, stack
from modelpack.convert.vocabulary import Vocabulary
from modelpack.convert.writer import PlannedTensor, data_size, header_bytes, metadata_bytes, write_file
from modelpack.errors import InvalidCheckpointError, InvalidInputError, UnknownArchitectureError
from modelpack.oci.digest import Digest
from modelpack.progress import SILENT, Progress

_BLOCK = re.compile(r"((?:enc\.)?blk\.)(\d+)", re.ASCII)
_NUMBERED = re.compile(r"blk\.(\d+)\.", re.ASCII)
# llama.cpp computes with these in F32 only, whatever the file's type; with vectors, too.
_ALWAYS_F32 = (
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_inp_shexp.weight",
    "position_embd.weight",
    "token_types.weight",
)


@dataclass(frozen=True, slots=True)
class ConversionPlan:
    """What a conversion will write. ``tensors`` are in the order of the file, their weights not yet read."""

    architecture: str
    """llama.cpp's name, for example ``llama``."""
    file_type: str
    """F32, F16, BF16 or Q8_0."""
    metadata: Mapping[str, Any]
    """GGUF keys and values, tokens and all, in the order of the file."""
    tensors: tuple[PlannedTensor, ...]
    encoded_metadata: bytes = field(repr=False)
    """The metadata as they lie in the file."""
    shards: Shards = field(repr=False)
    quantized_from: str | None = None
    """The type, the checkpoint's own, that Q8_0 is made from; None where nothing is quantized."""

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """Tensors that were to be quantized, and whose rows are not whole blocks."""
        wanted = [one for one in self.tensors if self.quantized_from and _is_quantized(one.name, one.tensor)]
        return tuple(one.name for one in wanted if one.type != self.file_type)

    @property
    def tensor_count(self) -> int:
        return len(self.tensors)

    @property
    def parameters(self) -> int:
        """How many weights there are."""
        return sum(prod(planned.tensor.shape) for planned in self.tensors)

    @property
    def header(self) -> bytes:
        """All before the weights."""
        return header_bytes(self.encoded_metadata, len(self.metadata), self.tensors)

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
    architecture = _find_architecture(checkpoint)
    file_type = _own_type(checkpoint) if file_type is None else file_type.upper()
    if file_type not in FILE_TYPES:
        raise InvalidInputError(f"a checkpoint is converted to {', '.join(FILE_TYPES)}, not to {file_type!r}")
    quantized_from = _own_type(checkpoint) if file_type == "Q8_0" else None
    config = architecture.config(checkpoint.config, file_type=file_type, pooling=checkpoint.pooling)
    shards = Shards()
    tensors = _plan_tensors(architecture, checkpoint, config, shards, quantized_from or file_type)
    vocabulary = _read_vocabulary(architecture, checkpoint, config, tensors)
    _check_tensors(architecture, tensors, config, vocabulary)

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
    for add in architecture.hyperparameters:
        add(writer, config)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for add in architecture.before_vocabulary:
        add(writer, config)
    _add_vocabulary(writer, checkpoint, vocabulary)
    for add in architecture.special_tokens:
        add(writer, config)
    values = writer.kv_data[0]
    if quantized_from:
        tensors = _quantized(tensors)
        for key in ("general.quantization_version", "general.file_type"):  # llama.cpp sets them anew
            values[key] = values.pop(key)
    title = values["general.name"]
    title.value = spelled_for_llama_cpp(title.value, tokens=vocabulary.tokens, strips=strips_behind(checkpoint))
    checkpoint.forget()
    return ConversionPlan(
        architecture=architecture.gguf_name,
        file_type=file_type,
        metadata={key: value.value for key, value in values.items()},
        tensors=tuple(tensors),
        encoded_metadata=metadata_bytes(values),
        shards=shards,
        quantized_from=quantized_from,
    )


def run_conversion(
    plan: ConversionPlan,
    path: Path,
    *,
    deep: bool = False,
    is_final: bool = True,
    between: Callable[[], None] = lambda: None,
    progress: Progress = SILENT,
) -> Digest | None:
    """Write the GGUF file of a plan to ``path``, whole or not at all. The same plan gives the same bytes.

    ``between`` is called every few MiB, and what it raises ends the work.
    ``deep`` looks at every weight, and quantizing does so anyway: a NaN or an infinity, stored or made by a narrower
    type, is refused. What is not ``is_final`` but only to be worked on is neither synced to the disk nor hashed: None
    in place of its digest. Raises InsufficientDiskError, ConversionError, and with ``deep`` InvalidCheckpointError.
    """

    def after_a_piece() -> None:
        plan.shards.forget()
        between()

    return write_file(
        path,
        plan.header,
        plan.tensors,
        deep=deep or plan.quantized_from is not None,
        is_final=is_final,
        between=after_a_piece,
        progress=progress,
    )


def write_skeleton(plan: ConversionPlan, path: Path) -> None:
    """Write the GGUF file of a plan with a hole where the weights will be, to ask llama.cpp about it before there are
    any. Raises InsufficientDiskError.
    """
    with disk_errors(path), path.open("wb") as file:
        file.write(plan.header)
        file.truncate(plan.output_size)


def _find_architecture(checkpoint: Checkpoint) -> Architecture:
    try:
        return find_architecture(checkpoint.architecture)
    except UnknownArchitectureError as error:
        if checkpoint.asks_for_code:
            raise UnknownArchitectureError(
                f"{error}; its config.json asks for code of its own, which is never run"
            ) from None
        raise


def _own_type(checkpoint: Checkpoint) -> str:
    # config.json's torch_dtype is not to be believed: the matrices say what they are.
    for stored in checkpoint.tensors.values():
        if len(stored.shape) > 1 and stored.dtype in FILE_TYPES:
            return stored.dtype
    raise InvalidCheckpointError(f"{checkpoint.directory} has no matrix of F32, F16 or BF16")


def _plan_tensors(
    architecture: Architecture, checkpoint: Checkpoint, config: Config, shards: Shards, matrices: str
) -> list[PlannedTensor]:
    """What is to be written; ``matrices`` is their type."""
    # What is to be stacked stands, by what its members' names share, where the last of them lies.
    entries: list[tuple[str, Tensor] | str] = list(architecture.extra_tensors(config))
    stacks: dict[str, dict[str, dict[int, tuple[str, Tensor]]]] = {}
    for hf_name in checkpoint.tensors:
        is_scale = hf_name.endswith(fp8.SCALE_SUFFIX) and hf_name.removesuffix(fp8.SCALE_SUFFIX) in checkpoint.tensors
        targets = [] if is_scale else architecture.map_tensor(hf_name, config)
        if not targets:
            continue
        tensor = _open_tensor(checkpoint, shards, hf_name)
        for mapped in targets:
            if mapped.stack is None:
                entries.append((mapped.name, mapped.operation(tensor, config) if mapped.operation else tensor))
            else:
                stacks.setdefault(mapped.stack, {}).setdefault(mapped.name, {})[mapped.position] = hf_name, tensor
                entries.append(mapped.stack)
    last = {entry: place for place, entry in enumerate(entries) if isinstance(entry, str)}
    placed: list[tuple[str, Tensor]] = []
    for place, entry in enumerate(entries):
        if not isinstance(entry, str):
            placed.append(entry)
        elif last[entry] == place:
            placed += _stacked(stacks[entry])
    planned = []
    for name, tensor in placed:
        planned.append(PlannedTensor(name, matrices if _is_matrix(name, tensor) else "F32", tensor))
    return planned


def _is_matrix(name: str, tensor: Tensor) -> bool:
    return len(tensor.shape) > 1 and name.endswith(".weight") and not name.endswith(_ALWAYS_F32)


def _quantized(tensors: Sequence[PlannedTensor]) -> list[PlannedTensor]:
    """What llama.cpp makes of a file of these tensors when it quantizes to Q8_0, in its order."""
    planned = []
    for one in sorted(tensors, key=_place_in_llama_cpp):
        tensor = one.tensor
        while tensor.shape[0] == 1 < len(tensor.shape):  # ggml counts dimensions up to the last that is not 1
            tensor = replace(tensor, shape=tensor.shape[1:])
        if _is_quantized(one.name, tensor):
            type_ = "Q8_0" if tensor.row_length % q8_0.BLOCK == 0 else "F16"
            planned.append(PlannedTensor(one.name, type_, as_type(tensor, one.type)))
        else:
            planned.append(replace(one, tensor=tensor))
    return planned


def _is_quantized(name: str, tensor: Tensor) -> bool:
    return _is_matrix(name, tensor) and not name.endswith("attn_rel_b.weight")


def _place_in_llama_cpp(planned: PlannedTensor) -> tuple[int, bytes]:
    """Blocks by number, what belongs to none before them, by name within (``weight_name_comparer``)."""
    block = _NUMBERED.match(planned.name)
    return int(block[1]) if block else -1, planned.name.encode()


def _open_tensor(checkpoint: Checkpoint, shards: Shards, name: str) -> Tensor:
    """One of the checkpoint's tensors; FP8 with its scales applied."""
    stored = checkpoint.tensors[name]
    tensor = shards.tensor(name, stored)
    if stored.dtype != "F8_E4M3":
        return tensor
    scales = checkpoint.tensors.get(name + fp8.SCALE_SUFFIX)
    if scales is None:
        raise InvalidCheckpointError(f"tensor {name[:200]!r} is FP8 and has no scales")
    scale = shards.tensor(name + fp8.SCALE_SUFFIX, scales)
    return fp8.scaled(name, tensor, scale, fp8.block_size(checkpoint.config))


def _stacked(group: Mapping[str, Mapping[int, tuple[str, Tensor]]]) -> list[tuple[str, Tensor]]:
    """One tensor of each name's members, in the order of the checkpoint's names."""
    result = []
    for name, members in group.items():
        missing = next((number for number in range(len(members)) if number not in members), None)
        if missing is not None:
            raise InvalidCheckpointError(f"the checkpoint has no tensor for number {missing} of {name}")
        result.append((members[0][0], name, stack([members[number][1] for number in range(len(members))])))
    return [(name, tensor) for _, name, tensor in sorted(result, key=lambda item: item[0])]


def _check_tensors(
    architecture: Architecture, tensors: Sequence[PlannedTensor], config: Config, vocabulary: Vocabulary
) -> None:
    """Find out now what llama.cpp would find out when it loads the file."""
    shapes = {planned.name: planned.tensor.shape for planned in tensors}
    if len(shapes) != len(tensors):
        raise InvalidCheckpointError("two of the checkpoint's tensors are the same one to llama.cpp")
    for name in ("token_embd.weight", "output.weight"):
        expected = (len(vocabulary.tokens), config.width)
        if shapes.get(name, expected) != expected:
            raise InvalidCheckpointError(f"{name} has the shape {list(shapes[name])}, not {list(expected)}")
    experts = config.find_integer("num_local_experts", "num_experts", "n_routed_experts")
    for name, shape in shapes.items():
        if name.endswith("_exps.weight") and shape[0] != experts:
            raise InvalidCheckpointError(f"{name} has {shape[0]} experts, not {experts}")
    targets = [target for target in architecture.tensors.values() if isinstance(target, str)]
    required = {
        f"{target}.weight" for target in targets if "{block}" not in target and target not in architecture.optional
    }
    in_blocks: set[str] = set()
    for name in shapes:
        pattern = _BLOCK.sub(r"\1{block}", name)
        if pattern != name and pattern.rpartition(".")[0] not in architecture.optional:
            in_blocks.add(pattern)
    wanted = [name.replace("{block}", str(block)) for block in range(config.blocks) for name in sorted(in_blocks)]
    missing = next((name for name in (*sorted(required), *wanted) if name not in shapes), None)
    if missing or not in_blocks:
        raise InvalidCheckpointError(f"the checkpoint has no tensor for {missing or 'blk.0'}")
    for name in shapes:
        block = _BLOCK.match(name)
        if block and int(block[2]) >= config.blocks:
            raise InvalidCheckpointError(f"the checkpoint has a tensor for {name}, of a block that there is not")


def _read_vocabulary(
    architecture: Architecture, checkpoint: Checkpoint, config: Config, tensors: Sequence[PlannedTensor]
) -> Vocabulary:
    size = config.find_integer("vocab_size")
    if checkpoint.config.get("vocab_size") is None:
        # The class's default is a guess; the embeddings know.
        size = next((planned.tensor.shape[0] for planned in tensors if planned.name == "token_embd.weight"), size)
    for read in architecture.vocabularies:
        vocabulary = read(checkpoint, size)
        if vocabulary is not None:
            return vocabulary
    others = ", ".join(checkpoint.other_tokenizer_files)
    raise InvalidCheckpointError(
        f"{checkpoint.directory} has no tokenizer that modelpack reads"
        + (f": it has {others}, but no tokenizer.json" if others else "")
    )


def _add_vocabulary(writer: gguf.GGUFWriter, checkpoint: Checkpoint, vocabulary: Vocabulary) -> None:
    if vocabulary.add_space_prefix is not None:
        writer.add_add_space_prefix(vocabulary.add_space_prefix)
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
    writer.add_token_types(vocabulary.types)
    for field_name, value in vocabulary.settings:
        getattr(writer, f"add_{field_name}")(value)
    special = _special_tokens(checkpoint, vocabulary)
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
        if (named := writer.kv_data[0].get("tokenizer.chat_templates")) is not None:
            named.value.sort()  # gguf lists a set, in another order in each process
    for key, value in special.normalizer.items():  # PyPI's gguf has no name for these keys yet
        writer.add_bool(f"tokenizer.ggml.normalizer.{key}", value)


def _special_tokens(checkpoint: Checkpoint, vocabulary: Vocabulary) -> SpecialTokens:
    """What the checkpoint's files say, and where they are silent what llama.cpp would take for granted otherwise."""
    special = read_special_tokens(checkpoint, vocabulary_size=len(vocabulary.tokens))
    if adds_bos_unasked(vocabulary.pre):
        special.added.setdefault("bos", False)  # nothing in the checkpoint asks for one
    for kind, is_added in vocabulary.adds.items():
        special.added.setdefault(kind, is_added)
    if vocabulary.unknown is not None:
        special.ids.setdefault("unk", vocabulary.unknown)
    return special
