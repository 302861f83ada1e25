"""The variants of one model: its quantizations, each a tag beside the model's own, and perhaps listed by an index."""

from dataclasses import replace

from modelpack.catalog import read_model
from modelpack.errors import InvalidContentError, MalformedReferenceError, NotFoundError, UnsupportedError
from modelpack.formats import Model
from modelpack.oci.reference import DEFAULT_TAG, Reference
from modelpack.oci.target import Source
from modelpack.store import Store, StoredTag

# What an index says of a variant.
QUANTIZATION = "dev.modelpack.quantization"
TAG = "org.opencontainers.image.ref.name"


def variant_tag(tag: str, quantization: str) -> str:
    """``v1-q8_0``: where ``build`` puts a variant of ``v1``."""
    return f"{tag}-{quantization.lower()}"


def find_variant(source: Source, reference: Reference, quantization: str) -> Reference:
    """The reference of a variant, by the index that ``reference`` names, else by ``build``'s own rule.

    Neither is proof of anything: what the answer names has to be judged, and to be that quantization. Raises
    NotFoundError, InvalidContentError for an index that gives it a tag that is none.
    """
    descriptor = source.resolve(reference.selector)
    manifest = source.fetch_manifest(descriptor)
    if not manifest.is_index:
        if reference.digest:
            raise NotFoundError(f"{reference} is one variant: name a tag or an index to choose by quantization")
        return reference.with_tag(variant_tag(reference.tag or DEFAULT_TAG, quantization))
    listed = {entry.annotations.get(QUANTIZATION, ""): entry for entry in manifest.manifests}
    fitting = {name.upper(): entry for name, entry in listed.items()}.get(quantization.upper())
    if fitting is None:
        names = ", ".join(sorted(filter(None, listed))) or "none by a quantization"
        raise NotFoundError(f"{reference} lists no variant {quantization}; it lists: {names}")
    if tag := fitting.annotations.get(TAG):
        try:
            return reference.with_tag(tag)
        except MalformedReferenceError as error:
            raise InvalidContentError(f"{reference} lists a variant under a tag that is none: {error}") from error
    return replace(reference, tag=None, digest=fitting.digest)


def require_variant(model: Model, reference: Reference, quantization: str) -> None:
    """Raises InvalidContentError for a model of another quantization."""
    found = model.quantization or "of no known quantization"
    if found.upper() != quantization.upper():
        raise InvalidContentError(f"{reference} is {found}, not {quantization}")


def stored_variants(store: Store, stored: StoredTag) -> list[StoredTag]:
    """What ``build`` put beside a tag of the store, sorted; the tag itself not included."""
    own = f"{stored.reference.tag}-"
    beside = []
    for other in store.list():
        tag = other.reference.tag
        if other.reference.name != stored.reference.name or not tag or not tag.startswith(own):
            continue
        try:
            _, model = read_model(store.repository(other.reference.name), other.descriptor)
        except (UnsupportedError, InvalidContentError):
            continue
        if model.quantization and tag == own + model.quantization.lower():
            beside.append(other)
    return beside
