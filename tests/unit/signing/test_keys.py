"""Keys and their files: ours, cosign's, and those that must not be opened."""

import base64
import json
import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from modelpack.errors import InvalidInputError, InvalidKeyError, InvalidSignatureError
from modelpack.signing.keys import PrivateKey, PublicKey, encrypt_private, is_encrypted, write_key_pair

KEYS = Path(__file__).parents[2] / "data" / "signing" / "keys"


def public_of(private) -> PublicKey:
    return PublicKey.load(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def test_a_generated_key_signs_and_its_public_half_verifies():
    key = PrivateKey.generate()

    signature = key.sign(b"content")

    PublicKey.load(key.public.pem).verify(signature, b"content")
    with pytest.raises(InvalidSignatureError):
        key.public.verify(signature, b"other content")
    assert key.public.kind == "ECDSA P-256"


def test_a_key_file_opens_with_its_password_only():
    key = PrivateKey.generate()
    pem = encrypt_private(key, b"secret")

    assert PrivateKey.load(pem, b"secret").public == key.public
    with pytest.raises(InvalidKeyError, match="password is wrong"):
        PrivateKey.load(pem, b"Secret")
    with pytest.raises(InvalidKeyError, match="password is needed"):
        PrivateKey.load(pem)


def test_the_empty_password_is_a_password():
    key = PrivateKey.generate()

    assert PrivateKey.load(encrypt_private(key, b""), b"").public == key.public


def test_a_key_file_has_the_form_that_cosign_writes():
    lines = encrypt_private(PrivateKey.generate(), b"secret").decode().splitlines()
    theirs = (KEYS / "a.key").read_text().splitlines()

    assert (lines[0], lines[-1], len(lines[1])) == (theirs[0], theirs[-1], len(theirs[1]))
    ours, expected = (json.loads(base64.b64decode("".join(text[1:-1]))) for text in (lines, theirs))
    assert list(ours) == list(expected)
    assert list(ours["kdf"]) == list(expected["kdf"])
    assert ours["kdf"]["params"] == expected["kdf"]["params"]
    assert ours["cipher"]["name"] == expected["cipher"]["name"]
    assert len(base64.b64decode(ours["kdf"]["salt"])) == 32


@pytest.mark.parametrize("name", ["cosign-label-pkcs8", "cosign-label-sec1", "sigstore-label-pkcs8"])
def test_key_files_that_cosign_published_open_with_their_password(name):
    pem = (KEYS / "published" / f"{name}.key").read_bytes()

    key = PrivateKey.load(pem, b"hello")

    key.public.verify(key.sign(b"content"), b"content")
    with pytest.raises(InvalidKeyError):
        PrivateKey.load(pem, b"wrong")


@pytest.mark.parametrize("name", ["cosign-bundle", "cosign-bundle-p384", "cosign-bundle-p521", "cosign-legacy-ed25519"])
def test_key_files_that_cosign_3_made_or_imported_open_with_their_password(name):
    key = PrivateKey.load((KEYS / f"{name}.key").read_bytes(), b"vectors")

    assert key.public == PublicKey.load((KEYS / f"{name}.pub").read_bytes())
    key.public.verify(key.sign(b"content"), b"content")


@pytest.mark.parametrize("name", ["a", "b", "ed", "p384", "rsa"])
def test_key_files_of_the_vectors_are_cosigns_and_refuse_a_wrong_password(name):
    pem = (KEYS / f"{name}.key").read_bytes()

    assert is_encrypted(pem)
    with pytest.raises(InvalidKeyError, match="password is wrong"):
        PrivateKey.load(pem, b"not the password")


@pytest.mark.parametrize("encryption", [NoEncryption(), BestAvailableEncryption(b"secret")])
@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
def test_pkcs8_and_sec1_files_open(form, encryption):
    private = ec.generate_private_key(ec.SECP256R1())
    pem = private.private_bytes(Encoding.PEM, form, encryption)

    key = PrivateKey.load(pem, b"secret")

    assert key.public == public_of(private)
    assert is_encrypted(pem) == isinstance(encryption, BestAvailableEncryption)


def test_attack_22_a_key_file_that_asks_for_a_costly_kdf_is_refused_before_any_work():
    document = json.loads(base64.b64decode("".join((KEYS / "a.key").read_text().splitlines()[1:-1])))
    for params in ({"N": 1 << 30, "r": 8, "p": 1}, {"N": 65536, "r": 1024, "p": 1}, {"N": 65536, "r": 8, "p": 64}):
        document["kdf"]["params"] = params
        body = base64.b64encode(json.dumps(document).encode()).decode()
        pem = f"-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\n{body}\n-----END ENCRYPTED SIGSTORE PRIVATE KEY-----\n"

        with pytest.raises(InvalidKeyError, match="only scrypt with N of"):
            PrivateKey.load(pem.encode(), b"secret")


@pytest.mark.parametrize("value", [{"N": "65536", "r": 8, "p": 1}, {"N": None, "r": 8, "p": 1}, [], None, {}])
def test_a_key_file_with_malformed_parameters_is_refused(value):
    document = json.loads(base64.b64decode("".join((KEYS / "a.key").read_text().splitlines()[1:-1])))
    document["kdf"]["params"] = value
    body = base64.b64encode(json.dumps(document).encode()).decode()
    pem = f"-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\n{body}\n-----END ENCRYPTED SIGSTORE PRIVATE KEY-----\n"

    with pytest.raises(InvalidKeyError):
        PrivateKey.load(pem.encode(), b"secret")


def test_attack_22_a_private_key_is_written_for_its_owner_only_and_never_over_another(tmp_path):
    before = os.umask(0)
    try:
        private, public = write_key_pair(tmp_path / "team.2026", PrivateKey.generate(), b"secret")
    finally:
        os.umask(before)

    assert (private.name, public.name) == ("team.2026.key", "team.2026.pub")
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    content = private.read_bytes()
    with pytest.raises(InvalidInputError, match="exists already"):
        write_key_pair(tmp_path / "team.2026", PrivateKey.generate(), b"secret")
    assert private.read_bytes() == content


def test_a_key_pair_is_not_written_through_a_link_nor_by_half(tmp_path):
    (tmp_path / "linked.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidInputError):
        write_key_pair(tmp_path / "linked", PrivateKey.generate(), b"secret")
    assert not (tmp_path / "elsewhere").exists()

    (tmp_path / "half.pub").write_text("somebody's")
    with pytest.raises(InvalidInputError):
        write_key_pair(tmp_path / "half", PrivateKey.generate(), b"secret")
    assert not (tmp_path / "half.key").exists()


@pytest.mark.parametrize(
    ("curve", "algorithms"),
    [
        (ec.SECP256R1(), [hashes.SHA256()]),
        (ec.SECP384R1(), [hashes.SHA256(), hashes.SHA384()]),
        (ec.SECP521R1(), [hashes.SHA256(), hashes.SHA512()]),
    ],
)
def test_each_curve_verifies_with_its_own_hash_or_sha256_and_no_other(curve, algorithms):
    private = ec.generate_private_key(curve)
    key = public_of(private)

    for algorithm in (hashes.SHA1(), hashes.SHA256(), hashes.SHA384(), hashes.SHA512()):
        signature = private.sign(b"content", ec.ECDSA(algorithm))
        if algorithm.name in [one.name for one in algorithms]:
            key.verify(signature, b"content")
        else:
            with pytest.raises(InvalidSignatureError):
                key.verify(signature, b"content")


def test_rsa_verifies_pkcs1_with_sha256_only():
    private = rsa.generate_private_key(65537, 2048)
    key = public_of(private)

    key.verify(private.sign(b"content", padding.PKCS1v15(), hashes.SHA256()), b"content")
    for scheme, algorithm in (
        (padding.PKCS1v15(), hashes.SHA1()),
        (padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256()),
    ):
        with pytest.raises(InvalidSignatureError):
            key.verify(private.sign(b"content", scheme, algorithm), b"content")


def test_ed25519_is_pure_and_the_prehashed_form_is_named():
    from nacl import bindings

    private = ed25519.Ed25519PrivateKey.generate()
    key = public_of(private)
    key.verify(private.sign(b"content"), b"content")

    state = bindings.crypto_sign_ed25519ph_state()
    bindings.crypto_sign_ed25519ph_update(state, b"content")
    seed = private.private_bytes_raw()
    prehashed = bindings.crypto_sign_ed25519ph_final_create(state, seed + private.public_key().public_bytes_raw())

    with pytest.raises(InvalidSignatureError, match="Ed25519ph"):
        key.verify(prehashed, b"content")
    with pytest.raises(InvalidSignatureError, match="not a signature by"):
        key.verify(b"\0" * 64, b"content")


@pytest.mark.parametrize("kind", ["RSA of 1024 bits", "P-224", "secp256k1", "DSA"])
def test_keys_that_are_too_weak_or_of_an_unknown_kind_are_refused(kind):
    private = {
        "RSA of 1024 bits": lambda: rsa.generate_private_key(65537, 1024),
        "P-224": lambda: ec.generate_private_key(ec.SECP224R1()),
        "secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()),
        "DSA": lambda: dsa.generate_private_key(1024),
    }[kind]()

    with pytest.raises(InvalidKeyError):
        public_of(private)
    with pytest.raises(InvalidKeyError):
        PrivateKey.load(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


@pytest.mark.parametrize(
    "content",
    [b"", b"not a key", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", b"\xff" * 100, b"A" * 70_000],
)
def test_what_is_no_key_is_refused_in_one_sentence(content):
    for load in (PublicKey.load, PrivateKey.load):
        with pytest.raises(InvalidKeyError) as caught:
            load(content)
        assert "\n" not in str(caught.value)


def test_a_private_key_given_for_a_public_one_is_told_apart():
    key = PrivateKey.generate()

    with pytest.raises(InvalidKeyError, match="this is a private key"):
        PublicKey.load(encrypt_private(key, b""))
    with pytest.raises(InvalidKeyError, match="not a private key"):
        PrivateKey.load(key.public.pem)


def test_one_key_has_one_id_however_its_file_spells_it():
    private = ec.generate_private_key(ec.SECP256R1())
    compressed = private.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    header = bytes.fromhex("3039301306072a8648ce3d020106082a8648ce3d030107032200")
    body = base64.b64encode(header + compressed).decode()
    pem = f"-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n".encode()

    assert PublicKey.load(pem) == public_of(private)
    assert PublicKey.load(pem).id == public_of(private).id


def test_the_id_of_a_key_is_the_hint_that_cosign_writes():
    key = PublicKey.load((KEYS / "a.pub").read_bytes())

    assert key.id == "SHA256:swcJY8NedqUG9lAcm2a5GjAty/cRU4xbFvZztd98WCg="


def test_a_private_key_does_not_show_itself():
    key = PrivateKey.generate()

    assert key.pkcs8().hex() not in repr(key)
    assert "_key" not in repr(key)
