"""Signing an artifact, and finding what signatures it has, in both forms that the ecosystem reads.

- ``bundle``: a sigstore bundle v0.3 in a manifest whose subject is the artifact (cosign 3, Kyverno);
- ``cosign-legacy``: a layer under the tag ``sha256-<hex>.sig`` (cosign 2, skopeo, podman, policy-controller).

Nothing here decides whether a signer is trusted.
"""

import hashlib
import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from types import MappingProxyType

from modelpack.errors import (
    InvalidContentError,
    InvalidInputError,
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
from modelpack.oci.reference import Reference
from modelpack.oci.target import Source, Target, read_whole, write_whole
from modelpack.signing import envelope, simple_signing
from modelpack.signing.candidate import (
    REFERENCE_ANNOTATION,
    RESERVED_PREFIX,
    SCHEMES,
    Candidate,
    Claims,
    Rejection,
    Scheme,
    Signature,
    rfc3339,
    signed_reference,
)
from modelpack.signing.keys import PrivateKey

log = logging.getLogger(__name__)

SIGN_PREDICATE = "https://sigstore.dev/cosign/sign/v1"

MAX_REFERRERS = 100
MAX_TAG_LAYERS = 100

_BUNDLE_PREFIX = "application/vnd.dev.sigstore.bundle"
_NOTATION_CONFIG = "application/vnd.cncf.notary.signature"
_APPEND_ATTEMPTS = 6

# What a broken or hostile candidate raises. It is turned away; a registry that does not answer is not, because then
# nobody knows what it holds.
_BROKEN = (InvalidContentError, UnsupportedError, UntrustedError, NotFoundError, RegistryRefusedError)


@dataclass(frozen=True, slots=True)
class Signed:
    """What ``sign`` did. ``written`` is empty when the artifact had these very signatures already."""

    digest: Digest
    reference: str
    key_id: str
    signed_at: datetime
    expires: datetime | None
    written: tuple[Scheme, ...]
    found: tuple[Scheme, ...]


def sign(
    target: Target,
    reference: Reference,
    subject: Descriptor,
    key: PrivateKey,
    *,
    signed_at: datetime,
    annotations: Mapping[str, str] = MappingProxyType({}),
    expires: datetime | None = None,
    legacy: bool = True,
) -> Signed:
    """Sign ``subject`` as ``reference``, write what is missing, read it back and verify it.

    The times must have a zone. A signature by this key of the same digest, reference, annotations and expiry is found
    and kept, whenever it was made: signing twice changes nothing.
    Raises InvalidInputError for reserved annotations, InvalidContentError where the ``.sig`` tag holds something that
    nothing can be added to, InvalidSignatureError when what was written does not come back.
    """
    for name in annotations:
        if name.startswith(RESERVED_PREFIX) or name == REFERENCE_ANNOTATION:
            raise InvalidInputError(f"annotation {name!r} is set by modelpack itself")
    if expires and expires <= signed_at:
        raise InvalidInputError(f"signature would expire at {rfc3339(expires)}, before it is made")
    claims = Claims(signed_reference(reference), signed_at, expires, MappingProxyType(dict(annotations)))
    wanted: tuple[Scheme, ...] = SCHEMES if legacy else ("bundle",)

    found = _schemes_signed(target, subject, key, claims)
    missing = tuple(scheme for scheme in wanted if scheme not in found)
    if "bundle" in missing:
        _write_bundle(target, subject, key, claims)
    if "cosign-legacy" in missing:
        _append_layer(target, subject, key, claims)
    readable = _schemes_signed(target, subject, key, claims) if missing else found
    if not set(wanted) <= readable:
        raise InvalidSignatureError(f"the signature just written for {subject.digest} cannot be read back")
    return Signed(
        digest=subject.digest,
        reference=signed_reference(reference),
        key_id=key.public.id,
        signed_at=signed_at,
        expires=expires,
        written=missing,
        found=tuple(scheme for scheme in wanted if scheme in found),
    )


def find_signatures(source: Source, subject: Descriptor) -> list[Candidate]:
    """Everything that says it signs ``subject``, in both forms: read, checked for shape, not yet verified.

    Bounded: at most 100 referrers and 100 layers, 4 MiB a manifest or bundle. What is broken, foreign or about
    something else becomes a Rejection. Raises only what means that nobody knows: UnavailableError, AccessDeniedError.
    """
    candidates = [*_bundles(source, subject), *_tagged(source, subject)]
    if not any(isinstance(candidate, Signature) for candidate in candidates):
        candidates += _tagged_attestations(source, subject)
    return candidates


def _schemes_signed(source: Source, subject: Descriptor, key: PrivateKey, claims: Claims) -> set[Scheme]:
    schemes: set[Scheme] = set()
    for candidate in find_signatures(source, subject):
        if isinstance(candidate, Rejection) or not _says_the_same(candidate.claims, claims):
            continue
        try:
            candidate.verify([key.public])
        except InvalidSignatureError:
            continue
        schemes.add(candidate.scheme)
    return schemes


def _says_the_same(one: Claims, other: Claims) -> bool:
    # When it was signed is left out: it differs each time, and the first signature is as good as the second.
    expiries = [rfc3339(claims.expires) if claims.expires else None for claims in (one, other)]
    return (
        one.reference == other.reference
        and expiries[0] == expiries[1]
        and dict(one.annotations) == dict(other.annotations)
    )


# The bundle.


def _write_bundle(target: Target, subject: Descriptor, key: PrivateKey, claims: Claims) -> None:
    named = envelope.Subject({"sha256": subject.digest.hex}, claims.reference, claims.to_annotations())
    unsigned = envelope.Envelope(envelope.statement([named], SIGN_PREDICATE, {}), b"")
    signed = envelope.Envelope(unsigned.payload, key.sign(unsigned.signed))
    bundle = envelope.Bundle(signed, key.public.hint).to_bytes()

    layer = write_whole(target, bundle, envelope.BUNDLE_TYPE)
    write_whole(target, EMPTY_JSON, EMPTY_TYPE)
    # The annotations are what Kyverno and cosign choose referrers by; verification reads none of them.
    annotations = {
        "dev.sigstore.bundle.content": "dsse-envelope",
        "dev.sigstore.bundle.predicateType": SIGN_PREDICATE,
    }
    if claims.signed_at:
        annotations["org.opencontainers.image.created"] = rfc3339(claims.signed_at)
    target.put_manifest(
        image_manifest(
            artifact_type=envelope.BUNDLE_TYPE,
            config=EMPTY_CONFIG,
            layers=[layer],
            subject=subject,
            annotations=annotations,
        )
    )


def _bundles(source: Source, subject: Descriptor) -> Iterator[Candidate]:
    try:
        advertised = source.list_referrers(subject.digest)
    except _BROKEN as error:
        yield Rejection("referrers", _one_line(error))
        return
    unique = list({descriptor.digest: descriptor for descriptor in advertised}.values())
    # What is advertised is a claim (cosign 3.1.1 itself writes a wrong artifactType), so every one is opened; but what
    # says that it is a bundle goes first, so that a heap of others cannot push it over the limit.
    unique.sort(key=lambda descriptor: not (descriptor.artifact_type or "").startswith(_BUNDLE_PREFIX))
    for descriptor in unique[:MAX_REFERRERS]:
        where = f"referrer {descriptor.digest}"
        candidate = _guarded(where, partial(_open_referrer, source, subject, descriptor, where))
        if candidate:
            yield candidate
    if len(unique) > MAX_REFERRERS:
        yield Rejection("referrers", f"{len(unique)} referrers; only {MAX_REFERRERS} were read")


def _open_referrer(source: Source, subject: Descriptor, descriptor: Descriptor, where: str) -> Candidate | None:
    if descriptor.size > MAX_MANIFEST_SIZE:
        raise InvalidContentError(f"manifest has {descriptor.size} bytes, more than {MAX_MANIFEST_SIZE}")
    manifest = source.fetch_manifest(descriptor)
    kinds = [layer.media_type for layer in manifest.layers]
    config_type = manifest.config.media_type if manifest.config else None
    if _NOTATION_CONFIG in (config_type, manifest.artifact_type):
        raise UnsupportedError("a notation signature, which this version does not evaluate")
    claimed = [manifest.artifact_type or "", *kinds]
    if not any(kind.startswith(_BUNDLE_PREFIX) for kind in claimed):
        log.debug("%s is of type %s, no signature", where, manifest.artifact_type or config_type)
        return None
    # 1. The manifest hangs on our artifact, 2. holds one bundle, 3. whose statement speaks of our artifact.
    if manifest.subject is None or manifest.subject.digest != subject.digest:
        raise InvalidContentError("its manifest has another subject")  # 1
    if len(kinds) != 1:
        raise InvalidContentError(f"its manifest holds {len(kinds)} layers where one bundle is wanted")  # 2
    raw = read_whole(source, manifest.layers[0], limit=envelope.MAX_BUNDLE_SIZE)
    bundle = envelope.Bundle.parse(raw)
    statement = envelope.Statement.parse(bundle.envelope.payload)
    if statement.predicate_type != SIGN_PREDICATE:
        raise UnsupportedError(f"an attestation of type {statement.predicate_type!r:.120}, which is not a signature")
    signed_subject = _subject_of(statement, source, subject)  # 3
    return Signature(
        where=where,
        scheme="bundle",
        digest=subject.digest,
        claims=Claims.parse(signed_subject.name, signed_subject.annotations),
        signed=bundle.envelope.signed,
        signature=bundle.envelope.signature,
        hint=bundle.hint,
    )


def _subject_of(statement: envelope.Statement, source: Source, subject: Descriptor) -> envelope.Subject:
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


# The tag scheme.


def _append_layer(target: Target, subject: Descriptor, key: PrivateKey, claims: Claims) -> None:
    """Add our layer under the ``.sig`` tag, beside those of others.

    No registry has a compare-and-swap for tags, so another signer may overwrite what we wrote: read, and add again.
    """
    tag = simple_signing.signature_tag(subject.digest)
    payload = simple_signing.Payload(claims.reference or "", subject.digest, claims.to_annotations())
    layer = simple_signing.signed_layer(payload, key.sign(payload.to_bytes()))
    write_whole(target, payload.to_bytes(), simple_signing.PAYLOAD_TYPE)
    for attempt in range(_APPEND_ATTEMPTS):
        present = _signature_manifest(target, subject.digest)
        layers = (*(present.layers if present else ()), layer)
        if len(layers) > MAX_TAG_LAYERS:
            raise InvalidContentError(f"tag {tag} holds {len(layers) - 1} signatures; no more than that are read")
        config = write_whole(target, simple_signing.image_config(layers), simple_signing.CONFIG_TYPE)
        kept = present.annotations if present else None
        target.put_manifest(image_manifest(config=config, layers=layers, annotations=kept), tag=tag)
        after = _signature_manifest(target, subject.digest)
        if after and any(one.annotations == layer.annotations for one in after.layers):
            return
        time.sleep(random.uniform(0, 0.05 * 2**attempt))  # noqa: S311  spreads signers out, guards nothing
    raise InvalidSignatureError(f"tag {tag} is written by others all the time; the signature did not stay")


def _signature_manifest(source: Source, subject: Digest) -> Manifest | None:
    try:
        descriptor = source.resolve(simple_signing.signature_tag(subject))
    except NotFoundError:
        return None
    if descriptor.size > MAX_MANIFEST_SIZE:
        raise InvalidContentError(f"manifest has {descriptor.size} bytes, more than {MAX_MANIFEST_SIZE}")
    manifest = source.fetch_manifest(descriptor)
    if manifest.is_index:
        raise InvalidContentError("it is an index where an image manifest of signatures is wanted")
    return manifest


def _tagged(source: Source, subject: Descriptor) -> Iterator[Candidate]:
    where = f"tag {simple_signing.signature_tag(subject.digest)}"
    try:
        manifest = _signature_manifest(source, subject.digest)
    except _BROKEN as error:
        yield Rejection(where, _one_line(error))
        return
    layers = manifest.layers if manifest else ()
    for position, layer in enumerate(layers[:MAX_TAG_LAYERS]):
        place = f"{where}, layer {position}"
        candidate = _guarded(place, partial(_open_layer, source, subject, layer, place))
        if candidate:
            yield candidate
    if len(layers) > MAX_TAG_LAYERS:
        yield Rejection(where, f"{len(layers)} layers; only {MAX_TAG_LAYERS} were read")


def _open_layer(source: Source, subject: Descriptor, layer: Descriptor, where: str) -> Signature:
    signature = simple_signing.signature_of(layer)
    raw = read_whole(source, layer, limit=simple_signing.MAX_PAYLOAD_SIZE)
    payload = simple_signing.Payload.parse(raw)
    if payload.digest != subject.digest:
        raise InvalidContentError(f"it signs {payload.digest}, not {subject.digest}")
    return Signature(
        where=where,
        scheme="cosign-legacy",
        digest=payload.digest,
        claims=Claims.parse(payload.reference or None, payload.annotations),
        signed=raw,
        signature=signature,
    )


def _tagged_attestations(source: Source, subject: Descriptor) -> Iterator[Candidate]:
    """Attestations of cosign 2: looked for only to tell why an artifact that has some still counts as unsigned."""
    tag = f"sha256-{subject.digest.hex}.att"
    try:
        source.resolve(tag)
    except _BROKEN:
        return
    yield Rejection(f"tag {tag}", "attestations, which are not signatures", is_foreign=True)


def _guarded(where: str, look: Callable[[], Candidate | None]) -> Candidate | None:
    try:
        return look()
    except _BROKEN as error:
        return Rejection(where, _one_line(error), is_foreign=isinstance(error, UnsupportedError))


def _one_line(error: ModelpackError) -> str:
    # Registries and manifests have their say in these messages: no control character may reach a terminal.
    text = "".join(character if character.isprintable() else "?" for character in str(error))
    return text[:500]
