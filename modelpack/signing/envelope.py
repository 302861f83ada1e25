"""Sigstore bundle v0.3, the DSSE envelope in it, and the in-toto statement in that: parsing and spelling, no trust.

https://github.com/sigstore/protobuf-specs (sigstore_bundle.proto), https://github.com/secure-systems-lab/dsse
(protocol.md), https://github.com/in-toto/attestation (spec/v1/statement.md).
"""

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from modelpack.errors import InvalidContentError, UnsupportedError
from modelpack.oci import strict_json
from modelpack.signing.candidate import text_annotations
from modelpack.signing.strict_base64 import decode_base64

BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
BUNDLE_TYPES = (BUNDLE_TYPE, "application/vnd.dev.sigstore.bundle+json;version=0.3")
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
STATEMENT_TYPES = (STATEMENT_TYPE, "https://in-toto.io/Statement/v0.1")

MAX_BUNDLE_SIZE = 4 << 20
MAX_SUBJECTS = 1_000


@dataclass(frozen=True, slots=True)
class Envelope:
    """A DSSE envelope with exactly one signature."""

    payload: bytes
    signature: bytes
    payload_type: str = PAYLOAD_TYPE

    @property
    def signed(self) -> bytes:
        """The bytes that the signature is over."""
        return pre_authentication_encoding(self.payload_type, self.payload)

    @classmethod
    def parse(cls, raw: bytes) -> "Envelope":
        """An envelope on its own, as cosign 2 keeps attestations. Raises InvalidContentError, UnsupportedError."""
        return _parse_envelope(strict_json.parse_object(raw, what="envelope"))

    def to_bytes(self) -> bytes:
        """The envelope as cosign 2.5 spells it, with an empty ``keyid``."""
        return strict_json.canonical(
            {
                "payloadType": self.payload_type,
                "payload": base64.b64encode(self.payload).decode(),
                "signatures": [{"keyid": "", "sig": base64.b64encode(self.signature).decode()}],
            }
        )


@dataclass(frozen=True, slots=True)
class Bundle:
    """A sigstore bundle. ``hint`` names the key, but nothing proves it: try that key first.

    ``certified`` is the whole bundle where its signer is a certificate instead (keyless), and empty else: then what
    vouches for the envelope lies beside it, in the certificate and the log entries, and ``signing.keyless`` reads it.
    """

    envelope: Envelope
    hint: str
    certified: bytes = b""

    @classmethod
    def parse(cls, raw: bytes) -> "Bundle":
        """Raises InvalidContentError for a broken bundle, UnsupportedError for a sound one of another kind."""
        if len(raw) > MAX_BUNDLE_SIZE:
            raise InvalidContentError(f"bundle has {len(raw)} bytes, more than {MAX_BUNDLE_SIZE}")
        document = strict_json.parse_object(raw, what="bundle")
        media_type = document.get("mediaType")
        if media_type not in BUNDLE_TYPES:
            raise UnsupportedError(f"bundle is of type {media_type!r:.120}, not {BUNDLE_TYPE}")
        _exactly(document, {"mediaType", "verificationMaterial", "dsseEnvelope", "messageSignature"}, "bundle")
        material = _object(document, "verificationMaterial", "bundle")
        _exactly(
            material,
            {"publicKey", "certificate", "x509CertificateChain", "tlogEntries", "timestampVerificationData"},
            "verificationMaterial",
        )
        signers = [kind for kind in ("publicKey", "certificate", "x509CertificateChain") if kind in material]
        if len(signers) != 1:
            raise InvalidContentError(f"bundle names {len(signers)} kinds of signer where one is wanted")
        if signers == ["x509CertificateChain"]:
            raise UnsupportedError("keyless: signed with a chain of certificates; a bundle v0.3 holds the leaf alone")
        if "messageSignature" in document:
            raise UnsupportedError("bundle signs a bare message; an artifact's bundle signs a statement")
        is_certified = signers == ["certificate"]
        signer = _object(material, signers[0], "verificationMaterial")
        _exactly(signer, {"rawBytes"} if is_certified else {"hint"}, signers[0])
        hint = _text(signer, "hint", "publicKey", default="")
        envelope = _parse_envelope(_object(document, "dsseEnvelope", "bundle"), hint)
        return cls(envelope, hint, raw if is_certified else b"")

    def to_bytes(self) -> bytes:
        """The bundle as cosign 3.1.1 spells it: compact, no ``keyid``, no ``tlogEntries``. A keyless one as it came."""
        if self.certified:
            return self.certified
        return strict_json.canonical(
            {
                "mediaType": BUNDLE_TYPE,
                "verificationMaterial": {"publicKey": {"hint": self.hint}},
                "dsseEnvelope": {
                    "payload": base64.b64encode(self.envelope.payload).decode(),
                    "payloadType": self.envelope.payload_type,
                    "signatures": [{"sig": base64.b64encode(self.envelope.signature).decode()}],
                },
            }
        )


@dataclass(frozen=True, slots=True)
class Subject:
    """What a statement speaks of. ``digests`` maps an algorithm to lower-case hexadecimal digits."""

    digests: Mapping[str, str]
    name: str | None
    annotations: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Statement:
    """An in-toto statement, v1 or v0.1."""

    subjects: tuple[Subject, ...]
    predicate_type: str
    predicate: Mapping[str, Any]

    @classmethod
    def parse(cls, raw: bytes) -> "Statement":
        """Raises InvalidContentError. Unknown fields are ignored, as in-toto asks; look-alikes are refused."""
        document = strict_json.parse_object(raw, what="statement")
        _no_lookalikes(document, ("_type", "subject", "predicateType", "predicate"), "statement")
        if document.get("_type") not in STATEMENT_TYPES:
            raise InvalidContentError(f"statement is of type {document.get('_type')!r:.120}")
        subjects = document.get("subject")
        if not isinstance(subjects, list) or not subjects:
            raise InvalidContentError("statement has no subject")
        if len(subjects) > MAX_SUBJECTS:
            raise InvalidContentError(f"statement has {len(subjects)} subjects, more than {MAX_SUBJECTS}")
        predicate = document.get("predicate")
        if predicate is not None and not isinstance(predicate, dict):
            raise InvalidContentError("statement has a predicate that is not an object")
        return cls(
            subjects=tuple(_parse_subject(subject) for subject in subjects),
            predicate_type=_text(document, "predicateType", "statement"),
            predicate=predicate or {},
        )


def statement(subjects: Iterable[Subject], predicate_type: str, predicate: Mapping[str, Any]) -> bytes:
    """Spell a Statement v1. The same arguments give the same bytes."""
    return strict_json.canonical(
        {
            "_type": STATEMENT_TYPE,
            "subject": [
                {
                    **({"name": subject.name} if subject.name else {}),
                    "digest": dict(subject.digests),
                    "annotations": dict(sorted(subject.annotations.items())),
                }
                for subject in subjects
            ],
            "predicateType": predicate_type,
            "predicate": dict(predicate),
        }
    )


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """DSSE's PAE: what is signed, so that a type can never be read as part of a payload (DSSE protocol.md)."""
    kind = payload_type.encode("utf-8")
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def _parse_envelope(document: dict[str, Any], hint: str | None = None) -> Envelope:
    _exactly(document, {"payload", "payloadType", "signatures"}, "envelope")
    payload_type = document.get("payloadType")
    if payload_type != PAYLOAD_TYPE:
        raise UnsupportedError(f"envelope holds {payload_type!r:.120}, not an in-toto statement")
    signatures = document.get("signatures")
    if not isinstance(signatures, list) or len(signatures) != 1 or not isinstance(signatures[0], dict):
        raise InvalidContentError("envelope does not hold exactly one signature")
    _exactly(signatures[0], {"sig", "keyid"}, "signature")
    # protobuf-specs: where both are there they must agree. On its own, an envelope's keyid is nobody's business.
    if hint is not None and signatures[0].get("keyid", "") not in ("", hint):
        raise InvalidContentError("envelope's keyid differs from the bundle's hint")
    return Envelope(
        payload=decode_base64(document.get("payload"), what="payload"),
        signature=decode_base64(signatures[0].get("sig"), what="signature"),
    )


def _parse_subject(document: object) -> Subject:
    if not isinstance(document, dict):
        raise InvalidContentError("statement has a subject that is not an object")
    _no_lookalikes(document, ("name", "digest", "annotations"), "subject")
    digests = _object(document, "digest", "subject")
    _no_lookalikes(digests, ("sha256", "sha512"), "digest")
    annotations = document.get("annotations") or {}
    if not isinstance(annotations, dict):
        raise InvalidContentError("statement has a subject with annotations that are not an object")
    return Subject(
        digests=_strings(digests, "digest"),
        name=_text(document, "name", "subject", default="") or None,
        annotations=text_annotations(annotations),
    )


def _exactly(document: dict[str, Any], known: set[str], what: str) -> None:
    unknown = sorted(document.keys() - known)
    if unknown:
        raise InvalidContentError(f"{what} has an unknown field: {unknown[0]!r:.80}")


def _no_lookalikes(document: dict[str, Any], known: Iterable[str], what: str) -> None:
    # Go matches JSON names without regard to case, so "Subject" is a second "subject" to some and nothing to others.
    for name in document:
        for exact in known:
            if name != exact and name.casefold() == exact.casefold():
                raise InvalidContentError(f"{what} has a field {name!r:.80} that passes for {exact!r}")


def _object(document: dict[str, Any], name: str, what: str) -> dict[str, Any]:
    value = document.get(name)
    if not isinstance(value, dict):
        raise InvalidContentError(f"{what} has no object {name!r}")
    return value


def _text(document: dict[str, Any], name: str, what: str, *, default: str | None = None) -> str:
    value = document.get(name, default)
    if not isinstance(value, str):
        raise InvalidContentError(f"{what} has no string {name!r}")
    return value


def _strings(value: object, what: str) -> Mapping[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise InvalidContentError(f"{what} is not an object of strings")
    return value
