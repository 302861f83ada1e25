"""Copies of a GGUF file with other metadata, as an attacker or a broken tool would write them."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np


def write_altered(
    source: Path, target: Path, *, metadata: dict[str, Any] | None = None, architecture: str = "llama"
) -> Path:
    """Copy ``source``, a Llama, with ``metadata`` changed (None drops a key) and under another ``architecture``."""
    changes = metadata or {}
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, architecture)
    for field in reader.fields.values():
        value = changes.get(field.name, field.contents())
        if field.name.startswith("GGUF.") or field.name == "general.architecture" or value is None:
            continue
        name = field.name.replace("llama.", f"{architecture}.", 1) if field.name.startswith("llama.") else field.name
        kind = field.types[0]
        writer.add_key_value(name, value, kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    for tensor in reader.tensors:
        # BF16 comes as bytes, which need their type beside them.
        writer.add_tensor(tensor.name, np.ascontiguousarray(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
