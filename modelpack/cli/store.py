"""modelpack list, inspect, tag, rm, df, prune and fsck: what is in the local store."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelpack.cli import failures
from modelpack.cli.app import App, command
from modelpack.cli.durations import parse_duration
from modelpack.cli.progress import human_size
from modelpack.errors import InvalidInputError, NotFoundError
from modelpack.oci.reference import FileReference, HubReference, LayoutReference, Reference, parse_location

if TYPE_CHECKING:
    from modelpack.formats import Model
    from modelpack.gguf_header import Value
    from modelpack.oci.manifest import Descriptor, Manifest
    from modelpack.oci.target import Source
    from modelpack.store.fsck import Finding


@command("list")
@click.option("--digests", is_flag=True, help="Show whole digests.")
def list_models(app: App, digests: bool) -> None:
    """List the models in the store."""
    from modelpack import catalog
    from modelpack.receipt import standing

    models = [(stored, standing(app.store, stored.descriptor)) for stored in catalog.list_models(app.store)]
    document = {
        "models": [
            {
                "reference": str(stored.reference),
                "digest": str(stored.descriptor.digest),
                "size": stored.model.size,
                "quantization": stored.model.quantization,
                "architecture": stored.model.architecture,
                "verified": vouched,
            }
            for stored, vouched in models
        ]
    }
    rows = [
        (
            stored.reference.tagged,
            stored.model.quantization or "-",
            human_size(stored.model.size),
            str(stored.descriptor.digest) if digests else stored.descriptor.digest.short,
            vouched,
        )
        for stored, vouched in models
    ]
    app.table(document, ("MODEL", "VARIANT", "SIZE", "DIGEST", "VERIFIED"), rows)


@command("inspect")
@click.argument("location", metavar="REF|file:PATH.gguf")
@click.option("--remote", is_flag=True, help="Look in the registry even if the store has it.")
@click.option("--raw", is_flag=True, help="Print the manifest's own bytes.")
@click.option("--plain-http", is_flag=True, help="Talk to the registry without TLS.")
def inspect(app: App, location: str, remote: bool, raw: bool, plain_http: bool) -> None:
    """Show what a model says about itself: in the store, in a registry, or in a GGUF file.

    \b
    modelpack inspect localhost:5000/demo/tiny-llama:v1
    modelpack inspect file:model.gguf
    """
    from modelpack import catalog

    place = parse_location(location)
    if isinstance(place, FileReference) or (location.endswith(".gguf") and Path(location).is_file()):
        app.answer(*_gguf_answer(place.path if isinstance(place, FileReference) else Path(location)))
        return
    if isinstance(place, HubReference):
        raise InvalidInputError(f"{place} is on the hub; modelpack build --dry-run {place} shows what is there")
    source, descriptor, where = locate(app, place, remote=remote, plain_http=plain_http)
    manifest, model = catalog.read_model(source, descriptor)
    if raw:
        sys.stdout.buffer.write(manifest.raw)
        return
    app.answer(*_model_answer(where, manifest, model))


def locate(
    app: App, place: Reference | LayoutReference, *, remote: bool, plain_http: bool
) -> "tuple[Source, Descriptor, str]":
    """Where an artifact is: in the store first, unless it is asked for elsewhere."""
    from modelpack.cli.places import open_remote
    from modelpack.store import open_layout

    if isinstance(place, LayoutReference):
        layout = open_layout(place.path)
        return layout, layout.resolve(place.tag or "latest"), f"oci-layout:{place.path}"
    if not remote:
        try:
            stored = app.store.find(place)
            return app.store.repository(stored.reference.name), stored.descriptor, str(stored.reference)
        except NotFoundError:
            if place.registry is None:
                raise
    repository = open_remote(app, place, plain_http=plain_http)
    return repository, repository.resolve(place.selector), str(place)


def _model_answer(where: str, manifest: "Manifest", model: "Model") -> tuple[dict[str, object], str]:
    document: dict[str, object] = {
        "reference": where,
        "digest": str(manifest.digest),
        "artifact_type": manifest.descriptor.artifact_type,
        "name": model.name,
        "title": model.title,
        "architecture": model.architecture,
        "quantization": model.quantization,
        "parameters": model.parameters if isinstance(model.parameters, str) else None,
        "context_length": model.context_length,
        "licenses": list(model.licenses),
        "source": model.source_url,
        "revision": model.revision,
        "created": model.created.isoformat(),
        "size": model.size,
        "files": [
            {"name": file.name, "kind": file.kind.value, "digest": str(file.digest), "size": file.size}
            for file in model.files
        ],
        "packed": [
            {"packing": layer.packing, "digest": str(layer.digest), "size": layer.size} for layer in model.packed
        ],
        "annotations": dict(manifest.annotations),
    }
    facts = (
        ("reference", where),
        ("digest", manifest.digest),
        ("name", model.name),
        ("architecture", model.architecture),
        ("variant", model.quantization),
        ("parameters", model.parameters),
        ("context", model.context_length),
        ("licence", ", ".join(model.licenses)),
        ("source", model.source_url),
        ("revision", model.revision),
        ("created", model.created.strftime("%Y-%m-%d %H:%M:%S UTC")),
        ("template", _template(model)),
    )
    lines = [f"{key:13}{value}" for key, value in facts if value]
    lines += [f"{'file':13}{file.name}  {human_size(file.size)}  {file.digest}" for file in model.files]
    lines += [f"{'packed':13}{layer.packing}  {human_size(layer.size)}  {layer.digest}" for layer in model.packed]
    return document, "\n".join(lines)


def _template(model: "Model") -> str | None:
    """What tells one chat template from another; a build recorded it."""
    from modelpack.template import DIGEST_ANNOTATION

    digest = model.annotations.get(DIGEST_ANNOTATION)
    return f"sha256:{digest}" if digest else None


def _gguf_answer(path: Path) -> tuple[dict[str, object], str]:
    from collections import Counter

    from modelpack.gguf_shards import read_headers, read_whole_header

    header = read_whole_header(path)
    types = Counter(tensor.type for tensor in header.tensors)
    metadata = {key: _shown(value) for key, value in header.metadata.items()}
    document: dict[str, object] = {
        "file": str(path),
        "size": sum(shard.file_size for shard in read_headers(path)),
        "gguf_version": header.version,
        "architecture": header.architecture,
        "name": header.name,
        "file_type": header.file_type,
        "parameters": header.parameters,
        "context_length": header.context_length,
        "tensors": len(header.tensors),
        "tensor_types": dict(types),
        "metadata": metadata,
    }
    facts = (
        ("file", f"{path}  {human_size(header.file_size)}"),
        ("architecture", header.architecture),
        ("name", header.name),
        ("type", header.file_type),
        ("parameters", f"{header.parameters:,}"),
        ("context", header.context_length),
        ("tensors", ", ".join(f"{count} {kind}" for kind, count in types.most_common())),
    )
    lines = [f"{key:13}{value}" for key, value in facts if value]
    lines += [f"  {key} = {_short(value)}" for key, value in header.metadata.items()]
    return document, "\n".join(lines)


def _shown(value: "Value") -> object:
    """A metadata value as JSON. A vocabulary is told by its length and its first few."""
    if isinstance(value, (str, int, float)):
        return value
    return {"type": value.type, "length": value.length, "head": list(value.head)}


def _short(value: "Value") -> str:
    if isinstance(value, (str, int, float)):
        text = str(value)
    else:
        text = f"{value.length} x {value.type}: " + ", ".join(str(item) for item in value.head[:8])
    return text[:100].replace("\n", "\\n")


@command("tag")
@click.argument("source")
@click.argument("target")
def tag(app: App, source: str, target: str) -> None:
    """Give a stored model another name. The bytes stay where they are."""
    reference = Reference.parse(target)
    stored = app.store.tag(Reference.parse(source), reference)
    digest = stored.descriptor.digest
    app.answer({"reference": reference.tagged, "digest": str(digest)}, f"{reference.tagged}@{digest}")


@command("rm")
@click.argument("references", nargs=-1, required=True, metavar="REF...")
@click.option("--remote", is_flag=True, help="Remove from the registry instead: a tag, or by digest a manifest.")
@click.option("--plain-http", is_flag=True, help="Talk to the registry without TLS.")
def remove(app: App, references: tuple[str, ...], remote: bool, plain_http: bool) -> None:
    """Remove models from the store, with their signatures and every byte that no other model needs.

    With --remote, from their registries; the store keeps its own. Many registries delete no tags, only manifests by
    their digest, and free the space when their own clean-up runs.
    """
    from modelpack.cli.places import open_remote

    if remote:
        for reference in map(Reference.parse, references):
            if not (reference.tag or reference.digest):
                raise InvalidInputError(f"{reference} names no tag and no digest: what is removed must be said")
            open_remote(app, reference, plain_http=plain_http, push=True).delete(reference.selector)
        app.answer({"removed": list(references), "bytes": 0}, "\n".join(references))
        return
    removed: list[str] = []
    freed = 0
    for text in references:
        gone = app.store.remove(Reference.parse(text))
        removed += [str(name) for name in gone.tags]
        freed += gone.freed
    app.answer({"removed": removed, "bytes": freed}, "\n".join(removed))
    app.note(f"freed {human_size(freed)}")


@command("df")
def df(app: App) -> None:
    """Show what the store holds and what it takes on disk."""
    usage = app.store.usage()
    reclaimable = app.store.plan_prune().freed
    document = {
        "path": str(app.settings.store),
        "bytes": usage.size,
        "blobs": usage.blobs,
        "shared_bytes": usage.shared,
        "unused_bytes": usage.unused,
        "partial_bytes": usage.partial_size,
        "reclaimable_bytes": reclaimable,
        "models": [
            {"reference": str(model.reference), "bytes": model.size, "unique_bytes": model.unique}
            for model in usage.models
        ],
    }
    rows = [(str(model.reference), human_size(model.size), human_size(model.unique)) for model in usage.models]
    rows += [
        ("(all, shared bytes once)", human_size(usage.size), ""),
        ("(no tag needs them)", human_size(usage.unused), ""),
        ("(interrupted transfers)", human_size(usage.partial_size), ""),
        ("(modelpack prune would free)", human_size(reclaimable), ""),
    ]
    app.table(document, ("MODEL", "SIZE", "UNIQUE"), rows)


@command("prune")
@click.option("--dry-run", is_flag=True, help="Show what would go, and keep it.")
@click.option(
    "--older-than",
    metavar="DURATION",
    help="Only what is older: 30m, 12h, 7d.  [default: 1h for blobs, 7d for interrupted transfers]",
)
@click.option("--cached", metavar="DURATION", help="Also what a proxy keeps and nobody asked it for in that time: 30d.")
def prune(app: App, dry_run: bool, older_than: str | None, cached: str | None) -> None:
    """Free what no tag refers to, and transfers that nobody resumed.

    Never touches a tagged model, nor what a running command holds: --older-than 0s is safe. Only with --cached go tags,
    those that registry serve --proxy put there, unless they were pulled here as well.

    \b
    modelpack prune --cached 30d
    """
    from modelpack.store import GRACE, PARTIAL_AGE

    age = parse_duration(older_than) if older_than else None
    cached_age = parse_duration(cached) if cached else None
    plan = app.store.plan_prune(
        grace=GRACE if age is None else age,
        partial_age=PARTIAL_AGE if age is None else age,
        cached_age=cached_age,
    )
    gone = plan if dry_run else app.store.carry_out(plan)
    document = {
        "dry_run": dry_run,
        "blobs": [str(digest) for digest, _ in gone.blobs],
        "partials": len(gone.partials),
        "bytes": gone.freed,
        "tags": [str(tag) for tag in gone.tags],
        "broken": list(gone.broken),
    }
    for name in gone.broken:
        app.progress.warn(f"{name} cannot be read, so no blob is pruned: modelpack fsck --repair, or pull it again")
    verb = "would free" if dry_run else "freed"
    text = f"{verb} {human_size(gone.freed)}: {len(gone.blobs)} blobs, {len(gone.partials)} interrupted transfers"
    for tag in gone.tags:
        app.note(f"{'would forget' if dry_run else 'forgot'} {tag}")
    app.answer(document, text)


# As for every other content that is not what its digest says (failures.EXIT_CODES).


@command("fsck")
@click.option("--repair", "wanted", is_flag=True, help="Put right what can be put right.")
@click.option("--fast", is_flag=True, help="Compare sizes; hash only what differs.")
def fsck(app: App, wanted: bool, fast: bool) -> None:
    """Hash every blob again, and look for what is missing, stray, or open to others.

    --repair moves damaged blobs aside (modelpack prune frees them after a week), drops names whose manifest is gone,
    and says which models must be pulled again. Ends with 6 while anything is wrong.
    """
    from modelpack.store import fsck as checker

    checkup = checker.check(app.store, fast=fast, progress=app.progress)
    outcome = checker.repair(app.store, checkup) if wanted and checkup.findings else checkup.outcome
    document = {
        "ok": not outcome.remaining,
        "fast": fast,
        "blobs_hashed": checkup.checked,
        "bytes_hashed": checkup.size,
        "repaired": [_finding(finding) for finding in outcome.repaired],
        "remaining": [_finding(finding) for finding in outcome.remaining],
        "incomplete": list(outcome.incomplete),
        "restored": list(outcome.restored),
    }
    lines = [f"repaired  {finding.kind:9}{finding.message}" for finding in outcome.repaired]
    lines += [f"wrong     {finding.kind:9}{finding.message}" for finding in outcome.remaining]
    lines += [f"restored  {name}" for name in outcome.restored]
    lines += [f"lacking   {name}: modelpack pull it again, or rm it" for name in outcome.incomplete]
    summary = f"{checkup.checked} blobs hashed, {human_size(checkup.size)}: "
    summary += (
        f"{len(outcome.repaired)} repaired, {len(outcome.remaining)} wrong" if checkup.findings else "nothing is wrong"
    )
    app.answer(document, "\n".join([*lines, summary]))
    if outcome.remaining and not wanted:
        app.hint("next: modelpack fsck --repair")
    if outcome.remaining:
        raise click.exceptions.Exit(failures.UNTRUSTED)


def _finding(finding: "Finding") -> dict[str, object]:
    return {
        "kind": str(finding.kind),
        "path": finding.path,
        "message": finding.message,
        "models": list(finding.models),
    }
