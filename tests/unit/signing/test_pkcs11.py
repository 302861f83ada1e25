"""Keys on tokens: SoftHSM stands in for a smart card."""

import os
import subprocess
from pathlib import Path

import pytest

from modelpack.errors import InvalidKeyError, InvalidSignatureError, NotFoundError
from modelpack.signing.pkcs11 import KeyAddress, open_key

SOFTHSM = Path("/usr/lib/softhsm/libsofthsm2.so")
PIN = "1234-canary"


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("pkcs11:?module-path=/l.so", KeyAddress("/l.so")),
        ("pkcs11:token=my%20token;object=k?module-path=/l.so", KeyAddress("/l.so", "my token", label="k")),
        ("pkcs11:id=%01%ff;serial=ab;type=private", KeyAddress("/default.so", serial=b"ab", id=b"\x01\xff")),
    ],
)
def test_a_uri_names_a_key(uri, address):
    assert KeyAddress.parse(uri, module="/default.so") == address


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("pkcs11:token=a", "names no library"),
        ("pkcs11:token=a?module-path=/l&pin-value=1234", "does not belong into a URI"),
        ("pkcs11:token=a?module-path=/l&pin-source=/etc/pin", "does not belong into a URI"),
        ("pkcs11:colour=red?module-path=/l", "not known: 'colour'"),
        ("pkcs11:token=a;token=b?module-path=/l", "repeated"),
        ("pkcs11:token?module-path=/l", "malformed"),
        ("pkcs11:token=%ff?module-path=/l", "not UTF-8"),
        ("pkcs11:type=public?module-path=/l", "not name a private key"),
    ],
)
def test_a_uri_that_means_nothing_or_too_much_is_refused(uri, said):
    with pytest.raises(InvalidKeyError, match=said) as caught:
        KeyAddress.parse(uri)
    assert "1234" not in str(caught.value)


@pytest.fixture(scope="module")
def token(tmp_path_factory):
    """A token ``release`` with a P-256 key ``signing`` and an RSA key ``rsa``; the environment that finds it."""
    if not SOFTHSM.exists():
        pytest.skip("SoftHSM (Debian: softhsm2) is not installed")
    pkcs11 = pytest.importorskip("pkcs11", reason="the extra pkcs11 is not installed")
    home = tmp_path_factory.mktemp("softhsm")
    (home / "tokens").mkdir()
    (home / "softhsm2.conf").write_text(f"directories.tokendir = {home}/tokens\nlog.level = ERROR\n")
    # SoftHSM reads it once, when its library is loaded into this process.
    os.environ["SOFTHSM2_CONF"] = str(home / "softhsm2.conf")
    init = ["softhsm2-util", "--init-token", "--free", "--label", "release", "--pin", PIN, "--so-pin", "5678"]
    subprocess.run(init, check=True, capture_output=True)
    curve = pkcs11.util.ec.encode_named_curve_parameters("secp256r1")
    with pkcs11.lib(str(SOFTHSM)).get_token(token_label="release").open(rw=True, user_pin=PIN) as session:
        parameters = session.create_domain_parameters(
            pkcs11.KeyType.EC, {pkcs11.Attribute.EC_PARAMS: curve}, local=True
        )
        parameters.generate_keypair(store=True, id=b"\x01", label="signing")
        session.generate_keypair(pkcs11.KeyType.RSA, 2048, store=True, id=b"\x02", label="rsa")
    return {"SOFTHSM2_CONF": os.environ.pop("SOFTHSM2_CONF")}


def address(**named):
    return KeyAddress(str(SOFTHSM), "release", **named)


@pytest.mark.parametrize(("label", "kind"), [("signing", "ECDSA P-256"), ("rsa", "RSA 2048")])
def test_a_key_on_a_token_signs_and_stays_there(token, label, kind):
    key = open_key(address(label=label), PIN.encode())

    assert key.public.kind == kind
    key.public.verify(key.sign(b"content"), b"content")
    with pytest.raises(InvalidSignatureError):
        key.public.verify(key.sign(b"content"), b"other")
    with pytest.raises(InvalidKeyError, match="lies on a token"):
        key.pkcs8()
    assert PIN not in repr(key)


def test_one_key_must_be_meant(token):
    assert open_key(address(id=b"\x01"), PIN.encode()).public.kind == "ECDSA P-256"
    with pytest.raises(InvalidKeyError, match="means 2 things"):
        open_key(address(), PIN.encode())
    with pytest.raises(NotFoundError, match="no private key"):
        open_key(address(label="other"), PIN.encode())
    with pytest.raises(NotFoundError, match="no token nowhere"):
        open_key(KeyAddress(str(SOFTHSM), "nowhere"), PIN.encode())


def test_a_library_that_is_not_there_is_told():
    pytest.importorskip("pkcs11", reason="the extra pkcs11 is not installed")
    with pytest.raises(InvalidKeyError, match="cannot be used"):
        open_key(KeyAddress("/nowhere/lib.so"), b"")


def test_sign_with_a_token_through_the_command_line(token, modelpack, tmp_path):
    from fakes.artifacts import put_cncf_model

    from modelpack.store import Store

    put_cncf_model(Store.open(tmp_path / "store"), "demo/tiny:v1", b"weights")
    uri = f"pkcs11:token=release;object=signing?module-path={SOFTHSM}"

    wrong = modelpack("key", "info", uri, env={**token, "MODELPACK_PASSWORD": "9999"})
    assert wrong.code == 2
    assert "PIN of the token is wrong" in wrong.stderr

    env = {**token, "MODELPACK_PASSWORD": PIN}
    shown = modelpack("key", "info", uri, "--json", env=env).json("key-info")
    assert (shown["format"], shown["kind"]) == ("PKCS#11", "ECDSA P-256")
    signed = modelpack("sign", "demo/tiny:v1", "--key", uri, "--store", tmp_path / "store", "--json", "-v", env=env)
    assert signed.code == 0, signed.stderr
    assert signed.json("sign")["key_id"] == shown["id"]
    assert PIN not in signed.stdout + signed.stderr + wrong.stderr
