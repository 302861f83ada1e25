"""Keyless signatures: a certificate that names an identity, and a log entry that shows when it signed (sigstore).

The only door to sigstore, which the extra ``keyless`` brings along. Verification is offline: a trusted root says which
certificate authorities and logs are believed, and the bundle carries everything else. Signing asks Fulcio for a
certificate and puts an entry into Rekor, a public log unless a trust configuration names private ones.
https://github.com/sigstore/architecture-docs/blob/main/client-spec.md
"""

import importlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib import resources
from types import MappingProxyType, ModuleType
from typing import Any

from modelpack.errors import InvalidInputError, InvalidSignatureError, UnavailableError, UnsupportedError
from modelpack.oci import strict_json
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import Descriptor
from modelpack.oci.reference import Reference
from modelpack.oci.target import Target
from modelpack.signing import envelope, places
from modelpack.signing.attestation import attestation_statement, check_attestable, find_attestations
from modelpack.signing.candidate import Claims, Evidence, Rejection, rfc3339, signed_reference
from modelpack.signing.signature import SIGN_PREDICATE, find_signatures

PUBLIC_INSTANCE = "https://tuf-repo-cdn.sigstore.dev"

# Fulcio's own extensions (https://github.com/sigstore/fulcio/blob/main/docs/oid-info.md): the issuer as a UTF8String,
# as plain bytes in older certificates, and the name of an identity that is neither a URL nor an e-mail address.
_ISSUER = "1.3.6.1.4.1.57264.1.8"
_OLD_ISSUER = "1.3.6.1.4.1.57264.1.1"
_OTHER_NAME = "1.3.6.1.4.1.57264.1.7"


@dataclass(frozen=True, slots=True)
class CertifiedIdentity:
    """Who signed: what the issuer of the token says the subject is."""

    issuer: str
    subject: str

    def __str__(self) -> str:
        return f"{self.subject} ({self.issuer})"


@dataclass(frozen=True, slots=True)
class KeylessSigned:
    """What ``sign`` or ``attest`` did. ``log_index`` is the place of the entry in the log."""

    reference: str
    identity: CertifiedIdentity
    log_index: int


class KeylessVerifier:
    """Verifies bundles against one trusted root: the content of a trusted_root.json, or sigstore's public instance.

    The root of the public instance is the one that comes with sigstore's package; no cache in anybody's home is asked.
    Reads nothing until it is used; then raises InvalidInputError for a root that is none, and UnsupportedError
    without the extra.
    """

    def __init__(self, trusted_root: bytes | None = None) -> None:
        self._trusted_root = trusted_root

    def verify(self, evidence: Evidence) -> CertifiedIdentity:
        """Who made this signature or attestation; raises InvalidSignatureError where nobody vouches for it."""
        verifier = self._verifier
        models = _sigstore("models")
        try:
            bundle = models.Bundle.from_json(_with_defaults(evidence.certified))
            payload_type, payload = verifier.verify_dsse(bundle, _Anybody())
            self._require_believed_authority(bundle)
            identity = _identity_of(bundle.signing_certificate)
        except Exception as error:  # a stranger's bytes went in, and whatever comes out but a yes is a no
            raise InvalidSignatureError(f"keyless: {_reason(error)}") from error
        # Two parsers read the bundle; what the other one verified has to be what ours has read.
        if envelope.pre_authentication_encoding(payload_type, payload) != evidence.signed:
            raise InvalidSignatureError("keyless: what was verified is not what was read")
        return identity

    def _require_believed_authority(self, bundle: Any) -> None:
        """Raise ValueError unless a certificate authority that was believed when this was logged has certified it.

        sigstore-python 4.5 holds ``validFor`` against timestamps, and not against what Rekor's first version says.
        """
        entry = bundle.log_entry._inner
        if not (entry.integrated_time and entry.inclusion_promise):
            return
        at = datetime.fromtimestamp(entry.integrated_time, UTC)
        for authority in self._root.certificate_authorities:
            end = authority.valid_for.end
            if authority.valid_for.start <= at and (end is None or at <= end):
                chain = authority.cert_chain.certificates
                if any(_has_issued(one.raw_bytes, bundle.signing_certificate) for one in chain):
                    return
        raise ValueError(f"its certificate authority was not believed at {rfc3339(at)}")

    @cached_property
    def _root(self) -> Any:
        content = _public_root() if self._trusted_root is None else self._trusted_root
        return _sigstore_models("trustroot.v1").TrustedRoot.from_json(content)

    @cached_property
    def _verifier(self) -> Any:
        models, verify = _sigstore("models"), _sigstore("verify")
        _sigstore_models("trustroot.v1")
        try:
            return verify.Verifier(trusted_root=models.TrustedRoot(self._root))
        except Exception as error:  # pydantic's, sigstore's and cryptography's own, none of which is ours to name
            raise InvalidInputError(f"the trusted root cannot be used: {_reason(error)}") from error


def _with_defaults(bundle: bytes) -> bytes:
    """With what protobuf's JSON leaves out and sigstore's models ask for: the first entry of a log has index 0, and a
    log of one entry no hashes (https://protobuf.dev/programming-guides/json, "Presence and default-values").
    """
    document = strict_json.parse_object(bundle, what="the bundle")
    for entry in document["verificationMaterial"]["tlogEntries"]:
        entry.setdefault("logIndex", "0")
        entry["inclusionProof"] = {"logIndex": "0", "hashes": []} | entry["inclusionProof"]
    return json.dumps(document).encode()


def ambient_token() -> str:
    """The OIDC token that the CI job has for sigstore (GitHub, GitLab, Buildkite, CircleCI, Google Cloud).

    Raises InvalidInputError where there is none: outside of CI, or in a job without the permission to ask for one.
    """
    oidc = _sigstore("oidc")
    try:
        token: str | None = oidc.detect_credential()
    except oidc.IdentityError as error:
        raise InvalidInputError(f"this job gets no OIDC token: {_reason(error)}") from error
    if not token:
        raise InvalidInputError("there is no OIDC token to sign with: keyless signing works in CI")
    return token


class KeylessSigner:
    """Signs with the identity of an OIDC token, in sigstore's public instance or in one that ``trust_config`` names.

    ``trust_config`` is the content of a ClientTrustConfig in JSON (sigstore's protobuf-specs), with the services and
    the trusted root of a private instance. Raises InvalidInputError for a token or a configuration that is none,
    UnavailableError where the services do not answer, UnsupportedError without the extra.
    """

    def __init__(self, token: str, trust_config: bytes | None = None) -> None:
        models, oidc = _sigstore("models"), _sigstore("oidc")
        try:
            self._token = oidc.IdentityToken(token)
        except oidc.IdentityError as error:
            raise InvalidInputError(f"the OIDC token cannot be used: {_reason(error)}") from error
        try:
            if trust_config is None:
                self._config = models.ClientTrustConfig.production()
            else:
                self._config = models.ClientTrustConfig.from_json(trust_config.decode("utf-8"))
        except ValueError as error:
            raise InvalidInputError(f"the trust configuration cannot be used: {_reason(error)}") from error
        except Exception as error:  # sigstore refreshes its root over the network, with errors of several libraries
            raise UnavailableError(f"sigstore's public instance does not answer: {_reason(error)}") from error

    @property
    def disclosure(self) -> str:
        """One line about what signing makes public."""
        log = self._config.signing_config.get_tlogs()[0].url
        return (
            f"the identity of this job ({self._token.identity}, {self._token.federated_issuer}), the digest and the "
            f"name of what it signs go into a certificate and into the log {log}, where they stay"
        )

    def sign(
        self,
        target: Target,
        reference: Reference,
        subject: Descriptor,
        *,
        signed_at: datetime,
        annotations: Mapping[str, str] = MappingProxyType({}),
        expires: datetime | None = None,
    ) -> KeylessSigned:
        """Sign ``subject`` as ``reference``, hang the bundle on it, read it back and verify it.

        Every call makes a new certificate and a new entry in the log. Raises UnavailableError, and
        InvalidSignatureError when what was written does not come back.
        """
        claims = Claims(signed_reference(reference), signed_at, expires, MappingProxyType(dict(annotations)))
        named = envelope.Subject({"sha256": subject.digest.hex}, claims.reference, claims.to_annotations())
        statement = envelope.statement([named], SIGN_PREDICATE, {})
        raw, log_index = self._sign_statement(statement)
        places.put_bundle(target, subject, envelope.Bundle.parse(raw), predicate_type=SIGN_PREDICATE, created=signed_at)
        return self._read_back(find_signatures(target, subject), raw, reference, subject, log_index)

    def attest(
        self,
        target: Target,
        reference: Reference,
        subject: Descriptor,
        *,
        predicate_type: str,
        predicate: Mapping[str, Any],
        created: datetime,
        files: Mapping[str, Digest] = MappingProxyType({}),
    ) -> KeylessSigned:
        """Sign what ``predicate`` says about ``subject``, hang the bundle on it, read it back and verify it.

        As ``attestation.attest`` with a key, but every call makes a new entry in the log. Raises InvalidInputError for
        what cannot be attested, and as ``sign``.
        """
        check_attestable(predicate_type, predicate)
        statement = attestation_statement(
            reference, subject, predicate_type=predicate_type, predicate=predicate, created=created, files=files
        )
        raw, log_index = self._sign_statement(statement)
        bundle = envelope.Bundle.parse(raw)
        places.put_bundle(target, subject, bundle, predicate_type=predicate_type, created=created)
        return self._read_back(find_attestations(target, subject), raw, reference, subject, log_index)

    def _sign_statement(self, statement: bytes) -> tuple[bytes, int]:
        """The bundle, and the place of its entry in the log. Raises UnavailableError."""
        context = _sigstore("sign").SigningContext.from_trust_config(self._config)
        try:
            with context.signer(self._token) as signer:
                made = signer.sign_dsse(_sigstore("dsse").Statement(statement))
        except Exception as error:  # requests', Fulcio's and Rekor's clients raise what they like
            raise UnavailableError(f"keyless signing failed: {_reason(error)}") from error
        return made.to_json().encode("utf-8"), int(made.log_entry._inner.log_index)

    def _read_back(
        self,
        found: Iterable[Evidence | Rejection],
        raw: bytes,
        reference: Reference,
        subject: Descriptor,
        log_index: int,
    ) -> KeylessSigned:
        verifier = KeylessVerifier(self._config._inner.trusted_root.to_json().encode("utf-8"))
        for candidate in found:
            if isinstance(candidate, Evidence) and candidate.certified == raw:
                return KeylessSigned(signed_reference(reference), verifier.verify(candidate), log_index)
        raise InvalidSignatureError(f"what was just signed about {subject.digest} cannot be read back")


class _Anybody:
    """A verification policy of sigstore's: whether an identity is trusted is decided by ours, which gets to know it."""

    def verify(self, certificate: Any) -> None:
        _identity_of(certificate)


def _public_root() -> bytes:
    name = PUBLIC_INSTANCE.replace(":", "%3A").replace("/", "%2F")
    try:
        return resources.files("sigstore").joinpath("_store", name, "trusted_root.json").read_bytes()
    except (FileNotFoundError, ModuleNotFoundError) as error:
        raise UnsupportedError("this version of sigstore's package brings no trusted root along") from error


def _has_issued(der: bytes, certificate: Any) -> bool:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature

    try:
        certificate.verify_directly_issued_by(x509.load_der_x509_certificate(der))
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _identity_of(certificate: Any) -> CertifiedIdentity:
    """Raises ValueError for a certificate that names none, or more than one."""
    from cryptography import x509

    extensions = certificate.extensions
    names = list(extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    if len(names) != 1:
        raise ValueError(f"the certificate names {len(names)} subjects where one is wanted")
    name = names[0]
    if isinstance(name, x509.OtherName) and name.type_id.dotted_string == _OTHER_NAME:
        subject = _utf8(name.value)
    elif isinstance(name, x509.UniformResourceIdentifier | x509.RFC822Name):
        subject = name.value
    else:
        raise ValueError("the certificate names its subject in a way that is not known")
    by_oid = {extension.oid.dotted_string: extension.value for extension in extensions}
    if _ISSUER in by_oid:
        return CertifiedIdentity(_utf8(by_oid[_ISSUER].value), subject)
    if _OLD_ISSUER in by_oid:
        return CertifiedIdentity(by_oid[_OLD_ISSUER].value.decode("utf-8"), subject)
    raise ValueError("the certificate does not say who issued the identity")


def _utf8(der: bytes) -> str:
    """A DER UTF8String of at most 64 KiB: tag 12, a length of one to three bytes, the text."""
    if len(der) >= 2 and der[0] == 0x0C:
        count = der[1] & 0x7F if der[1] & 0x80 else 0
        length = int.from_bytes(der[2 : 2 + count]) if count else der[1]
        if count <= 2 and len(der) == 2 + count + length:
            return der[2 + count :].decode("utf-8")
    raise ValueError("the certificate holds text that is none")


def _sigstore(module: str) -> ModuleType:
    return _import(f"sigstore.{module}")


def _sigstore_models(module: str) -> ModuleType:
    return _import(f"sigstore_models.{module}")


def _import(name: str) -> ModuleType:
    # 0.8 s and a dozen packages: only who meets a certificate pays for them.
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            "keyless signatures need the extra keyless: pip install 'modelpack-oci[keyless]'"
        ) from error


def _reason(error: Exception) -> str:
    # pydantic's messages run over many lines.
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
