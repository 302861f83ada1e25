"""What it costs to open an encrypted PKCS#8 file, read from the file before any of it is done.

RFC 5958 (EncryptedPrivateKeyInfo), RFC 8018 (PBES2, PBKDF2), RFC 7914 (scrypt), RFC 7292 appendix C (PKCS #12). Whoever
writes a key file chooses these numbers, and could choose them to take a machine for days or all of its memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from modelpack.errors import InvalidKeyError

MAX_ITERATIONS = 5_000_000
"""Of PBKDF2: some seconds. OpenSSL writes 2,048, OWASP asks for 600,000."""
MAX_SCRYPT_MEMORY = 256 << 20
MAX_SCRYPT_WORK = 1 << 22
"""N * r * p: four times what the costliest of cosign's own key files takes."""

_SEQUENCE, _INTEGER, _OCTETS, _OID = 0x30, 0x02, 0x04, 0x06
_PBES2 = "1.2.840.113549.1.5.13"
_PBKDF2 = "1.2.840.113549.1.5.12"
_SCRYPT = "1.3.6.1.4.1.11591.4.11"
_PKCS12 = "1.2.840.113549.1.12.1."


@dataclass(frozen=True, slots=True)
class _Value:
    tag: int
    content: bytes


def check_kdf(der: bytes) -> None:
    """Raises InvalidKeyError when deriving the key would cost too much, or by a scheme that nobody bounded."""
    algorithm, _ = _members(_first(der, _SEQUENCE), 2)
    scheme, parameters = _members(algorithm, 2)
    name = _oid(scheme)
    if name.startswith(_PKCS12):
        _check_iterations(_members(parameters, 2)[1])
        return
    if name != _PBES2:
        raise InvalidKeyError(f"private key is encrypted by a scheme that is not opened: {name:.80}")
    function, _ = _members(parameters, 2)
    kind, numbers = _members(function, 2)
    if _oid(kind) == _PBKDF2:
        _check_iterations(_members(numbers, 2)[1])
    elif _oid(kind) == _SCRYPT:
        n, r, p = (_number(value) for value in _members(numbers, 4)[1:4])
        if 128 * n * r > MAX_SCRYPT_MEMORY or n * r * p > MAX_SCRYPT_WORK:
            raise InvalidKeyError(f"private key wants scrypt with N={n:.4g}, r={r:.4g}, p={p:.4g}: too much to open it")
    else:
        raise InvalidKeyError(f"private key derives its key by a function that is not known: {_oid(kind):.80}")


def _check_iterations(value: _Value) -> None:
    iterations = _number(value)
    if iterations > MAX_ITERATIONS:
        raise InvalidKeyError(f"private key wants {iterations:.4g} rounds of its KDF, more than {MAX_ITERATIONS}")


# Just enough of DER (X.690) for the above: definite lengths, tags of one byte, nothing recursive.


def _values(content: bytes) -> Iterator[_Value]:
    position = 0
    while position < len(content):
        tag, length, position = content[position], content[position + 1 : position + 2], position + 2
        if not length:
            raise InvalidKeyError("private key is not DER: it ends too early")
        size = length[0]
        if size >= 0x80:
            digits = size & 0x7F
            size = int.from_bytes(content[position : position + digits], "big")
            position += digits
        value = content[position : position + size]
        if len(value) != size:
            raise InvalidKeyError("private key is not DER: it ends too early")
        yield _Value(tag, value)
        position += size


def _first(content: bytes, tag: int) -> _Value:
    value = next(_values(content), None)
    if value is None or value.tag != tag:
        raise InvalidKeyError("private key is not an encrypted PKCS#8 key")
    return value


def _members(value: _Value, count: int) -> list[_Value]:
    """The first ``count`` members of a sequence."""
    members = list(_values(value.content)) if value.tag == _SEQUENCE else []
    if len(members) < count:
        raise InvalidKeyError("private key is not an encrypted PKCS#8 key")
    return members[:count]


def _number(value: _Value) -> int:
    if value.tag != _INTEGER or not 0 < len(value.content) <= 16:
        raise InvalidKeyError("private key has a KDF without proper numbers")
    return int.from_bytes(value.content, "big", signed=True)


def _oid(value: _Value) -> str:
    if value.tag != _OID or not 0 < len(value.content) <= 32:
        raise InvalidKeyError("private key names no algorithm")
    arcs, number = [], 0
    for byte in value.content:
        number = number << 7 | byte & 0x7F
        if byte < 0x80:
            arcs.append(number)
            number = 0
    if not arcs:
        raise InvalidKeyError("private key names no algorithm")
    return ".".join(map(str, (min(arcs[0] // 40, 2), arcs[0] - 40 * min(arcs[0] // 40, 2), *arcs[1:])))
