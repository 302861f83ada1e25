"""modelpack export-view and unpack: other forms of a model that is in the store."""

from typing import TYPE_CHECKING

import click

from modelpack.cli.app import App, command
from modelpack.cli.progress import human_size
from modelpack.oci.reference import Reference

if TYPE_CHECKING:
    from modelpack.catalog import StoredModel
    from modelpack.receipt import Receipt


@command("export-view")
@click.argument("reference", metavar="REF")
@click.option(
    "--format",
    "formats",
    multiple=True,
    required=True,
    type=click.Choice(["docker", "slim", "ollama", "car"]),
    help="Repeat for more.",
)
def export_view(app: App, reference: str, formats: tuple[str, ...]) -> None:
    """Give a stored model another manifest over the same bytes, for tools that do not read its own.

    \b
    docker  REF-docker, for Docker Model Runner before 1.1.29, with the context size
    slim    REF-slim, the weights alone, for RamaLama over podman
    ollama  REF-ollama, for Ollama, which pulls only from registries that redirect to blobs
    car     REF-car, a container image for KServe and Kubernetes; takes the model's size again

    A view is an artifact of its own: sign and push it as any other.

    \b
    modelpack export-view registry.example.com/team/model:v1 --format docker --format car
    """
    from modelpack.receipt import Receipt, write_receipt
    from modelpack.views import export_view

    stored, held = _trusted_model(app, reference)
    views = [
        export_view(app.store, stored.reference, stored.descriptor, stored.model, name, progress=app.progress)
        for name in dict.fromkeys(formats)
    ]
    for view in views:
        # Of what was built here, built here; of anything else, trusted as far as that is, and no longer.
        original = None if held.is_built else stored.reference.with_digest(stored.descriptor.digest)
        receipt = Receipt(view.reference, verdict=None, view_of=original, is_built=held.is_built)
        write_receipt(app.store, view.descriptor, receipt)
    document = {
        "source": {"reference": str(stored.reference), "digest": str(stored.descriptor.digest)},
        "views": [
            {
                "format": view.name,
                "reference": str(view.reference),
                "digest": str(view.descriptor.digest),
                "extra_bytes": view.extra,
            }
            for view in views
        ],
    }
    app.note(f"{human_size(sum(view.extra for view in views))} more in the store")
    app.answer(document, "\n".join(f"{view.reference}@{view.descriptor.digest}" for view in views))


@command("unpack")
@click.argument("reference", metavar="REF")
def unpack(app: App, reference: str) -> None:
    """Unpack a stored model whose layers are archives (tar, gzip, zstd), so that run and serve can use it.

    The model keeps its name, digest and signature; the files lie beside it in the store, and go when it goes. Only
    regular files leave an archive, and no more of them than fit the declared sizes.
    """
    from modelpack import unpack as unpacking
    from modelpack.catalog import read_model

    stored, _ = _trusted_model(app, reference)
    repository = app.store.repository(stored.reference.name)
    _, model = read_model(repository, stored.descriptor)
    unpacked = unpacking.unpack(app.store, repository, stored.descriptor, model, progress=app.progress)
    document = {
        "reference": str(stored.reference),
        "digest": str(stored.descriptor.digest),
        "unpacked": str(unpacked.descriptor.digest),
        "files": [
            {"name": file.name, "kind": file.kind.value, "digest": str(file.digest), "size": file.size}
            for file in unpacked.model.files
        ],
    }
    lines = [f"{file.name}  {human_size(file.size)}  {file.digest}" for file in unpacked.model.files]
    app.answer(document, "\n".join(lines))


def _trusted_model(app: App, reference: str) -> "tuple[StoredModel, Receipt]":
    """What is made from a model is as good as the model: it has to be one that may be used. Raises UntrustedError."""
    from modelpack.catalog import find_model
    from modelpack.cli.places import require_trusted

    stored = find_model(app.store, Reference.parse(reference))
    return stored, require_trusted(app, stored.reference, stored.descriptor)
