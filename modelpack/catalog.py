"""The models in a store, by the names that people gave them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from modelpack.errors import InvalidContentError, PackedModelError, UnsupportedError
from modelpack.formats import Model, codec_for
from modelpack.formats.model import MAX_CONFIG_SIZE
from modelpack.gguf_shards import read_headers
from modelpack.oci.manifest import Descriptor, Manifest
from modelpack.oci.reference import Reference
from modelpack.oci.target import Source, read_whole
from modelpack.store import Store
from modelpack.unpack import find_unpacked


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model in the store under one of its names."""

    reference: Reference
    descriptor: Descriptor
    model: Model


def read_model(source: Source, descriptor: Descriptor) -> tuple[Manifest, Model]:
    """Manifest and model at any place. Raises UnsupportedError for what is not a model, InvalidContentError."""
    manifest = source.fetch_manifest(descriptor)
    codec = codec_for(manifest)
    if manifest.config is None:
        raise InvalidContentError(f"{descriptor.digest} has no config")
    return manifest, codec.decode(manifest, read_whole(source, manifest.config, limit=MAX_CONFIG_SIZE))


def list_models(store: Store) -> Iterator[StoredModel]:
    """Every tag that names a model; other artifacts (signatures, images) are passed over."""
    for stored in store.list():
        try:
            _, model = read_model(store.repository(stored.reference.name), stored.descriptor)
        except (UnsupportedError, InvalidContentError):
            continue
        yield StoredModel(stored.reference, stored.descriptor, model)


def find_model(store: Store, reference: Reference) -> StoredModel:
    """The stored model that a person means. Raises NotFoundError."""
    stored = store.find(reference)
    _, model = read_model(store.repository(stored.reference.name), stored.descriptor)
    return StoredModel(stored.reference, stored.descriptor, usable(store, stored.reference, stored.descriptor, model))


def usable(store: Store, reference: Reference, descriptor: Descriptor, model: Model) -> Model:
    """The model with files instead of packed layers, as far as ``unpack`` made them."""
    if not model.packed:
        return model
    unpacked = find_unpacked(store, store.repository(reference.name), descriptor)
    return replace(model, files=unpacked.model.files, packed=()) if unpacked else model


def weights_path(store: Store, model: Model) -> Path:
    """The GGUF file that llama.cpp opens, in place: a blob, or the first of several under names that it understands.

    Raises PackedModelError, UnsupportedError for a model without weights or with several, InvalidGGUFError,
    NotFoundError, InsufficientDiskError, AccessDeniedError.
    """
    if model.packed:
        packings = ", ".join(sorted({layer.packing for layer in model.packed}))
        raise PackedModelError(f"model {model.name!r} is packed as {packings}; its files cannot be used in place")
    if not model.weights:
        raise UnsupportedError(f"model {model.name!r} has no weights to run")
    path = store.weights_path([file.digest for file in model.weights])
    if len(model.weights) > 1 and len(read_headers(path)) != len(model.weights):
        raise UnsupportedError(f"model {model.name!r} has {len(model.weights)} files of weights, not the shards of one")
    return path
