"""Views: other manifests over the blobs of a stored model, for tools that do not read its own.

``docker``, ``slim`` and ``ollama`` cost a config and a manifest. ``car`` is a container image: its layers are tars, so
it takes the model's size a second time. The same model gives the same bytes.
"""

import contextlib
from dataclasses import dataclass, replace

from modelpack import tar
from modelpack.errors import InvalidGGUFError, InvalidInputError, PackedModelError, UnsupportedError
from modelpack.formats import Model, ModelFile, codec_named
from modelpack.formats import model as m
from modelpack.formats.facts import with_facts
from modelpack.formats.modelcar import CONFIG_TYPE, FOLDER, LABEL, LAYER_TYPE
from modelpack.gguf_shards import read_whole_header
from modelpack.oci import strict_json
from modelpack.oci.manifest import IMAGE_INDEX, Descriptor, Manifest, image_manifest
from modelpack.oci.reference import Reference
from modelpack.progress import SILENT, Progress
from modelpack.store import Store, StoreRepository, check_space, disk_errors

VIEWS = ("docker", "slim", "ollama", "car")

_ARCHITECTURES = ("amd64", "arm64")
VIEW_OF = "dev.modelpack.view-of"


@dataclass(frozen=True, slots=True)
class View:
    """A view that was made. ``extra`` counts the bytes that it adds to the store."""

    name: str
    reference: Reference
    descriptor: Descriptor
    extra: int


def export_view(
    store: Store,
    reference: Reference,
    descriptor: Descriptor,
    model: Model,
    name: str,
    *,
    progress: Progress = SILENT,
) -> View:
    """Make a view of a stored model, under its tag and ``-NAME`` in the same repository.

    Raises InvalidInputError for a view that there is not, UnsupportedError for a packed model, InsufficientDiskError.
    """
    if name not in VIEWS:
        raise InvalidInputError(f"there is no view {name!r}; there are {', '.join(VIEWS)}")
    if model.packed:
        raise PackedModelError(f"{reference} is packed; its files cannot be used in place")
    if not model.weights:
        raise UnsupportedError(f"{reference} has no weights")
    if reference.tag is None:
        raise InvalidInputError(f"{reference} has no tag; a view is named after it")
    repository = store.repository(reference.name)
    model = _described(store, model)
    if name == "car":
        manifest, extra = _put_car(store, repository, descriptor, model, progress=progress)
    else:
        files = model.weights if name == "slim" else model.files
        annotations = {**model.annotations, VIEW_OF: str(descriptor.digest)}
        view = replace(model, files=files, annotations=annotations)
        encoded = codec_named("cncf" if name == "slim" else name).encode(view)
        store.write_small(encoded.config, encoded.manifest.blobs[0].media_type)
        manifest, extra = encoded.manifest, len(encoded.config)
    named = reference.with_tag(f"{reference.tag}-{name}")
    made = repository.put_manifest(manifest, tag=named.tag)
    return View(name, named, Descriptor(made.media_type, made.digest, made.size), extra + made.size)


def _described(store: Store, model: Model) -> Model:
    try:
        return with_facts(model, read_whole_header(store.weights_path([file.digest for file in model.weights])))
    except InvalidGGUFError as error:
        raise UnsupportedError(f"{model.weights[0].name} is not a GGUF file: {error}") from error


def _put_car(
    store: Store, repository: StoreRepository, descriptor: Descriptor, model: Model, *, progress: Progress
) -> tuple[Manifest, int]:
    """The image for every architecture over the same layers, and an index of them.

    It has no shell: KServe's sidecar mode needs an image with one beneath it, its native and fetch modes do not.
    """
    layers = [_put_layer(store, file, progress=progress) for file in model.files]
    manifests: list[tuple[Descriptor, str]] = []
    extra = sum(layer.size for layer in layers)
    for architecture in _ARCHITECTURES:
        config = strict_json.canonical(_image_config(model, architecture, layers))
        manifest = image_manifest(
            config=store.write_small(config, CONFIG_TYPE),
            layers=layers,
            annotations={VIEW_OF: str(descriptor.digest), m.TITLE: model.title or model.name},
        )
        made = repository.put_manifest(manifest)
        manifests.append((made, architecture))
        extra += len(config) + made.size
    return _index(manifests), extra


def _put_layer(store: Store, file: ModelFile, *, progress: Progress) -> Descriptor:
    """A tar of one file, ``models/NAME``, uncompressed: weights do not shrink, and bytes are then certain."""
    blob = Descriptor("application/octet-stream", file.digest, file.size)
    with store.workspace() as folder, progress.step(f"packing {file.name}", total=file.size) as step:
        check_space(folder, file.size)
        path = folder / "layer.tar"
        with disk_errors(path), path.open("xb") as archive, store.blobs.read(blob.digest) as chunks:
            for chunk in tar.write_file(f"{FOLDER}/{file.name}", file.size, contextlib.nullcontext(chunks)):
                archive.write(chunk)
                step.advance(len(chunk))
            archive.write(tar.END)
        layer = store.import_file(path, LAYER_TYPE, adopt=True)
    return replace(layer, annotations={m.TITLE: f"{FOLDER}/{file.name}"})


def _image_config(model: Model, architecture: str, layers: list[Descriptor]) -> dict[str, object]:
    created = m.rfc3339(model.created)
    steps = [f"COPY {file.name} /{FOLDER}/{file.name}" for file in model.files]
    return {
        "created": created,
        "architecture": architecture,
        "os": "linux",
        "config": {"Labels": {LABEL: "ai.image.model.car", m.TITLE: model.title or model.name}},
        # Uncompressed, so a layer is its own diff.
        "rootfs": {"type": "layers", "diff_ids": [str(layer.digest) for layer in layers]},
        "history": [{"created": created, "created_by": step} for step in steps],
    }


def _index(manifests: list[tuple[Descriptor, str]]) -> Manifest:
    """An image index in which every manifest has a platform (image specification 1.1, image-index.md)."""
    document = {
        "schemaVersion": 2,
        "mediaType": IMAGE_INDEX,
        "manifests": [
            {
                **Descriptor(one.media_type, one.digest, one.size).to_json(),
                "platform": {"architecture": architecture, "os": "linux"},
            }
            for one, architecture in manifests
        ],
    }
    return Manifest.parse(strict_json.canonical(document))
