"""Carrying a build out: fetch, convert, check, quantize, describe, store; the tags move last."""

import shutil
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from modelpack import hub, template
from modelpack.build.evidence import InputReading, read_inputs
from modelpack.build.plan import BuildPlan, Variant
from modelpack.convert import Checkpoint
from modelpack.converter import convert, converter_annotations
from modelpack.engine.comparison import Comparison
from modelpack.errors import CheckFailedError, InsufficientDiskError
from modelpack.evidence.provenance import InputFile
from modelpack.evidence.toolchain import Toolchain
from modelpack.formats import FileKind, Model, ModelFile
from modelpack.formats.facts import with_facts
from modelpack.formats.licenses import spdx
from modelpack.gguf_header import GGUFHeader
from modelpack.gguf_shards import plan_shards, read_whole_header, shard_name, shard_paths, write_shards
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import Descriptor, Manifest
from modelpack.oci.reference import Reference
from modelpack.progress import SILENT, Progress
from modelpack.signing import oms
from modelpack.signing.keys import PrivateKey
from modelpack.store import Store
from modelpack.upstream import UpstreamPlan
from modelpack.weights import Imatrix, Weights, fact_annotations, make_weights, obtain_imatrix

if TYPE_CHECKING:
    from modelpack.converter import AnyPlan

# Harbor shows documents up to this size, and nobody writes larger ones.
MAX_DOCUMENT_SIZE = 4 << 20
# What a blob is called before a manifest says it: the codec gives the layer its own media type.
GGUF_TYPE = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class BuiltVariant:
    """What a variant became. ``inputs`` are all files that went into the build; ``intermediate`` is what the weights
    were quantized from, None where they are the source's own or a mere conversion. ``comparison`` is with that,
    ``imatrix`` the file of the importance matrix, ``toolchain`` what made the weights, if it was looked at meanwhile.
    """

    quantization: str
    references: tuple[Reference, ...]
    descriptor: Descriptor
    weights: tuple[ModelFile, ...]
    model: Model
    fallbacks: tuple[str, ...] = ()
    inputs: tuple[InputFile, ...] = ()
    intermediate: str | None = None
    comparison: Comparison | None = None
    imatrix: Digest | None = None
    toolchain: Toolchain | None = None


@dataclass(frozen=True, slots=True)
class _Base:
    """What variants are made of: a GGUF file and its type. Where it was written to be one of them: its digest, and if
    that quantized it, from what and which tensors fell back to another type.
    """

    path: Path
    type: str
    digest: Digest | None = None
    quantized_from: str | None = None
    fallbacks: tuple[str, ...] = ()


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
        # Packaged as it is, a GGUF file is hashed on its way into the store; else inputs are while they are worked on.
        is_packaged = plan.gguf and any(variant.quantization.name == plan.gguf_type for variant in plan.variants)
        reading = None if is_packaged else stack.enter_context(InputReading(plan, progress))
        if plan.conversion:
            base, mismatch = _convert(plan, plan.conversion, work, progress)
            plan = replace(plan, tokenizer_mismatch=mismatch)
        elif plan.gguf:
            base = _Base(plan.gguf, plan.gguf_type or "")
        else:
            raise AssertionError("a plan without a source")
        _check_templates(base.path)
        imatrix = obtain_imatrix(plan.options, base.path, work, progress=progress)
        packed = {}
        # The intermediate itself comes last: by then nobody needs it here, and it moves into the store uncopied.
        for variant in sorted(plan.variants, key=lambda variant: variant.quantization.name == base.type):
            packed[variant.quantization.name] = _pack_variant(
                plan,
                variant,
                base,
                oms_key=oms_key,
                imatrix=imatrix,
                work=work,
                store=store,
                progress=progress,
            )
        in_order = [packed[variant.quantization.name] for variant in plan.variants]
        for manifest, built in in_order:
            for reference in built.references:
                store.repository(reference.name).put_manifest(manifest, tag=reference.tag)
        inputs = reading.inputs() if reading else read_inputs(plan, [built for _, built in in_order], progress)
        toolchain = reading.toolchain() if reading else None
    return [replace(built, inputs=inputs, toolchain=toolchain) for _, built in in_order]


def _workspace(store: Store, work_dir: Path | None, stack: ExitStack) -> Path:
    if work_dir is None:
        return stack.enter_context(store.workspace())
    work_dir.mkdir(parents=True, exist_ok=True)
    return Path(stack.enter_context(tempfile.TemporaryDirectory(dir=work_dir, prefix="modelpack-build-")))


def _pack_variant(
    plan: BuildPlan,
    variant: Variant,
    base: _Base,
    *,
    oms_key: PrivateKey | None,
    imatrix: Imatrix | None,
    work: Path,
    store: Store,
    progress: Progress,
) -> tuple[Manifest, BuiltVariant]:
    """Weights, documents and config into the store; the manifest that names them is returned, without a tag yet."""
    if base.type == variant.quantization.name:
        weights, is_ours, digest = base.path, plan.gguf is None, base.digest
        made, intermediate = Weights(base.fallbacks), base.quantized_from
    else:
        weights, is_ours, digest = work / variant.file_name, True, None
        intermediate = base.type
        made = make_weights(
            base.path, weights, variant.quantization, options=plan.options, imatrix=imatrix, progress=progress
        )
    header = read_whole_header(weights)
    shards = _import_weights(
        weights,
        variant.file_name,
        plan.split_size,
        is_ours=is_ours,
        digest=digest,
        work=work,
        store=store,
        progress=progress,
    )
    files = (*shards, *_import_documents(plan.checkpoint, store))
    if oms_key:
        signed = oms.sign_files(plan.origin.name, {one.name: one.digest for one in files}, oms_key)
        blob = store.write_small(signed, GGUF_TYPE)
        files = (*files, ModelFile(oms.FILE_NAME, FileKind.DOC, blob.digest, blob.size))
    facts = {**fact_annotations(header), **converter_annotations(plan.conversion), **made.annotations}
    if intermediate:
        facts["dev.modelpack.intermediate"] = intermediate
    if plan.tokenizer_mismatch:
        facts["dev.modelpack.tokenizer-mismatch"] = plan.tokenizer_mismatch
    model = _describe(plan, variant, header, files, facts)
    encoded = plan.codec.encode(model)
    store.write_small(encoded.config, encoded.manifest.blobs[0].media_type)
    # Under its digest already, so that no prune takes the blobs while the next variant is being made.
    descriptor = store.repository(variant.references[0].name).put_manifest(encoded.manifest)
    return encoded.manifest, BuiltVariant(
        variant.quantization.name,
        variant.references,
        descriptor,
        shards,
        model,
        made.fallbacks,
        intermediate=intermediate,
        comparison=made.comparison,
        imatrix=made.imatrix,
    )


def _import_weights(
    path: Path,
    name: str,
    split_size: int | None,
    *,
    is_ours: bool,
    digest: Digest | None,
    work: Path,
    store: Store,
    progress: Progress,
) -> tuple[ModelFile, ...]:
    """The weights into the store: the one file, or its shards under names that llama.cpp understands."""
    stem = name.removesuffix(".gguf")
    paths = shard_paths(path)
    if split_size is not None and len(paths) == 1:
        planned = plan_shards(path, split_size)
        if len(planned) > 1:
            paths = write_shards(path, planned, work / stem, progress=progress)
            if is_ours:
                path.unlink()
            is_ours, digest = True, None
    files = []
    for number, shard in enumerate(paths, 1):
        blob = store.import_file(shard, GGUF_TYPE, adopt=is_ours, digest=digest)
        own = name if len(paths) == 1 else shard_name(stem, number, len(paths))
        files.append(ModelFile(own, FileKind.WEIGHT, blob.digest, blob.size))
    return tuple(files)


def _check_templates(gguf: Path) -> None:
    if problems := template.problems(read_whole_header(gguf).metadata):
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
    license_id = card.license if card else header.metadata.get("general.license")
    model = Model(
        name=plan.origin.name,
        files=files,
        created=plan.origin.created,
        quantization=variant.quantization.name,
        title=header.name or plan.origin.name,
        source_url=plan.origin.source_url,
        revision=plan.origin.revision,
        licenses=(spdx(license_id),) if isinstance(license_id, str) and license_id else (),
        base_models=card.base_models if card else (),
        annotations={**template.annotations(header.metadata), **facts},
    )
    return with_facts(model, header)


def _convert(plan: BuildPlan, conversion: "AnyPlan", work: Path, progress: Progress) -> tuple[_Base, str | None]:
    """Weights to a GGUF file, its tokenizer compared with the checkpoint's: how many texts differ, where any may.

    Raises TokenizerMismatchError where none may, as early as it is known.
    """
    from modelpack.build.tokenizer_gate import TokenizerGate  # with the tokenizers; only a conversion needs them

    choice = plan.converter
    if plan.checkpoint is None:
        raise AssertionError("a conversion of no checkpoint")
    path, type_ = work / "intermediate.gguf", conversion.file_type
    is_final = plan.split_size is None and any(variant.quantization.name == type_ for variant in plan.variants)
    with TokenizerGate(conversion, plan.checkpoint, work) as gate:
        allowed = choice.allow_mismatch
        digest = convert(
            conversion,
            path,
            deep=choice.deep,
            is_final=is_final,
            between=lambda: gate.look(is_allowed=allowed),
            progress=progress,
        )
        mismatch = gate.mismatch(path, is_allowed=allowed, progress=progress)
    if isinstance(conversion, UpstreamPlan):
        return _Base(path, type_), mismatch
    return _Base(path, type_, digest, conversion.quantized_from, conversion.fallbacks), mismatch


def _check_space(directory: Path, plan: BuildPlan) -> None:
    free = shutil.disk_usage(directory).free
    if free < plan.peak_disk:
        raise InsufficientDiskError(
            f"the build needs about {plan.peak_disk / 2**30:.1f} GiB in {directory}, "
            f"where {free / 2**30:.1f} GiB are free"
        )
