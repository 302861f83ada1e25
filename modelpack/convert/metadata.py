"""The ``general.*`` keys of a GGUF file, under the names and in the order of upstream's converter.

The keys, their types and the reading of model names are gguf's; the order is that of ``conversion/base.py`` in the
llama.cpp that llama-cpp-python 0.3.36 carries.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import gguf

from modelpack.convert.config import as_number
from modelpack.convert.model_card import ModelCard
from modelpack.errors import InvalidCheckpointError

# generation_config.json's name for each field of gguf.Metadata; of two names the first that is there counts.
_SAMPLING = {
    "sampling_top_k": ("top_k",),
    "sampling_top_p": ("top_p",),
    "sampling_min_p": ("min_p",),
    "sampling_xtc_probability": ("xtc_probability",),
    "sampling_xtc_threshold": ("xtc_threshold",),
    "sampling_temp": ("temperature",),
    "sampling_penalty_last_n": ("penalty_last_n",),
    "sampling_penalty_repeat": ("penalty_repeat", "repetition_penalty"),
    "sampling_mirostat": ("mirostat",),
    "sampling_mirostat_tau": ("mirostat_tau",),
    "sampling_mirostat_eta": ("mirostat_eta",),
}
_PHI3 = re.compile(r"(?i)(phi)[ -]?3")
_PHI3_TOKENS = {b"</s>", b"<unk>", b"<s>", b"<|endoftext|>"}
_WHOLE = {"sampling_top_k", "sampling_penalty_last_n", "sampling_mirostat"}


def add_general(
    writer: gguf.GGUFWriter, *, name: str, card: ModelCard, config: Mapping[str, Any], generation: Mapping[str, Any]
) -> None:
    """Write what the model is called and under which terms. The tensors must be known to ``writer``: the size label
    (``7B``) is counted from them.
    """
    parameters = writer.get_total_parameter_count()
    metadata = gguf.Metadata()
    for field, keys in _SAMPLING.items():
        value = next((generation[key] for key in keys if generation.get(key) is not None), None)
        if value is not None:
            number = as_number(value, f"{keys[0]} of generation_config.json")
            if field in _WHOLE and not -(1 << 31) <= number < 1 << 31:
                raise InvalidCheckpointError(f"generation_config.json has {number} for {keys[0]}, which is too much")
            setattr(metadata, field, int(number) if field in _WHOLE else number)
    known = config.get("_name_or_path")
    gguf.Metadata.apply_metadata_heuristic(
        metadata,
        dict(card.fields),
        {"_name_or_path": known} if isinstance(known, str) else {},
        # Upstream gives its folder; only the last component counts, and ours comes as an argument.
        Path(name),
        parameters[0],
    )
    metadata.name = metadata.name or name
    if metadata.size_label is None and parameters[0] > 0:
        metadata.size_label = gguf.size_label(*parameters)
    writer.add_type(gguf.GGUFType.MODEL)
    metadata.set_gguf_meta_model(writer)


def spelled_for_llama_cpp(name: str, *, tokens: Iterable[bytes], strips: bool) -> str:
    """A model's name as llama.cpp is to read it: from "phi-3" or "phi3" in it, it takes that the spaces behind special
    tokens are theirs (``strips``), and it does not load a file of that name without Phi 3's tokens.
    """
    is_phi3 = strips and set(tokens) >= _PHI3_TOKENS
    return _PHI3.sub(r"\1-3" if is_phi3 else r"\1 3", name)
