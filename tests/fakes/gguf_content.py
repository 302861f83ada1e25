"""What a GGUF file says, whatever the order it says it in. Runs in upstream's environment, too."""

import hashlib
import json
from pathlib import Path

from gguf import GGUFReader


def content_digest(path: Path) -> str:
    """The sha256 of keys with their values and of tensors with type, shape and bytes; both sorted by name.

    Dimensions of one at the end count for nothing, as in ggml.
    """
    reader = GGUFReader(path)
    metadata = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    tensors = {}
    for tensor in reader.tensors:
        shape = [int(length) for length in tensor.shape]
        while len(shape) > 1 and shape[-1] == 1:
            shape.pop()
        tensors[tensor.name] = [tensor.tensor_type.name, shape, hashlib.sha256(tensor.data.tobytes()).hexdigest()]
    return hashlib.sha256(json.dumps([metadata, tensors], sort_keys=True).encode()).hexdigest()
