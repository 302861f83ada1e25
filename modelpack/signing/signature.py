"""Signing an artifact, and finding what signatures it has, in both forms that the ecosystem reads.

- ``bundle``: a sigstore bundle v0.3 in a manifest whose subject is the artifact (cosign 3, Kyverno);
- ``cosign-legacy``: a layer under the tag ``sha256-<hex>.sig`` (cosign 2, skopeo, podman, policy-controller).

Nothing here decides whether a signer is trusted.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from types import MappingProxyType

from modelpack.errors import InvalidContentError, InvalidInputError, InvalidSignatureError, UnsupportedError
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import Descriptor
from modelpack.oci.reference import Reference
from modelpack.oci.target import Source, Target, read_whole
from modelpack.signing import envelope, places, simple_signing, tagged
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

_ATTEMPTS = 5

SIGN_PREDICATE = "https://sigstore.dev/cosign/sign/v1"


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
    claims = _claims(reference, signed_at, expires, annotations)
    wanted: tuple[Scheme, ...] = SCHEMES if legacy else ("bundle",)

    found = _schemes_signed(target, subject, key, claims)
    missing = tuple(scheme for scheme in wanted if scheme not in found)
    readable = found
    for _ in range(_ATTEMPTS):
        # Who signs at the same moment may undo what was written (there is no compare-and-swap): look, and write again.
        if "bundle" in wanted and "bundle" not in readable:
            bundle = _bundle(subject, key, claims)
            places.put_bundle(target, subject, bundle, predicate_type=SIGN_PREDICATE, created=signed_at)
        if "cosign-legacy" in wanted and "cosign-legacy" not in readable:
            _append_layer(target, subject, key, claims)
        readable = _schemes_signed(target, subject, key, claims) if missing else found
        if set(wanted) <= readable:
            break
    else:
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


def make_bundle(
    reference: Reference,
    subject: Descriptor,
    key: PrivateKey,
    *,
    signed_at: datetime,
    annotations: Mapping[str, str] = MappingProxyType({}),
    expires: datetime | None = None,
) -> bytes:
    """The bundle that ``sign`` with the same arguments writes, for a file. Raises InvalidInputError."""
    return _bundle(subject, key, _claims(reference, signed_at, expires, annotations)).to_bytes()


def _claims(
    reference: Reference, signed_at: datetime, expires: datetime | None, annotations: Mapping[str, str]
) -> Claims:
    for name in annotations:
        if name.startswith(RESERVED_PREFIX) or name == REFERENCE_ANNOTATION:
            raise InvalidInputError(f"annotation {name!r} is set by modelpack itself")
    if expires and expires <= signed_at:
        raise InvalidInputError(f"signature would expire at {rfc3339(expires)}, before it is made")
    return Claims(signed_reference(reference), signed_at, expires, MappingProxyType(dict(annotations)))


def find_signatures(source: Source, subject: Descriptor) -> list[Candidate]:
    """Everything that says it signs ``subject``, in both forms: read, checked for shape, not yet verified.

    Bounded: at most 100 referrers and 100 layers, 4 MiB a manifest or bundle. What is broken, foreign or about
    something else becomes a Rejection. Raises only what means that nobody knows: UnavailableError, AccessDeniedError.
    """
    bundles = places.read_bundles(source, subject, partial(_open_bundle, source, subject), is_likely=_is_likely)
    tag = simple_signing.signature_tag(subject.digest)
    candidates: list[Candidate] = [
        *bundles,
        *places.read_layers(source, tag, partial(_open_layer, source, subject)),
    ]
    if not any(isinstance(candidate, Signature) for candidate in candidates):
        candidates += _tagged_attestations(source, subject)
    return candidates


def worth_copying(advertised: Iterable[Descriptor]) -> list[Descriptor]:
    """Of the referrers of one artifact, those that verification reads if there are more than it reads."""
    return places.worth_copying(advertised, _is_likely, is_likely_attestation)


def is_likely_attestation(advertised_type: str | None) -> bool:
    return advertised_type != SIGN_PREDICATE


def _is_likely(advertised_type: str | None) -> bool:
    return advertised_type in (None, SIGN_PREDICATE)


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


def _bundle(subject: Descriptor, key: PrivateKey, claims: Claims) -> envelope.Bundle:
    named = envelope.Subject({"sha256": subject.digest.hex}, claims.reference, claims.to_annotations())
    unsigned = envelope.Envelope(envelope.statement([named], SIGN_PREDICATE, {}), b"")
    signed = envelope.Envelope(unsigned.payload, key.sign(unsigned.signed))
    return envelope.Bundle(signed, key.public.hint)


def _open_bundle(source: Source, subject: Descriptor, opened: places.OpenedBundle) -> Signature:
    if opened.statement.predicate_type != SIGN_PREDICATE:
        kind = opened.statement.predicate_type
        raise UnsupportedError(f"an attestation of type {kind!r:.120}, which is not a signature")
    named = places.subject_of(opened.statement, source, subject)
    return Signature(
        where=opened.where,
        scheme="bundle",
        digest=subject.digest,
        claims=Claims.parse(named.name, named.annotations),
        signed=opened.bundle.envelope.signed,
        signature=opened.bundle.envelope.signature,
        hint=opened.bundle.hint,
        certified=opened.bundle.certified,
    )


# The tag scheme.


def _append_layer(target: Target, subject: Descriptor, key: PrivateKey, claims: Claims) -> None:
    payload = simple_signing.Payload(claims.reference or "", subject.digest, claims.to_annotations())
    content = payload.to_bytes()
    layer = simple_signing.signed_layer(payload, key.sign(content))
    tagged.append_layer(target, simple_signing.signature_tag(subject.digest), layer, content)


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
    tag = simple_signing.attestation_tag(subject.digest)
    try:
        source.resolve(tag)
    except places.BROKEN:
        return
    yield Rejection(f"tag {tag}", "attestations, which are not signatures", is_foreign=True)
