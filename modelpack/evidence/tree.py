"""Everything that hangs on an artifact: signatures, attestations, referrers of any other kind, cosign's tags."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from modelpack.errors import InvalidContentError, InvalidSignatureError, NotFoundError, UntrustedError
from modelpack.oci.manifest import MAX_MANIFEST_SIZE, Descriptor, Manifest
from modelpack.oci.target import Source
from modelpack.signing.attestation import find_attestations
from modelpack.signing.candidate import Attestation, Rejection, Signature, rfc3339
from modelpack.signing.keys import PublicKey
from modelpack.signing.places import MAX_REFERRERS
from modelpack.signing.signature import find_signatures

# cosign's tag for bills of materials, which are not signed by being there (cosign, "SBOM_SPEC.md").
_UNREAD_TAGS = (".sbom",)

NO_SIGNERS: Mapping[str, PublicKey] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Attachment:
    """One thing that hangs on an artifact.

    ``kind``: ``signature``, ``attestation``, ``referrer`` (of another type), ``tag`` (a legacy one that is not read) or
    ``unreadable``. ``type``: the predicate type of an attestation, the artifact type of a referrer. ``signer``: the
    name of the key, among those given, that made it; None where none did, whatever ``key_hint`` says.
    """

    where: str
    kind: str
    type: str | None = None
    format: str | None = None
    signer: str | None = None
    key_hint: str | None = None
    reference: str | None = None
    signed_at: str | None = None
    problem: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "where": self.where,
            "kind": self.kind,
            "type": self.type,
            "format": self.format,
            "signer": self.signer,
            "key_hint": self.key_hint,
            "reference": self.reference,
            "signed_at": self.signed_at,
            "problem": self.problem,
        }


@dataclass(frozen=True, slots=True)
class Tree:
    """An artifact and what hangs on it."""

    manifest: Manifest
    attachments: tuple[Attachment, ...]


def build_tree(source: Source, subject: Descriptor, signers: Mapping[str, PublicKey] = NO_SIGNERS) -> Tree:
    """Look at all that hangs on ``subject``, as far as signatures and attestations are read: 100 of each.

    Nothing is decided: ``signers`` (keys by name) only says whose is whose. Raises what means that nobody knows:
    UnavailableError, AccessDeniedError.
    """
    signatures = find_signatures(source, subject)
    statements = find_attestations(source, subject)
    sound = [one for one in (*signatures, *statements) if not isinstance(one, Rejection)]
    attachments = [_signed(one, signers) for one in sound]
    seen = {one.where for one in sound}
    # Both searches open every referrer, so each turns away some of what the other takes.
    for one in (*signatures, *statements):
        if isinstance(one, Rejection) and one.where not in seen and not _is_about_att_tag(one):
            seen.add(one.where)
            attachments.append(Attachment(one.where, "unreadable", problem=one.reason))
    attachments += _others(source, subject, seen)
    attachments += _legacy_tags(source, subject)
    return Tree(source.fetch_manifest(subject), tuple(attachments))


def name_of(evidence: Signature | Attestation, signers: Mapping[str, PublicKey]) -> str | None:
    """The name of the key among ``signers`` that made it; None when none did."""
    names = {key.id: name for name, key in signers.items()}
    try:
        return names[evidence.verify(signers.values())]
    except InvalidSignatureError:
        return None


def _signed(one: Signature | Attestation, signers: Mapping[str, PublicKey]) -> Attachment:
    return Attachment(
        where=one.where,
        kind="attestation" if isinstance(one, Attestation) else "signature",
        type=one.predicate_type if isinstance(one, Attestation) else None,
        format=one.scheme,
        signer=name_of(one, signers),
        key_hint=f"SHA256:{one.hint}" if one.hint else None,
        reference=one.claims.reference,
        signed_at=rfc3339(one.claims.signed_at) if one.claims.signed_at else None,
    )


def _is_about_att_tag(rejection: Rejection) -> bool:
    # "There are attestations": their layers are listed one by one.
    return rejection.where.startswith("tag ") and rejection.where.endswith(".att") and rejection.is_foreign


def _others(source: Source, subject: Descriptor, seen: set[str]) -> Iterator[Attachment]:
    unique = {descriptor.digest: descriptor for descriptor in source.list_referrers(subject.digest)}
    rest = [descriptor for digest, descriptor in unique.items() if f"referrer {digest}" not in seen]
    for descriptor in rest[:MAX_REFERRERS]:
        where = f"referrer {descriptor.digest}"
        try:
            if descriptor.size > MAX_MANIFEST_SIZE:
                raise InvalidContentError(f"manifest has {descriptor.size} bytes, more than {MAX_MANIFEST_SIZE}")
            manifest = source.fetch_manifest(descriptor)
        except (InvalidContentError, NotFoundError, UntrustedError) as error:
            yield Attachment(where, "unreadable", problem=str(error))
            continue
        if manifest.subject is None or manifest.subject.digest != subject.digest:
            yield Attachment(where, "unreadable", problem="its manifest has another subject")
        else:
            yield Attachment(where, "referrer", type=manifest.descriptor.artifact_type)


def _legacy_tags(source: Source, subject: Descriptor) -> Iterator[Attachment]:
    for suffix in _UNREAD_TAGS:
        tag = f"sha256-{subject.digest.hex}{suffix}"
        try:
            source.resolve(tag)
        except NotFoundError:
            continue
        yield Attachment(f"tag {tag}", "tag", problem="not signed by itself, so it is not read")
