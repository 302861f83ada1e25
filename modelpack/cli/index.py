"""modelpack index: the variants of a model under one tag (image specification 1.1, image-index.md)."""

import contextlib
from typing import TYPE_CHECKING

import click

from modelpack.cli.app import App, command
from modelpack.cli.copy import PLAIN_HTTP
from modelpack.cli.progress import human_size
from modelpack.cli.transfers import jobs_option
from modelpack.errors import InvalidContentError, InvalidInputError, NotFoundError
from modelpack.oci.manifest import Descriptor
from modelpack.oci.reference import Reference
from modelpack.variants import QUANTIZATION, TAG

if TYPE_CHECKING:
    from modelpack.oci.manifest import Manifest
    from modelpack.oci.target import Source, Target

SIZE = "dev.modelpack.size"
# Which of a variant's own annotations an index repeats, so that a choice needs one small request.
_REPEATED = (QUANTIZATION, "dev.modelpack.context-length", "dev.modelpack.parameters")


@click.group("index")
def index() -> None:
    """List the variants of a model under one tag."""


@command("create")
@click.argument("reference", metavar="REF")
@click.argument("sources", nargs=-1, required=True, metavar="SRC...")
@click.option("--remote", is_flag=True, help="Assemble it in the registry, from what is there already.")
@PLAIN_HTTP
@jobs_option
def create(
    app: App, reference: str, sources: tuple[str, ...], remote: bool, plain_http: bool, jobs: int | None
) -> None:
    """Make an index of variants, each SRC a model of the store or, with --remote, of the registry that REF names.

    An index has a tag of its own, since most tools cannot pull one: name it REF:index, not REF:v1. What lies in another
    repository of the store is copied beside it, signatures included; in a registry, modelpack copy brings it there.

    \b
    modelpack index create team/model:index team/model:v1-q4_k_m team/model:v1-q8_0
    """
    from modelpack.oci.manifest import image_index

    wanted = Reference.parse(reference)
    if wanted.digest:
        raise InvalidInputError(f"{reference} has a digest; an index makes its own")
    target: Target = _place(app, wanted, remote=remote, plain_http=plain_http, push=True)
    with contextlib.suppress(NotFoundError):
        if not target.fetch_manifest(target.resolve(wanted.selector)).is_index:
            raise InvalidInputError(f"{wanted} names a model already; give the index a tag of its own")
    entries = []
    for text in dict.fromkeys(sources):
        named = Reference.parse(text)
        if remote and named.name != wanted.name:
            # Between repositories of registries copy moves things, which asks the policy first.
            raise InvalidInputError(f"{named} is not in {wanted.name}: modelpack copy it there first")
        source, descriptor, tag = _find(app, named, remote=remote, plain_http=plain_http)
        entries.append(_entry(source, descriptor, tag))
        _bring(source, target, descriptor, jobs=jobs, app=app)
    if len({entry.digest for entry in entries}) != len(entries):
        raise InvalidInputError("two of these are the same variant")
    manifest = image_index(entries)
    target.put_manifest(manifest, tag=wanted.selector)
    app.answer(*_answer(wanted, manifest))


@command("show")
@click.argument("reference", metavar="REF")
@click.option("--remote", is_flag=True, help="Look in the registry even if the store has it.")
@PLAIN_HTTP
def show(app: App, reference: str, remote: bool, plain_http: bool) -> None:
    """Show the variants that an index lists."""
    wanted = Reference.parse(reference)
    try:
        source, descriptor, _ = _find(app, wanted, remote=remote, plain_http=plain_http)
    except NotFoundError:
        if remote or wanted.registry is None:
            raise
        source, descriptor, _ = _find(app, wanted, remote=True, plain_http=plain_http)
    manifest = source.fetch_manifest(descriptor)
    if not manifest.is_index:
        raise InvalidContentError(f"{wanted} is no index: modelpack inspect shows it")
    app.answer(*_answer(wanted, manifest))


index.add_command(create)
index.add_command(show)


def _place(app: App, reference: Reference, *, remote: bool, plain_http: bool, push: bool = False) -> "Target":
    from modelpack.cli.places import open_remote

    if remote:
        return open_remote(app, reference, plain_http=plain_http, push=push)
    return app.store.repository(reference.name)


def _find(app: App, reference: Reference, *, remote: bool, plain_http: bool) -> "tuple[Source, Descriptor, str | None]":
    if remote:
        place = _place(app, reference, remote=True, plain_http=plain_http)
        return place, place.resolve(reference.selector), None if reference.digest else reference.selector
    stored = app.store.find(reference)
    return app.store.repository(stored.reference.name), stored.descriptor, stored.reference.tag


def _entry(source: "Source", descriptor: Descriptor, tag: str | None) -> Descriptor:
    """What an index says of a variant. Raises UnsupportedError for what is no model."""
    from modelpack.catalog import read_model

    manifest, model = read_model(source, descriptor)
    annotations = {key: manifest.annotations[key] for key in _REPEATED if key in manifest.annotations}
    if model.quantization:
        annotations[QUANTIZATION] = model.quantization
    annotations[SIZE] = str(model.size)
    parameters = annotations.get("dev.modelpack.parameters", "")
    if parameters.isascii() and parameters.isdigit() and int(parameters):
        weights = sum(file.size for file in model.weights)
        annotations["dev.modelpack.bits-per-weight"] = f"{weights * 8 / int(parameters):.2f}"
    if tag:
        annotations[TAG] = tag
    kind = manifest.descriptor.artifact_type
    return Descriptor(descriptor.media_type, descriptor.digest, descriptor.size, annotations, kind)


def _bring(source: "Source", target: "Target", descriptor: Descriptor, *, jobs: int | None, app: App) -> None:
    from modelpack.mirror import mirror

    try:
        target.resolve(str(descriptor.digest))
    except NotFoundError:
        mirror(source, target, descriptor, tag=None, jobs=jobs, progress=app.progress)


def _answer(reference: Reference, manifest: "Manifest") -> tuple[dict[str, object], str]:
    document: dict[str, object] = {
        "reference": reference.tagged,
        "digest": str(manifest.digest),
        "variants": [
            {
                "digest": str(entry.digest),
                "tag": entry.annotations.get(TAG),
                "quantization": entry.annotations.get(QUANTIZATION),
                "size": _number(entry.annotations.get(SIZE)),
                "artifact_type": entry.artifact_type,
            }
            for entry in manifest.manifests
        ],
    }
    lines = [reference.pinned(manifest.digest)]
    for entry in manifest.manifests:
        size = _number(entry.annotations.get(SIZE))
        shown = entry.annotations.get(QUANTIZATION, "-"), human_size(size) if size is not None else "-"
        lines.append(f"  {shown[0]:10}{shown[1]:12}{entry.annotations.get(TAG, '-'):20}{entry.digest}")
    return document, "\n".join(lines)


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 16 else None
