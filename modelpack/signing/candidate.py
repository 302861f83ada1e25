"""What was found where signatures lie: signatures and attestations with what they claim, and what was turned away
with the reason.

A Signature that exists is well-formed and speaks of the digest that was asked for. Whether it is anybody's shows
``verify``; whether that body may sign decides the policy. The same holds for an Attestation.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Literal

from modelpack.errors import InvalidContentError, InvalidSignatureError
from modelpack.oci.digest import Digest
from modelpack.oci.reference import Reference
from modelpack.signing.keys import PublicKey

Scheme = Literal["bundle", "cosign-legacy"]
SCHEMES: tuple[Scheme, ...] = ("bundle", "cosign-legacy")

# Annotations under which a signature says more than "this digest".
REFERENCE_ANNOTATION = "org.opencontainers.image.ref.name"
SIGNED_AT_ANNOTATION = "dev.modelpack.signed-at"
EXPIRES_ANNOTATION = "dev.modelpack.expires"
RESERVED_PREFIX = "dev.modelpack."


@dataclass(frozen=True, slots=True)
class Claims:
    """What the signer says, apart from the digest. Times are the signer's word, not a trusted clock's.

    ``reference`` is ``host/repo:tag`` where the signature is bound to a tag, ``host/repo`` where to a repository.
    """

    reference: str | None = None
    signed_at: datetime | None = None
    expires: datetime | None = None
    annotations: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def parse(cls, reference: str | None, annotations: Mapping[str, str]) -> "Claims":
        """Read the claims out of a signature's name and annotations.

        Raises InvalidContentError for a time that is none, and where name and annotation name two references.
        """
        annotated = annotations.get(REFERENCE_ANNOTATION)
        if reference and annotated and annotated.startswith(f"{reference}:") and "/" not in annotated[len(reference) :]:
            reference = annotated  # cosign names the repository by itself, and the tag where a person annotates it
        if reference and annotated and reference != annotated:
            raise InvalidContentError(f"signature names two references: {reference!r:.120} and {annotated!r:.120}")
        others = {
            name: text
            for name, text in annotations.items()
            if name not in (REFERENCE_ANNOTATION, SIGNED_AT_ANNOTATION, EXPIRES_ANNOTATION)
        }
        return cls(
            reference=reference or annotated,
            signed_at=_time(annotations, SIGNED_AT_ANNOTATION),
            expires=_time(annotations, EXPIRES_ANNOTATION),
            annotations=MappingProxyType(others),
        )

    def to_annotations(self) -> dict[str, str]:
        """How the claims travel: the reverse of ``parse``."""
        annotations = dict(self.annotations)
        if self.reference:
            annotations[REFERENCE_ANNOTATION] = self.reference
        if self.signed_at:
            annotations[SIGNED_AT_ANNOTATION] = rfc3339(self.signed_at)
        if self.expires:
            annotations[EXPIRES_ANNOTATION] = rfc3339(self.expires)
        return annotations


@dataclass(frozen=True, slots=True)
class Evidence:
    """Something well-formed that is signed and speaks of ``digest``; not verified yet.

    ``hint`` is the key that it says it is by (base64 of the SPKI's sha256); empty where the scheme has none.
    ``certified`` is the whole sigstore bundle where a certificate signed (keyless), which no key verifies.
    """

    where: str
    scheme: Scheme
    digest: Digest
    claims: Claims
    signed: bytes = field(repr=False)
    signature: bytes = field(repr=False)
    hint: str = ""
    certified: bytes = field(default=b"", repr=False)

    def verify(self, keys: Iterable[PublicKey]) -> str:
        """The id of the key among ``keys`` that signed this; raises InvalidSignatureError when none did."""
        if self.certified:
            raise InvalidSignatureError("keyless: signed with a certificate, not with a key")
        reason = "not a signature by any of the keys"
        for key in sorted(keys, key=lambda key: key.hint != self.hint):
            try:
                key.verify(self.signature, self.signed)
            except InvalidSignatureError as error:
                if key.hint == self.hint or "Ed25519ph" in str(error):
                    reason = str(error)
            else:
                return key.id
        raise InvalidSignatureError(reason)


@dataclass(frozen=True, slots=True)
class Signature(Evidence):
    """A signature of the artifact itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attestation(Evidence):
    """What somebody says about the artifact, in a predicate of some type: never a signature of it."""

    predicate_type: str
    predicate: Mapping[str, Any] = field(repr=False)
    referrer: Digest | None = None
    """The manifest that holds it, where it is one of its own."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """Something that lies where signatures lie and is no signature for us, with the reason.

    ``is_foreign``: sound as far as we can tell, but of another kind (notation, an attestation, keyless).
    """

    where: str
    reason: str
    is_foreign: bool = False


Candidate = Signature | Rejection


def text_annotations(document: Mapping[str, object]) -> Mapping[str, str]:
    """Those that are text. Others put numbers and objects beside them (containers/image a timestamp, in-toto anything).

    Raises InvalidContentError where one that we read is of another type: a time that is none is not no time.
    """
    for name, value in document.items():
        if not isinstance(value, str) and (name.startswith(RESERVED_PREFIX) or name == REFERENCE_ANNOTATION):
            raise InvalidContentError(f"{name} is {value!r:.60}, not text")
    return MappingProxyType({name: value for name, value in document.items() if isinstance(value, str)})


def signed_reference(reference: Reference) -> str:
    """What a signature made for ``reference`` is bound to: the tag that was named, else the repository alone."""
    return reference.name if reference.digest and not reference.tag else reference.tagged


def rfc3339(time: datetime) -> str:
    """UTC, whole seconds: ``2026-11-22T10:58:33Z``."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_rfc3339(text: str) -> datetime:
    """Raises ValueError, also where the zone is missing or leads out of the years that there are."""
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError("no time zone")
    try:
        return time.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("no year from 1 to 9999") from error


def _time(annotations: Mapping[str, str], name: str) -> datetime | None:
    if name not in annotations:
        return None
    try:
        return parse_rfc3339(annotations[name])
    except ValueError as error:
        raise InvalidContentError(f"{name} is not an RFC 3339 time: {annotations[name]!r:.60}") from error
