"""What a PKCS#8 file may ask for before anything is derived from it."""

import base64
import shutil
import subprocess
import time

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from modelpack.errors import InvalidKeyError
from modelpack.signing.kdf import MAX_ITERATIONS, check_kdf
from modelpack.signing.keys import PrivateKey

# DER by hand: small lengths only.
PBES2 = "06092a864886f70d01050d"
PBKDF2 = "06092a864886f70d01050c"
SCRYPT = "06092b06010401da47040b"
AES = "301d060960864801650304012a0410" + "00" * 16


def sequence(*parts: str) -> str:
    body = "".join(parts)
    size = len(body) // 2
    return f"30{size:02x}{body}" if size < 128 else f"3081{size:02x}{body}"


def integer(number: int) -> str:
    content = number.to_bytes(number.bit_length() // 8 + 1, "big").hex()
    return f"02{len(content) // 2:02x}{content}"


def encrypted(function: str, scheme: str = PBES2) -> bytes:
    algorithm = sequence(scheme, sequence(function, AES))
    return bytes.fromhex(sequence(algorithm, "0410" + "00" * 16))


def pbkdf2(iterations: int) -> bytes:
    return encrypted(sequence(PBKDF2, sequence("0408" + "00" * 8, integer(iterations))))


def scrypt(n: int, r: int, p: int) -> bytes:
    return encrypted(sequence(SCRYPT, sequence("0408" + "00" * 8, integer(n), integer(r), integer(p))))


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
@pytest.mark.parametrize("options", [("-iter", "600000"), ("-scrypt",), ("-v1", "PBE-SHA1-3DES")])
def test_what_openssl_writes_is_opened(tmp_path, options):
    key = PrivateKey.generate()
    (tmp_path / "plain.der").write_bytes(key.pkcs8())
    command = ["openssl", "pkcs8", "-topk8", "-inform", "DER", "-in", tmp_path / "plain.der", "-passout", "pass:secret"]
    made = subprocess.run([*command, *options], capture_output=True, check=True)

    assert PrivateKey.load(made.stdout, b"secret").public == key.public


def test_what_cryptography_writes_is_opened():
    private = ec.generate_private_key(ec.SECP256R1())
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))

    assert PrivateKey.load(pem, b"secret").public.kind == "ECDSA P-256"


def test_the_bound_is_the_number_in_the_file():
    check_kdf(pbkdf2(MAX_ITERATIONS))
    check_kdf(scrypt(131072, 8, 1))
    for der in (
        pbkdf2(MAX_ITERATIONS + 1),
        pbkdf2(2**100),
        scrypt(2**20, 8, 32),
        scrypt(2**30, 8, 1),
        scrypt(2, 2**60, 1),
    ):
        with pytest.raises(InvalidKeyError, match="wants"):
            check_kdf(der)


def test_attack_22_a_pkcs8_file_that_asks_for_hours_is_refused_at_once():
    body = base64.encodebytes(pbkdf2(2**31 - 1)).decode()
    pem = f"-----BEGIN ENCRYPTED PRIVATE KEY-----\n{body}-----END ENCRYPTED PRIVATE KEY-----\n"
    began = time.monotonic()

    with pytest.raises(InvalidKeyError, match="rounds of its KDF"):
        PrivateKey.load(pem.encode(), b"secret")

    assert time.monotonic() - began < 0.5


@pytest.mark.parametrize(
    "content", [b"", b"\x30", b"\x30\x80", b"\x30\x84\xff\xff\xff\xff", b"\x02\x01\x00", pbkdf2(1)[:20]]
)
def test_what_is_no_encrypted_pkcs8_is_refused(content):
    with pytest.raises(InvalidKeyError):
        check_kdf(content)


def test_a_scheme_that_nobody_bounded_is_refused():
    with pytest.raises(InvalidKeyError, match=r"not opened: 1\.2\.840\.113549\.1\.5\.3"):
        check_kdf(encrypted(sequence(PBKDF2, ""), scheme="06092a864886f70d010503"))
    with pytest.raises(InvalidKeyError, match="not known"):
        check_kdf(encrypted(sequence("06032a0304", sequence("0401" + "00"))))


def test_the_schemes_of_pkcs12_are_bounded_too():
    scheme = "060a2a864886f70d010c0103"
    ok, costly = (sequence(sequence(scheme, sequence("0408" + "00" * 8, integer(n))), "0400") for n in (2_000, 2**40))

    check_kdf(bytes.fromhex(ok))
    with pytest.raises(InvalidKeyError, match="rounds"):
        check_kdf(bytes.fromhex(costly))
