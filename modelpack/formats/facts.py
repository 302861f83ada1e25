"""What the header of a GGUF file says about a model, in the words of the formats."""

from collections.abc import Mapping
from dataclasses import replace

from modelpack.formats.model import Model
from modelpack.gguf_header import GGUFHeader

# Docker's config repeats the metadata; a chat template is worth that, a megabyte of prose is not.
_MAX_TEXT = 64 << 10


def with_facts(model: Model, header: GGUFHeader) -> Model:
    """The model, with the header's facts where it says nothing itself; counts are always the header's."""
    return replace(
        model,
        architecture=model.architecture or header.architecture,
        quantization=model.quantization or header.file_type,
        parameters=header.parameters,
        context_length=model.context_length or header.context_length,
        embeds=f"{header.architecture}.pooling_type" in header.metadata,
        gguf=metadata_texts(header),
    )


def metadata_texts(header: GGUFHeader) -> Mapping[str, str]:
    """The metadata as text, without arrays and without what is too long to repeat."""
    texts = {}
    for key, value in header.metadata.items():
        if isinstance(value, bool):
            texts[key] = "true" if value else "false"
        elif isinstance(value, (int, float)) or (isinstance(value, str) and len(value) <= _MAX_TEXT):
            texts[key] = str(value)
    return texts
