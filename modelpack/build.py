"""build: a checkpoint, a GGUF file or a hub repository becomes one artifact per quantization in the store.

First a plan, then the work. The same inputs give the same digests on every machine: no name, time or path of this one
gets into a blob.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from modelpack import gguf_header, hub, template
from modelpack.convert import Checkpoint, parity
from modelpack.converter import AnyPlan, ConverterChoice, convert, converter_annotations
from modelpack.engine.comparison import Comparison
from modelpack.engine.tokenize import tokenize
from modelpack.errors import CheckFailedError, InsufficientDiskError, InvalidInputError, NotFoundError, UnsupportedError
from modelpack.evidence.bom import bill_of_materials
from modelpack.evidence.predicates import CYCLONEDX, SLSA_PROVENANCE
from modelpack.evidence.provenance import Builder, BuildFacts, InputFile, provenance
from modelpack.evidence.toolchain import Toolchain
from modelpack.formats import Codec, FileKind, Model, ModelFile
from modelpack.formats.licenses import spdx
from modelpack.gguf_header import GGUFHeader
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import Descriptor, Manifest
from modelpack.oci.reference import FileReference, HubReference, Reference
from modelpack.progress import SILENT, Progress
from modelpack.quantize import Quantization, parse_quantization
from modelpack.signing import oms
from modelpack.signing.keys import PrivateKey
from modelpack.store import Store
from modelpack.weights import (
    Imatrix,
    Weights,
    WeightsOptions,
    check_options,
    fact_annotations,
    make_weights,
    obtain_imatrix,
)

# Harbor shows documents up to this size, and nobody writes larger ones.
MAX_DOCUMENT_SIZE = 4 << 20
# Docker's config repeats the metadata; a chat template is worth that, a megabyte of prose is not.
_MAX_METADATA_TEXT = 64 << 10
# What a blob is called before a manifest says it: the codec gives the layer its own media type.
GGUF_TYPE = "application/octet-stream"
EPOCH = datetime.fromtimestamp(0, UTC)
_PLAIN_TYPES = ("F32", "F16", "BF16")
# Files beside the weights that conversion may read, by suffix.
_SMALL_INPUTS = (".json", ".jinja", ".model", ".txt", ".tiktoken")


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
    conversion: AnyPlan | None = None
    checkpoint: Checkpoint | None = None
    gguf: Path | None = None
    gguf_type: str | None = None
    options: WeightsOptions = field(default_factory=WeightsOptions)
    converter: ConverterChoice = field(default_factory=ConverterChoice)

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
        return self.fetch_size + self.intermediate_size + sum(variant.size for variant in self.variants)


@dataclass(frozen=True, slots=True)
class BuiltVariant:
    """What a variant became. ``inputs`` are all files that went into the build; ``intermediate`` is what the weights
    were quantized from, None where they are the source's own or a mere conversion. ``comparison`` is with that, and
    ``imatrix`` the file of the importance matrix.
    """

    quantization: str
    references: tuple[Reference, ...]
    descriptor: Descriptor
    file: ModelFile
    model: Model
    fallbacks: tuple[str, ...] = ()
    inputs: tuple[InputFile, ...] = ()
    intermediate: str | None = None
    comparison: Comparison | None = None
    imatrix: Digest | None = None


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
) -> BuildPlan:
    """Read headers only and raise early.

    ``created`` (SOURCE_DATE_EPOCH) wins over the commit's date; without either the artifact says 1970.
    Raises NotFoundError, UnknownArchitectureError, UnknownQuantizationError, InvalidGGUFError, InvalidCheckpointError.
    """
    wanted = [parse_quantization(name) for name in quantizations]
    options, converter = options or WeightsOptions(), converter or ConverterChoice()
    check_options(options, wanted)
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
        return BuildPlan(origin, codec, variants, snapshot=snapshot, options=options, converter=converter)
    origin = Origin(name=name, created=created or EPOCH)
    if source.path.is_dir():
        checkpoint = Checkpoint.open(source.path)
        conversion = converter.plan(checkpoint, origin.name)
        variants = _variants(origin, reference, wanted, conversion.file_type, conversion.parameters)
        return BuildPlan(
            origin,
            codec,
            variants,
            conversion=conversion,
            checkpoint=checkpoint,
            options=options,
            converter=converter,
        )
    if not source.path.exists():
        raise NotFoundError(f"there is no checkpoint or GGUF file at {source.path}")
    if source.path.suffix != ".gguf":
        raise UnsupportedError(f"{source.path} is neither a checkpoint directory nor a .gguf file")
    header = gguf_header.read_header(source.path)
    variants = _variants(origin, reference, wanted, header.file_type, header.parameters)
    for variant in variants:
        if header.file_type not in (*_PLAIN_TYPES, variant.quantization.name):
            raise InvalidInputError(
                f"{source.path} is quantized as {header.file_type} already; {variant.quantization.name} can only be "
                "made from F32, F16 or BF16"
            )
    return BuildPlan(origin, codec, variants, gguf=source.path, gguf_type=header.file_type, options=options)


def run_build(
    plan: BuildPlan,
    store: Store,
    *,
    oms_key: PrivateKey | None = None,
    work_dir: Path | None = None,
    token: str | None = None,
    progress: Progress = SILENT,
) -> list[BuiltVariant]:
    """Carry a plan out. Tags move last, all of them together; an interrupted build leaves no tag and no half file.

    With ``oms_key`` each artifact also holds ``model.sig``, which signs its files (OpenSSF Model Signing).
    Raises ConversionError, WorkerError, InsufficientDiskError, and CheckFailedError for a chat template that is not to
    be rendered, besides what planning raises.
    """
    with ExitStack() as stack:
        work = _workspace(store, work_dir, stack)
        _check_space(work, plan)
        if plan.snapshot:
            fetched = hub.fetch(plan.snapshot, work / "source", token=token, progress=progress)
            checkpoint = Checkpoint.open(fetched)
            conversion = plan.converter.plan(checkpoint, plan.origin.name)
            plan = replace(plan, checkpoint=checkpoint, conversion=conversion)
        if plan.conversion:
            base, base_type = work / "intermediate.gguf", plan.conversion.file_type
            convert(plan.conversion, base, progress=progress)
            if plan.checkpoint:
                _check_tokenizer(plan.checkpoint, base)
        elif plan.gguf:
            base, base_type = plan.gguf, plan.gguf_type or ""
        else:
            raise AssertionError("a plan without a source")
        _check_templates(base)
        imatrix = obtain_imatrix(plan.options, base, work, progress=progress)
        packed = [
            _pack_variant(
                plan,
                variant,
                base,
                base_type,
                oms_key=oms_key,
                imatrix=imatrix,
                work=work,
                store=store,
                progress=progress,
            )
            for variant in plan.variants
        ]
        for manifest, built in packed:
            for reference in built.references:
                store.repository(reference.name).put_manifest(manifest, tag=reference.tag)
        inputs = _inputs(plan, [built for _, built in packed], progress)
    return [replace(built, inputs=inputs) for _, built in packed]


def evidence_of(
    plan: BuildPlan, built: BuiltVariant, builder: Builder, *, started: datetime, finished: datetime
) -> dict[str, dict[str, Any]]:
    """What a build can say about what it made, for somebody to sign: predicates by their type."""
    facts = BuildFacts(
        name=plan.origin.name,
        inputs=built.inputs,
        quantization=built.quantization,
        format=plan.codec.name,
        created=plan.origin.created,
        repository=plan.origin.source_url,
        commit=plan.origin.revision,
        intermediate=built.intermediate,
        fallbacks=built.fallbacks,
        imatrix=built.imatrix,
        recipe={name: value for name, value in asdict(plan.options.recipe).items() if value},
        findings={key: text for key, text in built.model.annotations.items() if key.startswith("dev.modelpack.")},
    )
    return {
        SLSA_PROVENANCE: provenance(facts, Toolchain.installed(), builder, started=started, finished=finished),
        CYCLONEDX: bill_of_materials(built.model, built.descriptor.digest),
    }


def _inputs(plan: BuildPlan, built: Sequence[BuiltVariant], progress: Progress) -> tuple[InputFile, ...]:
    """Every file that the weights and documents may have come from, by its content."""
    if plan.snapshot:
        known = {file.path: file.sha256 for file in plan.snapshot.files}
    elif plan.checkpoint:
        known = dict.fromkeys(_checkpoint_files(plan.checkpoint))
    elif plan.gguf:
        # Packaged as it is, it has been hashed on its way into the store.
        as_it_is = next((one.file.digest.hex for one in built if one.quantization == plan.gguf_type), None)
        known = {plan.gguf.name: as_it_is}
    else:
        raise AssertionError("a plan without a source")
    directory = plan.checkpoint.directory if plan.checkpoint else plan.gguf.parent if plan.gguf else Path()
    return tuple(
        InputFile(name, Digest.from_hex(known[name] or _sha256(directory / name, progress))) for name in sorted(known)
    )


def _checkpoint_files(checkpoint: Checkpoint) -> set[str]:
    """The shards, and the small files that conversion and packaging look at."""
    read = [*checkpoint.tokenizer_files, *(path for path in (checkpoint.license_file, checkpoint.card_file) if path)]
    read += [path for path in checkpoint.directory.iterdir() if path.suffix in _SMALL_INPUTS and path.is_file()]
    return {tensor.path.name for tensor in checkpoint.tensors.values()} | {path.name for path in read}


def _sha256(path: Path, progress: Progress) -> str:
    hasher = hashlib.sha256()
    with path.open("rb") as file, progress.step(f"hash {path.name}", total=path.stat().st_size) as step:
        while chunk := file.read(4 << 20):
            hasher.update(chunk)
            step.advance(len(chunk))
    return hasher.hexdigest()


def _workspace(store: Store, work_dir: Path | None, stack: ExitStack) -> Path:
    if work_dir is None:
        return stack.enter_context(store.workspace())
    work_dir.mkdir(parents=True, exist_ok=True)
    return Path(stack.enter_context(tempfile.TemporaryDirectory(dir=work_dir, prefix="modelpack-build-")))


def _pack_variant(
    plan: BuildPlan,
    variant: Variant,
    base: Path,
    base_type: str,
    *,
    oms_key: PrivateKey | None,
    imatrix: Imatrix | None,
    work: Path,
    store: Store,
    progress: Progress,
) -> tuple[Manifest, BuiltVariant]:
    """Weights, documents and config into the store; the manifest that names them is returned, without a tag yet."""
    made, intermediate = Weights(), None
    if base_type == variant.quantization.name:
        # The source itself, or the intermediate that later variants are still quantized from.
        weights, is_ours = base, False
    else:
        weights, is_ours, intermediate = work / variant.file_name, True, base_type
        made = make_weights(
            base, weights, variant.quantization, options=plan.options, imatrix=imatrix, progress=progress
        )
    header = gguf_header.read_header(weights)
    blob = store.import_file(weights, GGUF_TYPE, adopt=is_ours)
    file = ModelFile(variant.file_name, FileKind.WEIGHT, blob.digest, blob.size)
    files = (file, *_import_documents(plan.checkpoint, store))
    if oms_key:
        signed = oms.sign_files(plan.origin.name, {one.name: one.digest for one in files}, oms_key)
        blob = store.write_small(signed, GGUF_TYPE)
        files = (*files, ModelFile(oms.FILE_NAME, FileKind.DOC, blob.digest, blob.size))
    facts = {**fact_annotations(header), **converter_annotations(plan.conversion), **made.annotations}
    if intermediate:
        facts["dev.modelpack.intermediate"] = intermediate
    model = _describe(plan, variant, header, files, facts)
    encoded = plan.codec.encode(model)
    store.write_small(encoded.config, encoded.manifest.blobs[0].media_type)
    # Under its digest already, so that no prune takes the blobs while the next variant is being made.
    descriptor = store.repository(variant.references[0].name).put_manifest(encoded.manifest)
    return encoded.manifest, BuiltVariant(
        variant.quantization.name,
        variant.references,
        descriptor,
        file,
        model,
        made.fallbacks,
        intermediate=intermediate,
        comparison=made.comparison,
        imatrix=made.imatrix,
    )


def _check_templates(gguf: Path) -> None:
    if problems := template.problems(gguf_header.read_header(gguf).metadata):
        more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise CheckFailedError(f"the chat template is not safe to render: {problems[0]}{more}")


def _import_documents(checkpoint: Checkpoint | None, store: Store) -> tuple[ModelFile, ...]:
    """The licence and the card under the names that registries show them by."""
    if checkpoint is None:
        return ()
    documents = []
    for name, path in (("LICENSE", checkpoint.license_file), ("README.md", checkpoint.card_file)):
        if path is not None and path.stat().st_size <= MAX_DOCUMENT_SIZE:
            blob = store.import_file(path, "text/plain")
            documents.append(ModelFile(name, FileKind.DOC, blob.digest, blob.size))
    return tuple(documents)


def _describe(
    plan: BuildPlan, variant: Variant, header: GGUFHeader, files: tuple[ModelFile, ...], facts: Mapping[str, str]
) -> Model:
    card = plan.checkpoint.card if plan.checkpoint else None
    license_id = card.license if card else _text(header.metadata, "general.license")
    return Model(
        name=plan.origin.name,
        files=files,
        created=plan.origin.created,
        architecture=header.architecture,
        quantization=variant.quantization.name,
        parameters=header.parameters,
        context_length=header.context_length,
        title=header.name or plan.origin.name,
        source_url=plan.origin.source_url,
        revision=plan.origin.revision,
        licenses=(spdx(license_id),) if license_id else (),
        base_models=card.base_models if card else (),
        embeds=f"{header.architecture}.pooling_type" in header.metadata,
        gguf=_metadata_texts(header),
        annotations={**template.annotations(header.metadata), **facts},
    )


def _metadata_texts(header: GGUFHeader) -> Mapping[str, str]:
    """The metadata as text, without arrays and without what is too long to repeat."""
    texts = {}
    for key, value in header.metadata.items():
        if isinstance(value, bool):
            texts[key] = "true" if value else "false"
        elif isinstance(value, (int, float)) or (isinstance(value, str) and len(value) <= _MAX_METADATA_TEXT):
            texts[key] = str(value)
    return texts


def _text(metadata: Mapping[str, object], key: str) -> str | None:
    value = metadata.get(key)
    return value if isinstance(value, str) and value else None


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
        own = reference.with_tag(f"{tag}-{quantization.name.lower()}")
        references = (reference.with_tag(tag), own) if position == 0 else (own,)
        size = int(parameters * quantization.bits_per_weight / 8)
        variants.append(Variant(quantization, references, f"{origin.name}-{quantization.name}.gguf", size))
    return tuple(variants)


def _check_tokenizer(checkpoint: Checkpoint, base: Path) -> None:
    """Raises ConversionError where llama.cpp tokenizes otherwise than the checkpoint's own tokenizer."""
    wanted = parity.expected(checkpoint)
    if wanted:
        parity.check(wanted, tokenize(base, [text for text, _ in wanted]))


def _check_space(directory: Path, plan: BuildPlan) -> None:
    free = shutil.disk_usage(directory).free
    if free < plan.peak_disk:
        raise InsufficientDiskError(
            f"the build needs about {plan.peak_disk / 2**30:.1f} GiB in {directory}, "
            f"where {free / 2**30:.1f} GiB are free"
        )
