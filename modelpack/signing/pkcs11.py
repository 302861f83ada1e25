"""Keys on a PKCS#11 token (smart card, YubiKey, HSM), named by a URI of RFC 7512. The only door to python-pkcs11.

``pkcs11:token=release;object=signing?module-path=/usr/lib/softhsm/libsofthsm2.so``: what is left out matches anything,
but only one key may be left. The private key never leaves the token.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any
from urllib.parse import unquote_to_bytes

from modelpack.errors import InvalidKeyError, NotFoundError, UnsupportedError
from modelpack.signing.keys import PrivateKey

SCHEME = "pkcs11:"
_NAMES_A_KEY = ("token", "serial", "object", "id", "type")


@dataclass(frozen=True, slots=True)
class KeyAddress:
    """Where a key lies: the PKCS#11 library to load, and what to look for in it."""

    module: str
    token: str | None = None
    serial: bytes | None = None
    label: str | None = None
    id: bytes | None = None

    @classmethod
    def parse(cls, uri: str, *, module: str | None = None) -> "KeyAddress":
        """``module`` is the library where the URI names none. Raises InvalidKeyError."""
        path, _, query = uri.removeprefix(SCHEME).partition("?")
        names, options = _attributes(path, ";"), _attributes(query, "&")
        if {"pin-value", "pin-source"} & options.keys():
            raise InvalidKeyError("a PIN does not belong into a URI: --password-file, MODELPACK_PASSWORD or a prompt")
        for unknown in (*(names.keys() - set(_NAMES_A_KEY)), *(options.keys() - {"module-path"})):
            raise InvalidKeyError(f"the key's URI has an attribute that is not known: {unknown!r:.80}")
        if names.get("type", b"private") != b"private":
            raise InvalidKeyError("the key's URI does not name a private key")
        try:
            library = options["module-path"].decode() if "module-path" in options else module
            token, label = (names[name].decode() if name in names else None for name in ("token", "object"))
        except UnicodeDecodeError as error:
            raise InvalidKeyError("the key's URI is not UTF-8") from error
        if not library:
            raise InvalidKeyError("the key's URI names no library: add ?module-path=/usr/lib/..., or set one")
        return cls(library, token, names.get("serial"), label, names.get("id"))


def open_key(address: KeyAddress, pin: bytes) -> PrivateKey:
    """Log in to the token and find the key; the session lasts as long as the key that is returned.

    Raises UnsupportedError without the extra ``pkcs11``, NotFoundError where nothing is found, InvalidKeyError where
    the PIN is wrong, several keys are meant, or the key is of a kind that is not used.
    """
    try:
        import pkcs11
        from pkcs11 import exceptions
    except ImportError as error:
        raise UnsupportedError("keys on tokens need the extra: pip install 'modelpack-oci[pkcs11]'") from error
    try:
        tokens = pkcs11.lib(address.module).get_tokens(token_label=address.token, token_serial=address.serial)
        token = _only(list(tokens), f"token {address.token or ''}".strip())
        try:
            session = token.open(user_pin=pin.decode())
        except exceptions.UserAlreadyLoggedIn:  # a login is the process's, not the session's
            session = token.open()
        return _find_key(session, address)
    except (exceptions.PinIncorrect, exceptions.PinInvalid, exceptions.PinLenRange, UnicodeDecodeError) as error:
        raise InvalidKeyError("the PIN of the token is wrong") from error
    except exceptions.PKCS11Error as error:
        reason = str(error) or type(error).__name__
        raise InvalidKeyError(f"the token cannot be used: {reason:.200}") from error


def _find_key(session: Any, address: KeyAddress) -> PrivateKey:
    from pkcs11 import Attribute, KeyType, ObjectClass
    from pkcs11.util import ec, rsa

    named = {Attribute.LABEL: address.label, Attribute.ID: address.id}
    criteria = {attribute: value for attribute, value in named.items() if value is not None}
    private = _only(list(session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY, **criteria})), "private key")
    # The two halves of a pair share their CKA_ID (PKCS #11, section 4.4).
    half = {Attribute.CLASS: ObjectClass.PUBLIC_KEY, Attribute.ID: private.id}
    public = _only(list(session.get_objects(half)), "public key of the same id")
    if private.key_type is KeyType.EC:
        return PrivateKey.on_token(ec.encode_ec_public_key(public), _EllipticCurveKey(private))
    if private.key_type is KeyType.RSA:
        # PKCS#1 in DER, which cryptography reads as well as a SubjectPublicKeyInfo.
        return PrivateKey.on_token(rsa.encode_rsa_public_key(public), _RSAKey(private))
    raise InvalidKeyError(f"the token's key is of the kind {private.key_type.name}; EC and RSA are used")


@dataclass(frozen=True, slots=True)
class _EllipticCurveKey:
    _key: Any

    def sign(self, data: bytes, /) -> bytes:
        import pkcs11

        # Tokens that hash by themselves are rarer than tokens that sign a digest.
        raw = self._key.sign(sha256(data).digest(), mechanism=pkcs11.Mechanism.ECDSA)
        return pkcs11.util.ec.encode_ecdsa_signature(raw)


@dataclass(frozen=True, slots=True)
class _RSAKey:
    _key: Any

    def sign(self, data: bytes, /) -> bytes:
        import pkcs11

        return bytes(self._key.sign(data, mechanism=pkcs11.Mechanism.SHA256_RSA_PKCS))


def _only(found: list[Any], what: str) -> Any:
    if not found:
        raise NotFoundError(f"there is no {what} where the key's URI points")
    if len(found) > 1:
        raise InvalidKeyError(f"the key's URI means {len(found)} things where one {what} is wanted: name it closer")
    return found[0]


def _attributes(text: str, separator: str) -> Mapping[str, bytes]:
    attributes: dict[str, bytes] = {}
    for part in filter(None, text.split(separator)):
        name, equals, value = part.partition("=")
        if not equals or name in attributes:
            raise InvalidKeyError(f"the key's URI has a malformed or repeated attribute: {name!r:.80}")
        attributes[name] = unquote_to_bytes(value.encode("utf-8", "surrogateescape"))
    return attributes
