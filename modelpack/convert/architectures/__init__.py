"""The architectures that are converted natively. One family a file; each is data and a few named operations."""

from modelpack.convert.architectures import (
    bert,
    cohere,
    deepseek,
    falcon,
    gemma,
    gpt,
    granite,
    llama,
    olmo,
    phi,
    qwen,
    stablelm,
    starcoder2,
    t5,
)
from modelpack.convert.architectures.architecture import Architecture, MappedTensor, Operation
from modelpack.errors import UnknownArchitectureError

ARCHITECTURES: tuple[Architecture, ...] = (
    llama.LLAMA,
    llama.MISTRAL,
    llama.MIXTRAL,
    llama.SMOLLM3,
    qwen.QWEN2,
    qwen.QWEN2_MOE,
    qwen.QWEN3,
    qwen.QWEN3_MOE,
    gemma.GEMMA,
    gemma.GEMMA2,
    gemma.GEMMA3,
    phi.PHI2,
    phi.PHI3,
    gpt.GPT2,
    gpt.GPT_BIGCODE,
    gpt.GPT_NEOX,
    starcoder2.STARCODER2,
    stablelm.STABLELM,
    olmo.OLMO,
    olmo.OLMO2,
    olmo.OLMOE,
    granite.GRANITE,
    granite.GRANITE_MOE,
    cohere.COHERE,
    cohere.COHERE2,
    falcon.FALCON,
    deepseek.DEEPSEEK2,
    deepseek.DEEPSEEK3,
    bert.BERT,
    bert.ROBERTA,
    bert.XLM_ROBERTA,
    bert.NOMIC_BERT,
    bert.MODERN_BERT,
    t5.T5_ENCODER,
)


def find_architecture(hf_name: str) -> Architecture:
    """The architecture for a name out of config.json. Raises UnknownArchitectureError, which names those there are."""
    for architecture in ARCHITECTURES:
        if hf_name in architecture.hf_names:
            return architecture
    known = ", ".join(sorted(name for architecture in ARCHITECTURES for name in architecture.hf_names))
    raise UnknownArchitectureError(f"there is no converter for {hf_name[:100]!r}; there are converters for {known}")


__all__ = ["ARCHITECTURES", "Architecture", "MappedTensor", "Operation", "find_architecture"]
