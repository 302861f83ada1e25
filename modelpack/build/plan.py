"""What a build will do: decided from headers, printed by ``--dry-run``, carried out by ``run``."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from modelpack import hub
from modelpack.convert import Checkpoint
from modelpack.converter import ConverterChoice
from modelpack.errors import InvalidInputError, NotFoundError, UnsupportedError
from modelpack.formats import Codec
from modelpack.gguf_shards import read_headers, whole_header
from modelpack.oci.reference import FileReference, HubReference, Reference
from modelpack.quantize import Quantization, parse_quantization
from modelpack.upstream import UpstreamPlan
from modelpack.variants import variant_tag
from modelpack.weights import WeightsOptions, check_options

if TYPE_CHECKING:
    from modelpack.converter import AnyPlan

EPOCH = datetime.fromtimestamp(0, UTC)
_PLAIN_TYPES = ("F32", "F16", "BF16")
_DIRECT_TYPES = (*_PLAIN_TYPES, "Q8_0")


@dataclass(frozen=True, slots=True)
class Variant:
    """One quantization to build, the references that will name it, and about how many bytes it takes."""

    quantization: Quantization
    references: tuple[Reference, ...]
    file_name: str
    size: int


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the weights come from, as far as the artifact may say so."""

    name: str
    source_url: str | None = None
    revision: str | None = None
    created: datetime = EPOCH


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """What a build will do. Exactly one of ``snapshot``, ``conversion`` and ``gguf`` says where it starts."""

    origin: Origin
    codec: Codec
    variants: tuple[Variant, ...]
    snapshot: hub.Snapshot | None = None
    conversion: "AnyPlan | None" = None
    checkpoint: Checkpoint | None = None
    gguf: Path | None = None
    """A GGUF file, or the first of its shards."""
    gguf_type: str | None = None
    options: WeightsOptions = field(default_factory=WeightsOptions)
    converter: ConverterChoice = field(default_factory=ConverterChoice)
    tokenizer_mismatch: str | None = None
    """How many of the texts that were tried llama.cpp tokenizes otherwise: ``3/320``. Known once it has been asked."""
    split_size: int | None = None
    """The most bytes that a file of weights may have; what is larger is split."""

    @property
    def fetch_size(self) -> int:
        return sum(file.size for file in self.snapshot.files) if self.snapshot else 0

    @property
    def intermediate_size(self) -> int:
        """Bytes of the GGUF that all variants are quantized from; 0 when the source is one already."""
        if self.conversion:
            return self.conversion.output_size
        # A hub repository's weights become a GGUF of about their own size.
        return self.fetch_size

    @property
    def peak_disk(self) -> int:
        """Bytes needed at the worst moment, beside what the source itself takes."""
        sizes = [variant.size for variant in self.variants]
        # While a variant is split it is there twice.
        split = max(sizes) if self.split_size and max(sizes) > self.split_size else 0
        return self.fetch_size + self.intermediate_size + sum(sizes) + split


def plan_build(
    source: HubReference | FileReference,
    reference: Reference,
    quantizations: Sequence[str],
    *,
    codec: Codec,
    created: datetime | None = None,
    token: str | None = None,
    options: WeightsOptions | None = None,
    converter: ConverterChoice | None = None,
    split_size: int | None = None,
) -> BuildPlan:
    """Read headers only and raise early.

    ``created`` (SOURCE_DATE_EPOCH) wins over the commit's date; without either the artifact says 1970. Weights that
    are larger than ``split_size`` bytes become several files.
    Raises NotFoundError, UnknownArchitectureError, UnknownQuantizationError, InvalidGGUFError, InvalidCheckpointError.
    """
    wanted = [parse_quantization(name) for name in quantizations]
    options, converter = options or WeightsOptions(), converter or ConverterChoice()
    check_options(options, wanted)
    if len(wanted) == 1 and wanted[0].name in _DIRECT_TYPES and options == WeightsOptions():
        # Nothing is to be measured or quantized against an intermediate: convert to what is wanted at once.
        converter = replace(converter, file_type=wanted[0].name)
    name = reference.repository.rpartition("/")[2]
    if isinstance(source, HubReference):
        snapshot = hub.resolve(source, token=token)
        origin = Origin(
            name=source.repository.rpartition("/")[2],
            source_url=f"https://huggingface.co/{source.repository}",
            revision=snapshot.commit,
            created=created or snapshot.committed_at or EPOCH,
        )
        weights = sum(file.size for file in snapshot.files if file.path.endswith(".safetensors"))
        # The hub gives sizes, not shapes: 16 bits a weight is what is published.
        variants = _variants(origin, reference, wanted, "BF16", weights // 2)
        return BuildPlan(
            origin,
            codec,
            variants,
            snapshot=snapshot,
            options=options,
            converter=converter,
            split_size=split_size,
        )
    origin = Origin(name=name, created=created or EPOCH)
    if source.path.is_dir():
        checkpoint = Checkpoint.open(source.path)
        conversion = converter.plan(checkpoint, origin.name)
        _check_split(conversion, wanted, split_size)
        variants = _variants(origin, reference, wanted, conversion.file_type, conversion.parameters)
        return BuildPlan(
            origin,
            codec,
            variants,
            conversion=conversion,
            checkpoint=checkpoint,
            options=options,
            converter=converter,
            split_size=split_size,
        )
    if not source.path.exists():
        raise NotFoundError(f"there is no checkpoint or GGUF file at {source.path}")
    if source.path.suffix != ".gguf":
        raise UnsupportedError(f"{source.path} is neither a checkpoint directory nor a .gguf file")
    if converter.deep:
        raise UnsupportedError(f"a deep look is taken at a checkpoint's weights; {source.path} is a GGUF file")
    shards = read_headers(source.path)
    header = whole_header(shards)
    is_packaged = not wanted or header.file_type in {quantization.name for quantization in wanted}
    if split_size and is_packaged and len(shards) > 1 and max(shard.file_size for shard in shards) > split_size:
        raise InvalidInputError(f"{source.path.name} is split already, into shards of more than {split_size} bytes")
    variants = _variants(origin, reference, wanted, header.file_type, header.parameters)
    for variant in variants:
        if header.file_type not in (*_PLAIN_TYPES, variant.quantization.name) and not options.recipe.allow_requantize:
            raise InvalidInputError(
                f"{source.path} is quantized as {header.file_type} already; {variant.quantization.name} is made from "
                "F32, F16 or BF16, and from anything else only with --allow-requantize"
            )
    return BuildPlan(
        origin, codec, variants, gguf=source.path, gguf_type=header.file_type, options=options, split_size=split_size
    )


def _check_split(conversion: "AnyPlan", wanted: Sequence[Quantization], split_size: int | None) -> None:
    """Before hours of work: the largest tensor has to fit. In a mixture it may have more bits than the others."""
    if split_size is None or isinstance(conversion, UpstreamPlan):
        return
    largest = max(conversion.tensors, key=lambda planned: planned.size)
    weights = prod(largest.tensor.shape)
    for bits in {quantization.bits_per_weight for quantization in wanted} or {8 * largest.size / weights}:
        if weights * bits / 8 > split_size:
            raise InvalidInputError(f"tensor {largest.name} alone takes more than {split_size} bytes")


def _variants(
    origin: Origin, reference: Reference, wanted: Sequence[Quantization], base_type: str | None, parameters: int
) -> tuple[Variant, ...]:
    """One variant per quantization: ``REF-q8_0`` each, and the first gets ``REF`` itself, too."""
    if not wanted:
        if base_type is None:
            raise InvalidInputError("the file does not say how it is quantized: name it with --quant")
        wanted = [parse_quantization(base_type)]
    if len({quantization.name for quantization in wanted}) != len(wanted):
        raise InvalidInputError("a quantization is asked for twice")
    if reference.digest:
        raise InvalidInputError(f"{reference} names a digest; a build makes its own")
    tag = reference.tagged.rpartition(":")[2]
    variants = []
    for position, quantization in enumerate(wanted):
        own = reference.with_tag(variant_tag(tag, quantization.name))
        references = (reference.with_tag(tag), own) if position == 0 else (own,)
        size = int(parameters * quantization.bits_per_weight / 8)
        variants.append(Variant(quantization, references, f"{origin.name}-{quantization.name}.gguf", size))
    return tuple(variants)
