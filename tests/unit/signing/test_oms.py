"""model.sig: what it says, and that it says nothing new when it is made again."""

import base64
import hashlib
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from modelpack.errors import InvalidInputError
from modelpack.oci.digest import Digest
from modelpack.signing.envelope import pre_authentication_encoding
from modelpack.signing.keys import PrivateKey
from modelpack.signing.oms import PREDICATE_TYPE, sign_files

FILES = {"m-Q8_0.gguf": Digest.of(b"weights"), "LICENSE": Digest.of(b"licence")}


def opened(raw):
    document = json.loads(raw)
    return document, json.loads(base64.b64decode(document["dsseEnvelope"]["payload"]))


def test_it_lists_every_file_in_order_and_one_digest_over_all_of_them():
    _, statement = opened(sign_files("tiny", FILES, PrivateKey.generate()))

    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == PREDICATE_TYPE
    assert [one["name"] for one in statement["predicate"]["resources"]] == ["LICENSE", "m-Q8_0.gguf"]
    both = hashlib.sha256(b"licence").digest() + hashlib.sha256(b"weights").digest()
    assert [(one["name"], one["digest"]) for one in statement["subject"]] == [
        ("tiny", {"sha256": hashlib.sha256(both).hexdigest()})
    ]
    assert statement["predicate"]["serialization"]["ignore_paths"] == ["model.sig"]


def test_the_signature_is_over_the_envelope_and_the_hint_is_of_the_pem():
    key = PrivateKey.generate()
    document, _ = opened(sign_files("tiny", FILES, key))

    envelope = document["dsseEnvelope"]
    signed = pre_authentication_encoding(envelope["payloadType"], base64.b64decode(envelope["payload"]))
    key.public.verify(base64.b64decode(envelope["signatures"][0]["sig"]), signed)
    assert document["verificationMaterial"] == {
        "publicKey": {"hint": hashlib.sha256(key.public.pem).hexdigest()},
        "tlogEntries": [],
    }


def test_the_same_files_and_key_give_the_same_bytes():
    key = PrivateKey.generate()

    assert sign_files("tiny", FILES, key) == sign_files("tiny", dict(reversed(FILES.items())), key)
    assert sign_files("tiny", FILES, key) != sign_files("tiny", FILES, PrivateKey.generate())


def test_a_key_of_another_curve_is_refused():
    pem = ec.generate_private_key(ec.SECP384R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    with pytest.raises(InvalidInputError, match=r"this one is ECDSA P-384"):
        sign_files("tiny", FILES, PrivateKey.load(pem))
