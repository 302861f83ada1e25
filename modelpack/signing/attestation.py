"""Attesting: signed statements about an artifact (in-toto, https://github.com/in-toto/attestation/tree/main/spec/v1).

- ``bundle``: a sigstore bundle v0.3 in a manifest whose subject is the artifact (cosign 3, Kyverno);
- ``cosign-legacy``: a DSSE envelope under the tag ``sha256-<hex>.att`` (cosign 2, policy-controller).

An attestation is never a signature, and nothing here decides whether whoever made it is trusted.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from types import MappingProxyType
from typing import Any

from modelpack.errors import InvalidInputError, InvalidSignatureError, UnsupportedError
from modelpack.oci import strict_json
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import Descriptor
from modelpack.oci.reference import Reference
from modelpack.oci.target import Source, Target, read_whole
from modelpack.signing import envelope, places, simple_signing, tagged
from modelpack.signing.candidate import SCHEMES, Attestation, Claims, Rejection, Scheme, signed_reference
from modelpack.signing.keys import PrivateKey
from modelpack.signing.signature import SIGN_PREDICATE, is_likely_attestation

ENVELOPE_TYPE = "application/vnd.dsse.envelope.v1+json"

# A bundle holds the statement in base64, and what is larger than 4 MiB is not read back.
MAX_PREDICATE_SIZE = 2 << 20


@dataclass(frozen=True, slots=True)
class Attested:
    """What ``attest`` did. ``written`` is empty when the artifact had this very attestation already.

    ``referrers`` are the manifests that hold it as a bundle, to copy it elsewhere.
    """

    digest: Digest
    reference: str
    predicate_type: str
    key_id: str
    written: tuple[Scheme, ...]
    found: tuple[Scheme, ...]
    referrers: tuple[Digest, ...]


def attest(
    target: Target,
    reference: Reference,
    subject: Descriptor,
    key: PrivateKey,
    *,
    predicate_type: str,
    predicate: Mapping[str, Any],
    created: datetime,
    files: Mapping[str, Digest] = MappingProxyType({}),
    legacy: bool = False,
) -> Attested:
    """Sign what ``predicate`` says about ``subject``, write what is missing, read it back and verify it.

    ``created`` must have a zone. ``files`` become subjects too, by name and digest, so that the statement also speaks
    of a weights file that has left its registry. An attestation by this key of the same type and predicate is found and
    kept, whenever and under whatever name it was made: attesting twice changes nothing.

    Raises InvalidInputError for a type or a predicate that cannot be attested, InvalidContentError where the ``.att``
    tag holds something that nothing can be added to, InvalidSignatureError when what was written does not come back.
    """
    check_attestable(predicate_type, predicate)
    wanted: tuple[Scheme, ...] = SCHEMES if legacy else ("bundle",)

    def present() -> list[Attestation]:
        return _attested(target, subject, key, predicate_type, predicate)

    before = present()
    missing = tuple(scheme for scheme in wanted if scheme not in {one.scheme for one in before})
    if missing:
        payload = attestation_statement(
            reference, subject, predicate_type=predicate_type, predicate=predicate, created=created, files=files
        )
        unsigned = envelope.Envelope(payload, b"")
        signed = envelope.Envelope(unsigned.payload, key.sign(unsigned.signed))
        if "bundle" in missing:
            bundle = envelope.Bundle(signed, key.public.hint)
            places.put_bundle(target, subject, bundle, predicate_type=predicate_type, created=created)
        if "cosign-legacy" in missing:
            _append_envelope(target, subject, signed, predicate_type)
            if "cosign-legacy" not in {one.scheme for one in present()}:
                # Somebody with an older copy of the tag wrote it after us.
                _append_envelope(target, subject, signed, predicate_type)
    after = present() if missing else before
    if not set(wanted) <= {one.scheme for one in after}:
        raise InvalidSignatureError(f"the attestation just written for {subject.digest} cannot be read back")
    return Attested(
        digest=subject.digest,
        reference=signed_reference(reference),
        predicate_type=predicate_type,
        key_id=key.public.id,
        written=missing,
        found=tuple(scheme for scheme in wanted if scheme not in missing),
        referrers=tuple(one.referrer for one in after if one.referrer),
    )


def check_attestable(predicate_type: str, predicate: Mapping[str, Any]) -> None:
    """Raises InvalidInputError for a type or a predicate that cannot be attested, and read back."""
    if predicate_type == SIGN_PREDICATE or ":" not in predicate_type or not predicate_type.isprintable():
        raise InvalidInputError(f"not a predicate type: {predicate_type!r:.120}")
    try:
        size = len(strict_json.canonical(dict(predicate)))
    except (ValueError, TypeError) as error:
        raise InvalidInputError(f"the predicate cannot be written as JSON: {error}") from error
    if size > MAX_PREDICATE_SIZE:
        raise InvalidInputError(f"the predicate has {size} bytes; no more than {MAX_PREDICATE_SIZE} are read back")


def attestation_statement(
    reference: Reference,
    subject: Descriptor,
    *,
    predicate_type: str,
    predicate: Mapping[str, Any],
    created: datetime,
    files: Mapping[str, Digest],
) -> bytes:
    """What ``attest`` signs. The same arguments give the same bytes."""
    claims = Claims(signed_reference(reference), created)
    subjects = [
        envelope.Subject({"sha256": subject.digest.hex}, claims.reference, claims.to_annotations()),
        *(envelope.Subject({"sha256": digest.hex}, name, {}) for name, digest in files.items()),
    ]
    return envelope.statement(subjects, predicate_type, predicate)


def find_attestations(source: Source, subject: Descriptor) -> list[Attestation | Rejection]:
    """Everything that says something about ``subject``, in both forms: read, checked for shape, not yet verified.

    Bounded as ``find_signatures`` is. Signatures are passed over; what is broken, foreign or about something else
    becomes a Rejection. Raises only what means that nobody knows: UnavailableError, AccessDeniedError.
    """
    bundles = places.read_bundles(
        source, subject, partial(_open_bundle, source, subject), is_likely=is_likely_attestation
    )
    tag = simple_signing.attestation_tag(subject.digest)
    return [*bundles, *places.read_layers(source, tag, partial(_open_layer, source, subject))]


def _attested(
    source: Source, subject: Descriptor, key: PrivateKey, predicate_type: str, predicate: Mapping[str, Any]
) -> list[Attestation]:
    same = []
    for one in find_attestations(source, subject):
        if isinstance(one, Attestation) and one.predicate_type == predicate_type and one.predicate == predicate:
            try:
                one.verify([key.public])
            except InvalidSignatureError:
                continue
            same.append(one)
    return same


def _append_envelope(target: Target, subject: Descriptor, signed: envelope.Envelope, predicate_type: str) -> None:
    content = signed.to_bytes()
    # What cosign 2.5 writes; the signature is in the envelope, and cosign wants the annotation all the same.
    annotations = {simple_signing.SIGNATURE_ANNOTATION: "", "predicateType": predicate_type}
    layer = Descriptor.of(content, ENVELOPE_TYPE, annotations=annotations)
    tagged.append_layer(target, simple_signing.attestation_tag(subject.digest), layer, content)


def _open_bundle(source: Source, subject: Descriptor, opened: places.OpenedBundle) -> Attestation | None:
    if opened.statement.predicate_type == SIGN_PREDICATE:
        return None
    return _attestation(
        source, subject, opened.statement, opened.bundle.envelope,
        where=opened.where, scheme="bundle", hint=opened.bundle.hint, certified=opened.bundle.certified,
        referrer=opened.digest,
    )  # fmt: skip


def _open_layer(source: Source, subject: Descriptor, layer: Descriptor, where: str) -> Attestation:
    if layer.media_type != ENVELOPE_TYPE:
        raise UnsupportedError(f"layer is of type {layer.media_type!r:.120}, not {ENVELOPE_TYPE}")
    if layer.annotations.get(simple_signing.CERTIFICATE_ANNOTATION):
        raise UnsupportedError("keyless: signed with a certificate in the tag scheme, which is not evaluated")
    signed = envelope.Envelope.parse(read_whole(source, layer, limit=envelope.MAX_BUNDLE_SIZE))
    statement = envelope.Statement.parse(signed.payload)
    return _attestation(source, subject, statement, signed, where=where, scheme="cosign-legacy")


def _attestation(
    source: Source,
    subject: Descriptor,
    statement: envelope.Statement,
    signed: envelope.Envelope,
    *,
    where: str,
    scheme: Scheme,
    hint: str = "",
    certified: bytes = b"",
    referrer: Digest | None = None,
) -> Attestation:
    named = places.subject_of(statement, source, subject)
    return Attestation(
        where=where,
        scheme=scheme,
        digest=subject.digest,
        claims=Claims.parse(named.name, named.annotations),
        signed=signed.signed,
        signature=signed.signature,
        hint=hint,
        certified=certified,
        predicate_type=statement.predicate_type,
        predicate=statement.predicate,
        referrer=referrer,
    )
