"""The architectures that are converted natively. One family a file; each is data and a few named operations."""

from modelpack.convert.architectures.architecture import Architecture, Operation
from modelpack.convert.architectures.llama import LLAMA, MISTRAL
from modelpack.convert.architectures.qwen import QWEN2, QWEN3
from modelpack.errors import UnknownArchitectureError

ARCHITECTURES: tuple[Architecture, ...] = (LLAMA, MISTRAL, QWEN2, QWEN3)


def find_architecture(hf_name: str) -> Architecture:
    """The architecture for a name out of config.json. Raises UnknownArchitectureError, which names those there are."""
    for architecture in ARCHITECTURES:
        if hf_name in architecture.hf_names:
            return architecture
    known = ", ".join(sorted(name for architecture in ARCHITECTURES for name in architecture.hf_names))
    raise UnknownArchitectureError(f"there is no converter for {hf_name[:100]!r}; there are converters for {known}")


__all__ = ["ARCHITECTURES", "Architecture", "Operation", "find_architecture"]
