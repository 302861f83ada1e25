"""modelpack build."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modelpack.cli.app import App, command
from modelpack.cli.progress import human_size
from modelpack.cli.weights import choose_converter, comparison_document, parse_weights, weights_options
from modelpack.errors import InvalidInputError
from modelpack.oci.reference import FileReference, HubReference, Reference

if TYPE_CHECKING:
    from modelpack.build import BuildPlan, BuiltVariant
    from modelpack.formats import ModelFile
    from modelpack.signing.keys import PrivateKey


_SIZE = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)([KMGT])", re.ASCII | re.IGNORECASE)


def _parse_size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:  # noqa: ARG001
    """Bytes, decimal as registries and llama.cpp's tools count them: 500M, 9G, 1.5G."""
    if value is None:
        return None
    match = _SIZE.fullmatch(value.strip())
    size = int(float(match[1]) * 1000 ** ("KMGT".index(match[2].upper()) + 1)) if match else 0
    if size <= 0:
        raise click.BadParameter(f"{value!r} is no size: write 500M or 9G")
    return size


@command("build")
@click.argument("source")
@click.option("-t", "--tag", "reference", required=True, help="Name of the model: [registry/]repository[:tag].")
@click.option("--quant", "quantizations", multiple=True, help="Quantization, such as Q4_K_M; repeat for more variants.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["cncf", "docker", "ollama"]),
    default="cncf",
    show_default=True,
    help="Artifact format.",
)
@click.option("--work-dir", type=click.Path(path_type=Path), help="Where temporary files go.  [default: in the store]")
@click.option("--sign", "key", metavar="KEY", help="Sign with this private key (a file, or env:NAME), and attest.")
@click.option("--oms", "oms_key", metavar="KEY", help="Add model.sig (OpenSSF Model Signing), signed with this key.")
@click.option("--password-file", type=click.Path(path_type=Path), help="Holds the key's password.")
@click.option(
    "--split-max-size",
    "split_size",
    callback=_parse_size,
    metavar="SIZE",
    help="Split larger weights: 500M, 9G (decimal).",
)
@click.option("--dry-run", is_flag=True, help="Print the plan and do nothing.")
@weights_options
def build(
    app: App,
    source: str,
    reference: str,
    quantizations: tuple[str, ...],
    format_: str,
    work_dir: Path | None,
    key: str | None,
    oms_key: str | None,
    password_file: Path | None,
    split_size: int | None,
    dry_run: bool,
    **weights: Any,
) -> None:
    """Convert, quantize and package a model into the local store.

    SOURCE is a checkpoint directory, a .gguf file (or the first of its shards), or hf://org/repo[@revision]. The first
    --quant is what REF names; each variant is also named REF-QUANT, as in v1-q8_0. Without --quant the weights keep
    their type.

    The store remembers how each variant was built (SLSA provenance) and what is in it (a CycloneDX bill of materials).
    --sign attests both and signs each variant under each of its names; so do push --sign and sign, later. --oms puts a
    signature over the files themselves into the artifact, which still proves them once they are unpacked.

    --gate measures each quantized variant against the weights it was made from, on a built-in text; what fails is not
    tagged, and the artifact carries the numbers. Few-bit quantizations need an importance matrix: --imatrix or
    --imatrix-from. A computed matrix, and with it the digest, may differ from one kind of processor to the next.

    --split-max-size cuts weights into shards, as llama.cpp's gguf-split names them, for registries that limit layers:
    GHCR takes 10 GB. No shard is larger; run, verify and serve find them together.

    \b
    modelpack build ./tiny-llama -t localhost:5000/demo/tiny-llama:v1 --quant Q4_K_M --quant Q8_0
    modelpack build hf://HuggingFaceTB/SmolLM2-135M-Instruct -t smollm2:135m --quant Q4_K_M
    modelpack build ./tiny-llama -t tiny:v2 --quant IQ2_M --imatrix-from builtin --gate IQ2_M:max_kld=0.5
    """
    from modelpack.build import evidence_of, plan_build, run_build
    from modelpack.cli.key import load_private_key
    from modelpack.evidence.provenance import Builder
    from modelpack.evidence.record import write_record
    from modelpack.formats import codec_named
    from modelpack.receipt import Receipt, write_receipt

    environment = app.settings.environment
    token = environment.get("HF_TOKEN") or None
    plan = plan_build(
        _parse_source(source),
        Reference.parse(reference),
        quantizations,
        codec=codec_named(format_),
        created=_source_date(environment.get("SOURCE_DATE_EPOCH")),
        token=token,
        options=parse_weights(weights),
        converter=choose_converter(app, weights),
        split_size=split_size,
    )
    if dry_run:
        app.answer(*_plan_answer(plan, source))
        return
    if oms_key and format_ == "docker":
        raise InvalidInputError("Docker's format has no place for model.sig: --oms goes with --format cncf")
    private = load_private_key(app, key, password_file) if key is not None else None
    file_key = private
    if oms_key != key:
        file_key = load_private_key(app, oms_key, password_file) if oms_key is not None else None
    started = datetime.now(UTC)
    built = run_build(
        plan,
        app.store,
        oms_key=file_key,
        work_dir=work_dir or app.settings.work_dir,
        token=token,
        progress=app.progress,
    )
    finished = datetime.now(UTC)
    builder = Builder.from_environment(environment)
    for variant in built:
        write_receipt(app.store, variant.descriptor, Receipt(variant.references[0], verdict=None, is_built=True))
        evidence = evidence_of(plan, variant, builder, started=started, finished=finished)
        write_record(app.store, variant.descriptor.digest, evidence)
        if private:
            _sign(app, variant, private, now=finished)
        if variant.fallbacks:
            app.note(f"{variant.quantization}: {len(variant.fallbacks)} tensors fell back to another type")
    app.answer(*_built_answer(built, private.public.id if private else None))
    app.hint(f"next: modelpack run {built[0].references[0]} 'Hello!'   or: modelpack push {built[0].references[0]}")


def _sign(app: App, variant: "BuiltVariant", key: "PrivateKey", *, now: datetime) -> None:
    from modelpack.evidence.record import attest_build
    from modelpack.signing import signature

    repository = app.store.repository(variant.references[0].name)
    attest_build(app.store, repository, variant.references[0], variant.descriptor, key, now=now)
    for reference in variant.references:
        signature.sign(repository, reference, variant.descriptor, key, signed_at=now)


def _parse_source(text: str) -> HubReference | FileReference:
    if text.startswith("hf://"):
        return HubReference.parse(text)
    return FileReference(Path(text.removeprefix("file:")))


def _source_date(text: str | None) -> datetime | None:
    if not text:
        return None
    try:
        return datetime.fromtimestamp(int(text), UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise InvalidInputError(f"SOURCE_DATE_EPOCH is not a number of seconds: {text!r}") from error


def _plan_answer(plan: "BuildPlan", source: str) -> tuple[dict[str, object], str]:
    document: dict[str, object] = {
        "source": source,
        "revision": plan.origin.revision,
        "name": plan.origin.name,
        "format": plan.codec.name,
        "created": plan.origin.created.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "architecture": plan.conversion.architecture if plan.conversion else None,
        "fetch_size": plan.fetch_size,
        "intermediate_size": plan.intermediate_size,
        "peak_disk": plan.peak_disk,
        "variants": [
            {
                "quantization": variant.quantization.name,
                "references": [str(reference) for reference in variant.references],
                "file": variant.file_name,
                "estimated_size": variant.size,
            }
            for variant in plan.variants
        ],
    }
    lines = [f"source     {source}" + (f" @ {plan.origin.revision}" if plan.origin.revision else "")]
    if plan.fetch_size:
        lines.append(f"fetch      {human_size(plan.fetch_size)}")
    if plan.conversion:
        conversion = plan.conversion
        lines.append(
            f"convert    {conversion.architecture} to {conversion.file_type}, {human_size(conversion.output_size)}, "
            f"{conversion.tensor_count} tensors"
        )
    for variant in plan.variants:
        names = ", ".join(str(reference) for reference in variant.references)
        lines.append(f"variant    {variant.quantization.name}  about {human_size(variant.size)}  {names}")
    lines.append(f"peak disk  about {human_size(plan.peak_disk)}")
    return document, "\n".join(lines)


def _built_answer(built: "list[BuiltVariant]", signed_by: str | None) -> tuple[dict[str, object], str]:
    document: dict[str, object] = {
        "variants": [
            {
                "quantization": variant.quantization,
                "references": [str(reference) for reference in variant.references],
                "digest": str(variant.descriptor.digest),
                "file": _file_document(variant.weights[0]),
                "shards": [_file_document(file) for file in variant.weights if len(variant.weights) > 1],
                "fallback_tensors": list(variant.fallbacks),
                "imatrix": str(variant.imatrix) if variant.imatrix else None,
                "quality": comparison_document(variant.comparison) if variant.comparison else None,
            }
            for variant in built
        ],
        "signed_by": signed_by,
    }
    lines = [f"{reference}@{variant.descriptor.digest}" for variant in built for reference in variant.references]
    return document, "\n".join(lines)


def _file_document(file: "ModelFile") -> dict[str, object]:
    return {"name": file.name, "digest": str(file.digest), "size": file.size}
