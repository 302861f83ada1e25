"""Layers under one of cosign's tags beside an artifact (``sha256-<hex>.sig`` and ``.att``), added to by many hands."""

import random
import time
from collections.abc import Sequence

from modelpack.errors import InvalidContentError, InvalidSignatureError, NotFoundError
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import MAX_MANIFEST_SIZE, Descriptor, Manifest, image_manifest
from modelpack.oci.target import Source, Target, write_whole
from modelpack.signing import simple_signing

MAX_TAG_LAYERS = 100
"""More are not read."""

_ATTEMPTS = 6


def tagged_manifest(source: Source, tag: str) -> Manifest | None:
    """What the tag names; None when there is none. Raises InvalidContentError for what holds no layers."""
    manifest, fault = _look(source, tag)
    if fault:
        raise InvalidContentError(fault)
    return manifest


def mergeable_manifest(target: Source, tag: str) -> Manifest | None:
    """What a copy takes and adds to; None for what holds no layers too, which it leaves behind, and overwrites: nobody
    can read it as signatures.
    """
    return _look(target, tag)[0]


def _look(source: Source, tag: str) -> tuple[Manifest | None, str | None]:
    """What holds layers under the tag, or why what is there holds none."""
    try:
        descriptor = source.resolve(tag)
        if descriptor.size > MAX_MANIFEST_SIZE:
            return None, f"manifest has {descriptor.size} bytes, more than {MAX_MANIFEST_SIZE}"
        manifest = source.fetch_manifest(descriptor)
    except NotFoundError:
        return None, None
    except InvalidContentError as error:
        return None, str(error)
    if manifest.is_index:
        return None, "it is an index where an image manifest of signatures is wanted"
    return manifest, None


def missing_layers(wanted: Manifest, present: Manifest | None) -> list[Descriptor]:
    """What ``wanted`` says and ``present`` does not.

    Two keys that sign the same payload differ in their annotations alone, which hold the signature.
    """
    return [layer for layer in wanted.layers if not _is_among(layer, present.layers if present else ())]


def append_layer(target: Target, tag: str, layer: Descriptor, content: bytes) -> None:
    """Add a layer beside those of others.

    Raises InvalidContentError where the tag holds something that nothing can be added to, or as many layers as are
    read, InvalidSignatureError where the layer does not stay.
    """
    write_whole(target, content, layer.media_type)
    _add(target, tag, [layer], None)


def merge_layers(target: Target, tag: str, manifest: Manifest) -> None:
    """Let a tag say what ``manifest``, whose blobs are there, says, besides what it says already.

    ``manifest`` itself is put where the tag holds nothing else, so that its digest stays. What is there stays, and of
    the others as many come as are read; what holds no layers is overwritten. Raises InvalidSignatureError where they do
    not stay.
    """
    _add(target, tag, manifest.layers, manifest)


def _add(target: Target, tag: str, layers: Sequence[Descriptor], whole: Manifest | None) -> None:
    # No registry has a compare-and-swap for tags, so another signer may overwrite what we wrote: read, and add again.
    read = mergeable_manifest if whole else tagged_manifest
    for attempt in range(_ATTEMPTS):
        present = read(target, tag)
        there = present.layers if present else ()
        lacking = [layer for layer in layers if not _is_among(layer, there)]
        new = lacking[: max(0, MAX_TAG_LAYERS - len(there))]
        if whole is None and len(new) < len(lacking):
            raise InvalidContentError(f"tag {tag} holds {len(there)} signatures; no more than that are read")
        if present and not new:
            return
        if whole and len(whole.layers) <= MAX_TAG_LAYERS and all(_is_among(layer, whole.layers) for layer in there):
            manifest = whole
        else:
            merged = (*there, *new)
            config = write_whole(target, simple_signing.image_config(merged), simple_signing.CONFIG_TYPE)
            manifest = image_manifest(
                config=config, layers=merged, annotations=present.annotations if present else None
            )
        # As late as can be: what is written between this look and the next request is what gets lost.
        if _digest_of(read(target, tag)) == _digest_of(present):
            target.put_manifest(manifest, tag=tag)
            after = read(target, tag)
            if attempt or _digest_of(after) != manifest.digest:
                # Not alone: whoever read the tag before we wrote it may still overwrite it.
                _pause(attempt)
                after = read(target, tag)
            if after and all(_is_among(layer, after.layers) for layer in new):
                return
        _pause(attempt)
    raise InvalidSignatureError(f"tag {tag} is written by others all the time; the signature did not stay")


def _pause(attempt: int) -> None:
    time.sleep(random.uniform(0, 0.05 * 2**attempt))  # noqa: S311  spreads signers out, guards nothing


def _digest_of(manifest: Manifest | None) -> Digest | None:
    return manifest.digest if manifest else None


def _is_among(layer: Descriptor, layers: Sequence[Descriptor]) -> bool:
    return any(one.digest == layer.digest and one.annotations == layer.annotations for one in layers)
