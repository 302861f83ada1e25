"""Where signatures and attestations lie, read within bounds and written with care.

- referrers: manifests whose subject is the artifact, each with one sigstore bundle;
- tags: layers under ``sha256-<hex>.sig`` and ``.att`` (cosign 2).

What a bundle or a layer means is for whoever opens it to say: ``signature`` and ``attestation``.
"""

import hashlib
import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TypeVar

from modelpack.errors import (
    InvalidContentError,
    InvalidSignatureError,
    ModelpackError,
    NotFoundError,
    RegistryRefusedError,
    UnsupportedError,
    UntrustedError,
)
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import (
    EMPTY_CONFIG,
    EMPTY_JSON,
    EMPTY_TYPE,
    MAX_MANIFEST_SIZE,
    Descriptor,
    Manifest,
    image_manifest,
)
from modelpack.oci.target import Source, Target, read_whole, write_whole
from modelpack.signing import envelope, simple_signing
from modelpack.signing.candidate import Rejection, rfc3339

log = logging.getLogger(__name__)

MAX_REFERRERS = 100
MAX_TAG_LAYERS = 100

PREDICATE_TYPE_ANNOTATION = "dev.sigstore.bundle.predicateType"

_BUNDLE_PREFIX = "application/vnd.dev.sigstore.bundle"
_NOTATION_CONFIG = "application/vnd.cncf.notary.signature"
_APPEND_ATTEMPTS = 6

# What a broken or hostile candidate raises. It is turned away; a registry that does not answer is not, because then
# nobody knows what it holds.
BROKEN = (InvalidContentError, UnsupportedError, UntrustedError, NotFoundError, RegistryRefusedError)

_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True)
class OpenedBundle:
    """A well-formed bundle that hangs on the artifact, with the statement in it, of whatever type."""

    where: str
    digest: Digest
    """The manifest that holds it."""
    bundle: envelope.Bundle
    statement: envelope.Statement


# Reading. A reader returns what it found, or None for what is not its business; what it raises becomes a Rejection.


def read_bundles(
    source: Source,
    subject: Descriptor,
    read: Callable[[OpenedBundle], _Found | None],
    *,
    is_likely: Callable[[str | None], bool],
) -> Iterator[_Found | Rejection]:
    """What ``read`` makes of the bundles that refer to ``subject``, 100 at most.

    ``is_likely`` is asked about the predicate type that a referrer is advertised with, which orders and proves nothing.
    """
    try:
        advertised = source.list_referrers(subject.digest)
    except BROKEN as error:
        yield Rejection("referrers", _one_line(error))
        return
    unique = list({descriptor.digest: descriptor for descriptor in advertised}.values())

    for descriptor in _likely_first(unique, is_likely)[:MAX_REFERRERS]:
        where = f"referrer {descriptor.digest}"
        found = _guarded(where, partial(_read_referrer, source, subject, descriptor, where, read))
        if found is not None:
            yield found
    if len(unique) > MAX_REFERRERS:
        yield Rejection("referrers", f"{len(unique)} referrers; only {MAX_REFERRERS} were read")


def worth_copying(advertised: Iterable[Descriptor], *orders: Callable[[str | None], bool]) -> list[Descriptor]:
    """Of the referrers of one artifact, the 100 that ``read_bundles`` reads by each of the ``orders`` of likelihood."""
    unique = list({descriptor.digest: descriptor for descriptor in advertised}.values())
    chosen = [one for is_likely in orders for one in _likely_first(unique, is_likely)[:MAX_REFERRERS]]
    return list({descriptor.digest: descriptor for descriptor in chosen}.values())


def _likely_first(advertised: Iterable[Descriptor], is_likely: Callable[[str | None], bool]) -> list[Descriptor]:
    # What is advertised is a claim (cosign 3.1.1 itself writes a wrong artifactType), so every one is opened; but what
    # says that it is wanted goes first, so that a heap of others cannot push it over the limit.
    def order(descriptor: Descriptor) -> tuple[bool, bool]:
        is_bundle = (descriptor.artifact_type or "").startswith(_BUNDLE_PREFIX)
        return not is_bundle, not is_likely(descriptor.annotations.get(PREDICATE_TYPE_ANNOTATION))

    return sorted(advertised, key=order)


def _read_referrer(
    source: Source,
    subject: Descriptor,
    descriptor: Descriptor,
    where: str,
    read: Callable[[OpenedBundle], _Found | None],
) -> _Found | None:
    if descriptor.size > MAX_MANIFEST_SIZE:
        raise InvalidContentError(f"manifest has {descriptor.size} bytes, more than {MAX_MANIFEST_SIZE}")
    manifest = source.fetch_manifest(descriptor)
    kinds = [layer.media_type for layer in manifest.layers]
    config_type = manifest.config.media_type if manifest.config else None
    if _NOTATION_CONFIG in (config_type, manifest.artifact_type):
        raise UnsupportedError("a notation signature, which this version does not evaluate")
    claimed = [manifest.artifact_type or "", *kinds]
    if not any(kind.startswith(_BUNDLE_PREFIX) for kind in claimed):
        log.debug("%s is of type %s, no bundle", where, manifest.artifact_type or config_type)
        return None
    # 1. The manifest hangs on our artifact, 2. holds one bundle, 3. whose statement is for the reader to judge.
    if manifest.subject is None or manifest.subject.digest != subject.digest:
        raise InvalidContentError("its manifest has another subject")  # 1
    if len(kinds) != 1:
        raise InvalidContentError(f"its manifest holds {len(kinds)} layers where one bundle is wanted")  # 2
    raw = read_whole(source, manifest.layers[0], limit=envelope.MAX_BUNDLE_SIZE)
    bundle = envelope.Bundle.parse(raw)
    return read(OpenedBundle(where, manifest.digest, bundle, envelope.Statement.parse(bundle.envelope.payload)))  # 3


def read_layers(
    source: Source, tag: str, read: Callable[[Descriptor, str], _Found | None]
) -> Iterator[_Found | Rejection]:
    """What ``read`` makes of the layers under one of cosign's tags, 100 at most; it gets each layer and its place."""
    try:
        manifest = _tagged_manifest(source, tag)
    except BROKEN as error:
        yield Rejection(f"tag {tag}", _one_line(error))
        return
    layers = manifest.layers if manifest else ()
    for position, layer in enumerate(layers[:MAX_TAG_LAYERS]):
        where = f"tag {tag}, layer {position}"
        found = _guarded(where, partial(read, layer, where))
        if found is not None:
            yield found
    if len(layers) > MAX_TAG_LAYERS:
        yield Rejection(f"tag {tag}", f"{len(layers)} layers; only {MAX_TAG_LAYERS} were read")


def subject_of(statement: envelope.Statement, source: Source, subject: Descriptor) -> envelope.Subject:
    """Where a statement speaks of the artifact. Raises InvalidContentError unless it does so once, and soundly."""
    ours = [named for named in statement.subjects if named.digests.get("sha256") == subject.digest.hex]
    if not ours:
        raise InvalidContentError(f"it signs another digest, not {subject.digest}")
    if len(ours) > 1:
        raise InvalidContentError("its statement names the artifact twice")
    # cosign 3 takes a wrong sha512 beside a right sha256; a statement that is half wrong is wrong.
    sha512 = ours[0].digests.get("sha512")
    if sha512 is not None and sha512 != hashlib.sha512(source.fetch_manifest(subject).raw).hexdigest():
        raise InvalidContentError("its statement gives the artifact a sha512 that it does not have")
    return ours[0]


# Writing.


def put_bundle(
    target: Target, subject: Descriptor, bundle: envelope.Bundle, *, predicate_type: str, created: datetime | None
) -> None:
    """Hang a bundle on an artifact."""
    layer = write_whole(target, bundle.to_bytes(), envelope.BUNDLE_TYPE)
    write_whole(target, EMPTY_JSON, EMPTY_TYPE)
    # The annotations are what Kyverno and cosign choose referrers by; verification reads none of them.
    annotations = {"dev.sigstore.bundle.content": "dsse-envelope", PREDICATE_TYPE_ANNOTATION: predicate_type}
    if created:
        annotations["org.opencontainers.image.created"] = rfc3339(created)
    target.put_manifest(
        image_manifest(
            artifact_type=envelope.BUNDLE_TYPE,
            config=EMPTY_CONFIG,
            layers=[layer],
            subject=subject,
            annotations=annotations,
        )
    )


def append_layer(target: Target, tag: str, layer: Descriptor, content: bytes) -> None:
    """Add a layer under one of cosign's tags, beside those of others.

    No registry has a compare-and-swap for tags, so another signer may overwrite what we wrote: read, and add again.
    Raises InvalidContentError where the tag holds something that nothing can be added to, InvalidSignatureError where
    the layer does not stay.
    """
    write_whole(target, content, layer.media_type)
    for attempt in range(_APPEND_ATTEMPTS):
        present = _tagged_manifest(target, tag)
        layers = (*(present.layers if present else ()), layer)
        if len(layers) > MAX_TAG_LAYERS:
            raise InvalidContentError(f"tag {tag} holds {len(layers) - 1} signatures; no more than that are read")
        config = write_whole(target, simple_signing.image_config(layers), simple_signing.CONFIG_TYPE)
        kept = present.annotations if present else None
        manifest = image_manifest(config=config, layers=layers, annotations=kept)
        # As late as can be: what is written between this look and the next request is what gets lost.
        if _digest_of(_tagged_manifest(target, tag)) == _digest_of(present):
            target.put_manifest(manifest, tag=tag)
            is_alone = _digest_of(_tagged_manifest(target, tag)) == manifest.digest and attempt == 0
            if not is_alone:
                _pause(attempt)
            if _holds(_tagged_manifest(target, tag), layer):
                return
        _pause(attempt)
    raise InvalidSignatureError(f"tag {tag} is written by others all the time; the signature did not stay")


def _pause(attempt: int) -> None:
    time.sleep(random.uniform(0, 0.05 * 2**attempt))  # noqa: S311  spreads signers out, guards nothing


def _digest_of(manifest: Manifest | None) -> Digest | None:
    return manifest.digest if manifest else None


def _holds(manifest: Manifest | None, layer: Descriptor) -> bool:
    layers = manifest.layers if manifest else ()
    return any(one.digest == layer.digest and one.annotations == layer.annotations for one in layers)


def _tagged_manifest(source: Source, tag: str) -> Manifest | None:
    try:
        descriptor = source.resolve(tag)
    except NotFoundError:
        return None
    if descriptor.size > MAX_MANIFEST_SIZE:
        raise InvalidContentError(f"manifest has {descriptor.size} bytes, more than {MAX_MANIFEST_SIZE}")
    manifest = source.fetch_manifest(descriptor)
    if manifest.is_index:
        raise InvalidContentError("it is an index where an image manifest of signatures is wanted")
    return manifest


def _guarded(where: str, look: Callable[[], _Found | None]) -> _Found | Rejection | None:
    try:
        return look()
    except BROKEN as error:
        return Rejection(where, _one_line(error), is_foreign=isinstance(error, UnsupportedError))


def _one_line(error: ModelpackError) -> str:
    # Registries and manifests have their say in these messages: no control character may reach a terminal.
    text = "".join(character if character.isprintable() else "?" for character in str(error))
    return text[:500]
