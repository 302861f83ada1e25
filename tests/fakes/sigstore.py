"""A private sigstore: Fulcio, its certificate transparency log and Rekor in one small server, for tests of keyless.

It keeps the services' promises (a certificate for the identity in the token, with an embedded SCT; a log entry with an
inclusion proof, a signed checkpoint and a signed entry timestamp), so that signer and verifier run unchanged.
https://github.com/sigstore/fulcio/blob/main/fulcio.proto, https://github.com/sigstore/rekor/blob/main/openapi.yaml,
RFC 6962 sections 2.1 and 3.2, https://c2sp.org/tlog-checkpoint.
"""

import base64
import hashlib
import json
import struct
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

ISSUER = "https://token.ci.example.com"
ISSUER_OID = ObjectIdentifier("1.3.6.1.4.1.57264.1.8")
FIRST_LEAF = hashlib.sha256(b"\x00a log begins").digest()
NO_HEADERS: Mapping[str, str] = MappingProxyType({})
SCT_LIST_OID = ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")


def b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def spki(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def sha256(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def sign(key: ec.EllipticCurvePrivateKey, content: bytes) -> bytes:
    return key.sign(content, ec.ECDSA(hashes.SHA256()))


def _requested_key(document: dict[str, Any]) -> ec.EllipticCurvePublicKey:
    """Of the two forms of a request: sigstore's Python client sends the one, cosign the other."""
    if "publicKeyRequest" in document:
        pem = document["publicKeyRequest"]["publicKey"]["content"]
        key = load_pem_public_key(pem.encode())
    else:
        key = x509.load_pem_x509_csr(base64.b64decode(document["certificateSigningRequest"])).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key


def token(subject: str, issuer: str = ISSUER) -> str:
    """What a CI job gets. Nobody checks who signed it but a real Fulcio."""
    now = int(time.time())
    claims = {"iss": issuer, "sub": subject, "aud": "sigstore", "iat": now, "exp": now + 600}
    return jwt.encode(claims, "a secret of thirty-two bytes or more", algorithm="HS256")


class FakeSigstore:
    """Runs while its context is open. ``log`` holds the bodies of the entries.

    Certificates hold from a minute before they are made to nine minutes after; ``log_runs_ahead`` is what the log's
    clock, in seconds, says more than that of Fulcio. ``ca_until`` is when the trusted root stops believing Fulcio.
    ``is_new``: each entry is the only one of its log.
    """

    log_runs_ahead = 0
    ca_until: datetime | None = None

    def __init__(self, *, is_new: bool = False) -> None:
        self.is_new = is_new
        self.ca, self.ct_key, self.log_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
        self.root = self._root()
        self.log: list[bytes] = []
        self.tokens: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        # A log signs its checkpoints by the name of its host, which a reader holds against its URL.
        self.name = f"127.0.0.1:{self._server.server_port}"
        self.url = f"http://{self.name}"

    def __enter__(self) -> "FakeSigstore":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    # What clients are configured with

    def trusted_root(self) -> dict[str, Any]:
        since = {"start": "2020-01-01T00:00:00Z"}

        def log(key: ec.EllipticCurvePrivateKey) -> dict[str, Any]:
            public = {"rawBytes": b64(spki(key)), "keyDetails": "PKIX_ECDSA_P256_SHA_256", "validFor": since}
            return {
                "baseUrl": self.url,
                "hashAlgorithm": "SHA2_256",
                "publicKey": public,
                "logId": {"keyId": b64(sha256(spki(key)))},
            }

        return {
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [log(self.log_key)],
            "certificateAuthorities": [
                {
                    "subject": {"organization": "example.com", "commonName": "fulcio"},
                    "uri": self.url,
                    "certChain": {"certificates": [{"rawBytes": b64(self.root.public_bytes(Encoding.DER))}]},
                    "validFor": {**since, "end": self.ca_until.isoformat()} if self.ca_until else since,
                }
            ],
            "ctlogs": [log(self.ct_key)],
            "timestampAuthorities": [],
        }

    def trust_config(self) -> dict[str, Any]:
        service = {
            "url": self.url,
            "majorApiVersion": 1,
            "validFor": {"start": "2020-01-01T00:00:00Z"},
            "operator": "example.com",
        }
        return {
            "mediaType": "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json",
            "trustedRoot": self.trusted_root(),
            "signingConfig": {
                "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json",
                "caUrls": [service],
                "oidcUrls": [],
                "rekorTlogUrls": [service],
                "tsaUrls": [],
                "rekorTlogConfig": {"selector": "ANY"},
                "tsaConfig": {"selector": "ANY"},
            },
        }

    # Fulcio

    def _root(self) -> x509.Certificate:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fulcio")])
        usage = x509.KeyUsage(*(name in (5, 6) for name in range(9)))  # keyCertSign and cRLSign
        return (
            x509.CertificateBuilder(name, name, self.ca.public_key(), x509.random_serial_number())
            .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
            .not_valid_after(datetime(2099, 1, 1, tzinfo=UTC))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.ca.public_key()), critical=False)
            .sign(self.ca, hashes.SHA256())
        )

    def _certify(self, key: ec.EllipticCurvePublicKey, issuer: str, subject: str) -> x509.Certificate:
        name: x509.GeneralName
        name = x509.RFC822Name(subject) if "://" not in subject else x509.UniformResourceIdentifier(subject)
        now = datetime.now(UTC).replace(microsecond=0)
        usage = x509.KeyUsage(*(position == 0 for position in range(9)))  # digitalSignature
        builder = (
            x509.CertificateBuilder(self.root.subject, x509.Name([]), key, x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=1))
            .not_valid_after(now + timedelta(minutes=9))
            .add_extension(x509.SubjectAlternativeName([name]), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.ca.public_key()), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(
                x509.UnrecognizedExtension(ISSUER_OID, bytes([0x0C, len(issuer)]) + issuer.encode()), critical=False
            )
        )
        precertificate = builder.sign(self.ca, hashes.SHA256())
        sct = self._sct(precertificate.tbs_certificate_bytes)
        entries = struct.pack("!HH", len(sct) + 2, len(sct)) + sct
        octets = bytes([0x04, 0x81, len(entries)]) if len(entries) > 127 else bytes([0x04, len(entries)])
        return builder.add_extension(x509.UnrecognizedExtension(SCT_LIST_OID, octets + entries), critical=False).sign(
            self.ca, hashes.SHA256()
        )

    def _sct(self, tbs: bytes) -> bytes:
        """RFC 6962 section 3.2, for a precertificate."""
        milliseconds = int(time.time()) * 1000
        entry = sha256(spki(self.ca)) + len(tbs).to_bytes(3) + tbs
        signature = sign(self.ct_key, struct.pack("!BBQH", 0, 0, milliseconds, 1) + entry + b"\x00\x00")
        header = struct.pack("!B32sQH", 0, sha256(spki(self.ct_key)), milliseconds, 0)
        return header + struct.pack("!BBH", 4, 3, len(signature)) + signature

    # Rekor

    def _append(self, proposed: dict[str, Any]) -> dict[str, Any]:
        content = proposed["spec"]["proposedContent"]
        envelope = json.loads(content["envelope"])
        body = {
            "apiVersion": "0.0.1",
            "kind": "dsse",
            "spec": {
                "envelopeHash": {"algorithm": "sha256", "value": sha256(content["envelope"].encode()).hex()},
                "payloadHash": {
                    "algorithm": "sha256",
                    "value": sha256(base64.b64decode(envelope["payload"])).hex(),
                },
                "signatures": [
                    {"signature": signature["sig"], "verifier": verifier}
                    for signature, verifier in zip(envelope["signatures"], content["verifiers"], strict=True)
                ],
            },
        }
        raw = json.dumps(body, separators=(",", ":"), sort_keys=True).encode()
        self.log.append(raw)
        # RFC 6962 section 2.1: the only leaf is the root; the second of two hangs beside the first.
        leaf = sha256(b"\x00" + raw)
        beside = [] if self.is_new else [FIRST_LEAF]
        root = leaf if self.is_new else sha256(b"\x01" + FIRST_LEAF + leaf)
        position, size = len(beside), len(beside) + 1
        log_id = sha256(spki(self.log_key))
        note = f"{self.name} - 1\n{size}\n{b64(root)}\n"
        checkpoint = f"{note}\n\u2014 {self.name} {b64(log_id[:4] + sign(self.log_key, note.encode()))}\n"
        entry: dict[str, Any] = {
            "body": b64(raw),
            "integratedTime": int(time.time()) + self.log_runs_ahead,
            "logID": log_id.hex(),
            "logIndex": len(self.log) - 1 + position,
        }
        promise = sign(self.log_key, json.dumps(entry, separators=(",", ":"), sort_keys=True).encode())
        entry["verification"] = {
            "inclusionProof": {
                "checkpoint": checkpoint,
                "hashes": [one.hex() for one in beside],
                "logIndex": position,
                "rootHash": root.hex(),
                "treeSize": size,
            },
            "signedEntryTimestamp": b64(promise),
        }
        return {leaf.hex(): entry}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        sigstore = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path == "/api/v2/signingCert":
                    raw = self.headers["Authorization"].removeprefix("Bearer ")
                    sigstore.tokens.append(raw)
                    claims = jwt.decode(raw, options={"verify_signature": False})
                    leaf = sigstore._certify(_requested_key(document), claims["iss"], claims["sub"])
                    chain = [one.public_bytes(Encoding.PEM).decode() for one in (leaf, sigstore.root)]
                    self._answer(200, {"signedCertificateEmbeddedSct": {"chain": {"certificates": chain}}})
                elif self.path == "/api/v1/log/entries":
                    entry = sigstore._append(document)
                    self._answer(201, entry, {"ETag": next(iter(entry))})
                else:
                    self._answer(404, {"message": self.path})

            def _answer(self, status: int, document: dict[str, Any], headers: Mapping[str, str] = NO_HEADERS) -> None:
                content = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args: object) -> None:
                pass

        return Handler
