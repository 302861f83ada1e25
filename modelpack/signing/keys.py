"""Keys and their files: cosign's encrypted PEM, PKCS#8, SEC1 and SubjectPublicKeyInfo.

Which hash belongs to a signature follows from the key alone, never from what is being verified.
"""

import base64
import hashlib
import os
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Union

from modelpack.errors import InvalidContentError, InvalidInputError, InvalidKeyError, InvalidSignatureError
from modelpack.oci import strict_json
from modelpack.signing.kdf import check_kdf
from modelpack.signing.strict_base64 import decode_base64

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.hashes import HashAlgorithm

MAX_KEY_SIZE = 64 << 10
RSA_BITS = range(2048, 8193)

# What cosign writes (the first) and used to write (the second).
_SEALED_LABELS = ("ENCRYPTED SIGSTORE PRIVATE KEY", "ENCRYPTED COSIGN PRIVATE KEY")
_PKCS8_LABEL = "ENCRYPTED PRIVATE KEY"
_PEM = re.compile(rb"\s*-----BEGIN ([A-Z0-9 ]+)-----\s(.*?)-----END \1-----\s*", re.DOTALL)

# The parameters of scrypt that cosign itself accepts. Anything else could be a file made to exhaust memory.
_SCRYPT_N = (32768, 65536, 131072)
_SCRYPT_R = 8
_SCRYPT_P = 1
_WRITTEN_N = 65536

_Public = Union["ec.EllipticCurvePublicKey", "rsa.RSAPublicKey", "ed25519.Ed25519PublicKey"]


class TokenKey(Protocol):
    """A key that never leaves its token: it signs as PrivateKey.sign wants it, and shows nothing of itself."""

    def sign(self, data: bytes, /) -> bytes: ...


_Private = Union["ec.EllipticCurvePrivateKey", "rsa.RSAPrivateKey", "ed25519.Ed25519PrivateKey", TokenKey]


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that modelpack verifies with: ECDSA P-256, P-384, P-521, RSA of 2048 to 8192 bits, Ed25519.

    Two are equal when their SubjectPublicKeyInfo is, however their files were spelled.
    """

    spki: bytes
    """DER SubjectPublicKeyInfo, as ``cryptography`` spells it."""
    _key: _Public = field(repr=False, compare=False)

    @classmethod
    def load(cls, pem: bytes) -> "PublicKey":
        """Read a PEM ``PUBLIC KEY``. Raises InvalidKeyError."""
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        label = _label(pem)
        if label.endswith("PRIVATE KEY"):
            raise InvalidKeyError("this is a private key; a public key is wanted (PEM 'PUBLIC KEY')")
        if label != "PUBLIC KEY":
            raise InvalidKeyError(f"not a public key: PEM holds {label!r}, wanted 'PUBLIC KEY'")
        try:
            key = load_pem_public_key(pem)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise InvalidKeyError(f"public key cannot be read: {_first_line(error)}") from error
        return cls._of(key)

    @classmethod
    def _of(cls, key: object) -> "PublicKey":
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        supported = _supported(key)
        return cls(supported.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo), supported)

    @property
    def id(self) -> str:
        """``SHA256:<base64 of the SubjectPublicKeyInfo's sha256>``: what people compare."""
        return f"SHA256:{self.hint}"

    @property
    def hint(self) -> str:
        """How a sigstore bundle names the key (the ``hint`` of cosign 3)."""
        return base64.b64encode(hashlib.sha256(self.spki).digest()).decode()

    @property
    def pem(self) -> bytes:
        body = base64.b64encode(self.spki).decode()
        return _pem("PUBLIC KEY", body)

    @property
    def kind(self) -> str:
        """For a person: ``ECDSA P-256``, ``RSA 3072``, ``Ed25519``."""
        from cryptography.hazmat.primitives.asymmetric import ec, rsa

        if isinstance(self._key, ec.EllipticCurvePublicKey):
            return f"ECDSA P-{self._key.key_size}"
        return f"RSA {self._key.key_size}" if isinstance(self._key, rsa.RSAPublicKey) else "Ed25519"

    def verify(self, signature: bytes, data: bytes) -> None:
        """Return when ``signature`` is this key's over ``data``; raises InvalidSignatureError.

        ECDSA signatures are ASN.1 DER; RSA is PKCS #1 v1.5 with SHA-256; Ed25519 is pure. P-384 and P-521 may come
        with their own hash (cosign 3) or with SHA-256 (cosign 2, skopeo).
        """
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

        if isinstance(self._key, ec.EllipticCurvePublicKey):
            own: dict[int, HashAlgorithm] = {384: hashes.SHA384(), 521: hashes.SHA512()}
            algorithms = [hashes.SHA256(), *([own[self._key.key_size]] if self._key.key_size in own else [])]
            for algorithm in algorithms:
                with suppress(InvalidSignature):
                    return self._key.verify(signature, data, ec.ECDSA(algorithm))
        else:
            with suppress(InvalidSignature):
                if isinstance(self._key, rsa.RSAPublicKey):
                    return self._key.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
                return self._key.verify(signature, data)
            if _is_ed25519ph(self._key, signature, data):
                raise InvalidSignatureError(
                    "signed with Ed25519ph (pre-hashed), which is not accepted; sign with ECDSA P-256"
                )
        raise InvalidSignatureError(f"not a signature by {self.id}")


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """A key that signs. Never printed: its representation shows the public half only."""

    public: PublicKey
    _key: _Private = field(repr=False, compare=False)

    @classmethod
    def generate(cls) -> "PrivateKey":
        """A new ECDSA P-256 key: the one kind that every verifier of the ecosystem agrees on."""
        from cryptography.hazmat.primitives.asymmetric import ec

        return cls._of(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def load(cls, pem: bytes, password: bytes | None = None) -> "PrivateKey":
        """Read cosign's encrypted key file, PKCS#8, SEC1 or PKCS#1 PEM, encrypted or not.

        Raises InvalidKeyError, which tells a missing or wrong password from a malformed file.
        """
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.serialization import load_der_private_key, load_pem_private_key

        label = _label(pem)
        encrypted = is_encrypted(pem)
        if not label.endswith("PRIVATE KEY"):
            raise InvalidKeyError(f"not a private key: PEM holds {label!r}")
        if encrypted and password is None:
            raise InvalidKeyError("private key is encrypted: its password is needed")
        try:
            if label in _SEALED_LABELS:
                return cls._of(load_der_private_key(_open_sealed(pem, password or b""), None))
            if label == _PKCS8_LABEL:
                check_kdf(decode_base64(b"".join(_body(pem).split()), what="encrypted private key"))
            return cls._of(load_pem_private_key(pem, password if encrypted else None))
        except InvalidContentError as error:
            raise InvalidKeyError(str(error)) from error
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            wrong = "the password is wrong, or " if encrypted else ""
            raise InvalidKeyError(f"private key cannot be read: {wrong}{_first_line(error)}") from error

    @classmethod
    def on_token(cls, public_der: bytes, key: TokenKey) -> "PrivateKey":
        """A key that stays where it is; ``public_der`` is its SubjectPublicKeyInfo. Raises InvalidKeyError."""
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.serialization import load_der_public_key

        try:
            return cls(PublicKey._of(load_der_public_key(public_der)), key)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise InvalidKeyError(f"the token's public key cannot be read: {_first_line(error)}") from error

    @classmethod
    def _of(cls, key: object) -> "PrivateKey":
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

        if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey):
            raise InvalidKeyError(f"unsupported kind of key: {type(key).__name__}")
        return cls(PublicKey._of(key.public_key()), key)

    def sign(self, data: bytes) -> bytes:
        """Sign ``data``: ECDSA of every curve and RSA over SHA-256, which all verifiers accept; Ed25519 pure.

        The same key signs the same data with the same bytes (RFC 6979), unless it lies on a token.
        """
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

        if isinstance(self._key, ec.EllipticCurvePrivateKey):
            try:
                algorithm = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
            except UnsupportedAlgorithm:  # OpenSSL before 3.2; the wheels of cryptography bring a newer one
                algorithm = ec.ECDSA(hashes.SHA256())
            return self._key.sign(data, algorithm)
        if isinstance(self._key, rsa.RSAPrivateKey):
            return self._key.sign(data, padding.PKCS1v15(), hashes.SHA256())
        return self._key.sign(data)

    def pkcs8(self) -> bytes:
        """The key in the clear, as PKCS#8 DER. Raises InvalidKeyError for one that lies on a token."""
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        if not isinstance(self._key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey):
            raise InvalidKeyError("the key lies on a token, which does not give it away")
        return self._key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def is_private(pem: bytes) -> bool:
    """Whether a key file holds a private key. Raises InvalidKeyError for what is no key file."""
    return _label(pem).endswith("PRIVATE KEY")


def file_format(pem: bytes) -> str:
    """For a person: the form that a key file has. Raises InvalidKeyError."""
    label = _label(pem)
    names = {
        **dict.fromkeys(_SEALED_LABELS, "cosign"),
        _PKCS8_LABEL: "PKCS#8",
        "PRIVATE KEY": "PKCS#8",
        "EC PRIVATE KEY": "SEC1",
        "RSA PRIVATE KEY": "PKCS#1",
        "PUBLIC KEY": "SubjectPublicKeyInfo",
    }
    return names.get(label, label)


def is_encrypted(pem: bytes) -> bool:
    """Whether a private key file needs a password (which may be the empty one). Raises InvalidKeyError."""
    return _label(pem).startswith("ENCRYPTED ") or b"Proc-Type: 4,ENCRYPTED" in pem


def encrypt_private(key: PrivateKey, password: bytes) -> bytes:
    """Cosign's own key file: scrypt and NaCl's secretbox over PKCS#8, in a PEM of 64 columns.

    https://github.com/sigstore/cosign/blob/main/pkg/cosign/keys.go and secure-systems-lab's encrypted package.
    """
    from nacl.secret import SecretBox

    salt = os.urandom(32)
    nonce = os.urandom(SecretBox.NONCE_SIZE)
    sealed = SecretBox(_scrypt(password, salt, _WRITTEN_N)).encrypt(key.pkcs8(), nonce).ciphertext
    document = {
        "kdf": {
            "name": "scrypt",
            "params": {"N": _WRITTEN_N, "r": _SCRYPT_R, "p": _SCRYPT_P},
            "salt": base64.b64encode(salt).decode(),
        },
        "cipher": {"name": "nacl/secretbox", "nonce": base64.b64encode(nonce).decode()},
        "ciphertext": base64.b64encode(sealed).decode(),
    }
    return _pem(_SEALED_LABELS[0], base64.b64encode(strict_json.canonical(document)).decode())


def write_key_pair(prefix: Path, key: PrivateKey, password: bytes) -> tuple[Path, Path]:
    """Write ``<prefix>.key`` (encrypted, mode 0600) and ``<prefix>.pub``; returns both paths.

    Raises InvalidInputError where either exists: a key is never overwritten.
    """
    private, public = (prefix.with_name(prefix.name + suffix) for suffix in (".key", ".pub"))
    for path in (private, public):
        if path.exists() or path.is_symlink():
            raise InvalidInputError(f"{path} exists already; a key is never overwritten")
    private.parent.mkdir(parents=True, exist_ok=True)
    _create(private, encrypt_private(key, password), 0o600)
    try:
        _create(public, key.public.pem, 0o644)
    except BaseException:
        private.unlink()
        raise
    return private, public


def _create(path: Path, content: bytes, mode: int) -> None:
    # O_EXCL follows no symbolic link, so nothing prepared at this path can redirect the key.
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError as error:
        raise InvalidInputError(f"{path} exists already; a key is never overwritten") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink()
        raise


def _open_sealed(pem: bytes, password: bytes) -> bytes:
    from nacl.exceptions import CryptoError
    from nacl.secret import SecretBox

    what = "encrypted private key"
    try:
        document = strict_json.parse_object(decode_base64(b"".join(_body(pem).split()), what=what), what=what)
        kdf, cipher = document["kdf"], document["cipher"]
        parameters = kdf["params"]
        chosen = (kdf["name"], parameters["N"], parameters["r"], parameters["p"], cipher["name"])
        salt = decode_base64(kdf["salt"], what="salt")
        nonce = decode_base64(cipher["nonce"], what="nonce")
        sealed = decode_base64(document["ciphertext"], what="ciphertext")
    except InvalidContentError as error:
        raise InvalidKeyError(str(error)) from error
    except (KeyError, TypeError) as error:
        raise InvalidKeyError(f"{what} lacks a field: {error}") from error
    if chosen not in [("scrypt", n, _SCRYPT_R, _SCRYPT_P, "nacl/secretbox") for n in _SCRYPT_N]:
        raise InvalidKeyError(
            f"{what} wants {chosen!r:.120}; only scrypt with N of {_SCRYPT_N}, r=8, p=1 and nacl/secretbox is opened"
        )
    if len(nonce) != SecretBox.NONCE_SIZE or not 8 <= len(salt) <= 64:
        raise InvalidKeyError(f"{what} has a salt or nonce of the wrong length")
    try:
        return SecretBox(_scrypt(password, salt, chosen[1])).decrypt(sealed, nonce)
    except CryptoError as error:
        raise InvalidKeyError("private key cannot be opened: the password is wrong, or the file damaged") from error


def _scrypt(password: bytes, salt: bytes, n: int) -> bytes:
    # 128 * N * r bytes, and some more for OpenSSL's own account.
    memory = 128 * n * _SCRYPT_R + (1 << 20)
    return hashlib.scrypt(password, salt=salt, n=n, r=_SCRYPT_R, p=_SCRYPT_P, dklen=32, maxmem=memory)


def _supported(key: object) -> _Public:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    if isinstance(key, ec.EllipticCurvePublicKey):
        if not isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1 | ec.SECP521R1):
            raise InvalidKeyError(f"unsupported curve: {key.curve.name}; P-256, P-384 and P-521 are")
        return key
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size not in RSA_BITS:
            raise InvalidKeyError(
                f"RSA key of {key.key_size} bits; {RSA_BITS.start} to {RSA_BITS.stop - 1} are accepted"
            )
        if key.public_numbers().e % 2 == 0 or key.public_numbers().e < 3:
            raise InvalidKeyError("RSA key with an even or tiny exponent")
        return key
    raise InvalidKeyError(f"unsupported kind of key: {type(key).__name__}")


def _is_ed25519ph(key: "ed25519.Ed25519PublicKey | rsa.RSAPublicKey", signature: bytes, data: bytes) -> bool:
    """Whether the signature would hold pre-hashed (RFC 8032, 5.1): cosign 3 signs bundles with Ed25519 so."""
    from cryptography.hazmat.primitives.asymmetric import ed25519
    from nacl import bindings
    from nacl.exceptions import BadSignatureError

    if not isinstance(key, ed25519.Ed25519PublicKey) or len(signature) != 64:
        return False
    state = bindings.crypto_sign_ed25519ph_state()
    bindings.crypto_sign_ed25519ph_update(state, data)
    with suppress(BadSignatureError):
        return bindings.crypto_sign_ed25519ph_final_verify(state, signature, key.public_bytes_raw())
    return False


def _label(pem: bytes) -> str:
    if len(pem) > MAX_KEY_SIZE:
        raise InvalidKeyError(f"key file has {len(pem)} bytes, more than {MAX_KEY_SIZE}")
    match = _PEM.fullmatch(pem)
    if not match:
        raise InvalidKeyError("not a key file: one PEM block is wanted, and nothing else")
    return match[1].decode()


def _body(pem: bytes) -> bytes:
    match = _PEM.fullmatch(pem)
    return match[2] if match else b""


def _pem(label: str, body: str) -> bytes:
    lines = [body[start : start + 64] for start in range(0, len(body), 64)]
    return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""]).encode()


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:120]
