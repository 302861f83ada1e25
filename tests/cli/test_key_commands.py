"""Keys as a person handles them: what one is, whether it lies safely, and signatures in a file of their own."""

import json

import pytest
from fakes.artifacts import put_cncf_model
from fakes.registry import FakeRegistry

from modelpack.signing.keys import PrivateKey
from modelpack.store import Store

EMPTY = {"MODELPACK_PASSWORD": ""}


@pytest.fixture
def stored(tmp_path):
    """A model in a store; the flags that name the store."""
    put_cncf_model(Store.open(tmp_path / "store"), "demo/tiny:v1", b"weights")
    return ("--store", tmp_path / "store")


def test_key_info_tells_both_halves_of_one_key(modelpack, key_pair):
    private, public = key_pair
    shown = modelpack("key", "info", public, "--json").json("key-info")
    assert (shown["half"], shown["kind"], shown["encrypted"]) == ("public", "ECDSA P-256", False)

    sealed = modelpack("key", "info", private, "--json").json("key-info")
    assert (sealed["half"], sealed["format"], sealed["encrypted"]) == ("private", "cosign", True)
    assert (sealed["id"], sealed["mode"], sealed["is_loose"]) == (None, "0600", False)

    opened = modelpack("key", "info", private, "--json", env=EMPTY).json("key-info")
    assert opened["id"] == shown["id"]
    assert shown["id"] in modelpack("key", "info", private, env=EMPTY).stdout


def test_key_info_of_a_key_in_the_environment_and_of_what_is_none(modelpack, key_pair, tmp_path):
    env = {"TEAM_KEY": key_pair[0].read_text(), **EMPTY}
    assert modelpack("key", "info", "env:TEAM_KEY", "--json", env=env).json("key-info")["mode"] is None
    assert modelpack("key", "info", "env:OTHER").code == 3
    (tmp_path / "notes.txt").write_text("not a key")
    assert modelpack("key", "info", tmp_path / "notes.txt").code == 2
    wrong = modelpack("key", "info", key_pair[0], env={"MODELPACK_PASSWORD": "hunter2-canary"})
    assert wrong.code == 2
    assert "password is wrong" in wrong.stderr
    assert "canary" not in wrong.stderr


def test_a_private_key_that_others_may_read_is_used_with_a_warning(modelpack, key_pair, stored):
    key_pair[0].chmod(0o640)

    assert modelpack("key", "info", key_pair[0], "--json").json("key-info")["is_loose"]
    signed = modelpack("sign", "demo/tiny:v1", "--key", key_pair[0], *stored, env=EMPTY)

    assert signed.code == 0, signed.stderr
    assert "others may read the private key" in signed.stderr
    assert "chmod 600" in signed.stderr


def test_a_private_key_in_the_clear_is_used_with_a_warning(modelpack, stored, tmp_path):
    import base64

    body = base64.encodebytes(PrivateKey.generate().pkcs8()).decode()
    plain = tmp_path / "plain.key"
    plain.write_text(f"-----BEGIN PRIVATE KEY-----\n{body}-----END PRIVATE KEY-----\n")
    plain.chmod(0o600)

    signed = modelpack("sign", "demo/tiny:v1", "--key", plain, *stored)

    assert signed.code == 0, signed.stderr
    assert "is not encrypted" in signed.stderr


def test_a_bundle_in_a_file_is_the_one_that_was_uploaded(modelpack, key_pair, stored, tmp_path):
    file = tmp_path / "out" / "tiny.sigstore.json"
    signed = modelpack("sign", "demo/tiny:v1", "--key", key_pair[0], "--bundle", file, "--json", *stored, env=EMPTY)

    assert signed.json("sign")["bundle"] == str(file)
    assert signed.json("sign")["written"] == ["bundle", "cosign-legacy"]
    store = Store.open(tmp_path / "store")
    repository = store.repository("demo/tiny")
    descriptor = repository.resolve("v1")
    bundles = [repository.fetch_manifest(one).layers[0] for one in repository.list_referrers(descriptor.digest)]
    assert [store.blob_path(one.digest).read_bytes() for one in bundles] == [file.read_bytes()]


def test_no_upload_signs_into_the_file_alone_and_the_file_is_proof_enough(modelpack, key_pair, stored, tmp_path):
    with FakeRegistry() as registry:
        reference = f"{registry.address}/demo/tiny:v1"
        modelpack("tag", "demo/tiny:v1", reference, *stored)
        assert modelpack("push", reference, *stored).code == 0
        before = len([one for one in registry.requests if one.method in ("PUT", "POST", "PATCH")])
        file = tmp_path / "tiny.sigstore.json"
        arguments = ("sign", reference, "--key", key_pair[0], "--bundle", file, "--no-upload", "--json", *stored)
        signed = modelpack(*arguments, env=EMPTY).json("sign")

        assert (signed["written"], signed["found"]) == ([], [])
        assert len([one for one in registry.requests if one.method in ("PUT", "POST", "PATCH")]) == before
        assert json.loads(file.read_text())["mediaType"] == "application/vnd.dev.sigstore.bundle.v0.3+json"

        check = ("verify", reference, "--trust-only", "--key", key_pair[1], "--json")
        assert modelpack(*check).code == 6
        assert modelpack(*check, "--bundle", file).json("verify")["passed"]
        assert modelpack(*check, "--bundle", file, *stored).json("verify")["passed"]
        modelpack("keygen", "--out", tmp_path / "other", "--no-password")
        other = modelpack(*check[:-2], tmp_path / "other.pub", "--json", "--bundle", file)
        assert other.code == 6
        (tmp_path / "broken").write_text("{}")
        assert modelpack(*check, "--bundle", tmp_path / "broken").code == 1


def test_no_upload_without_a_file_signs_for_nobody(modelpack, key_pair, stored):
    result = modelpack("sign", "demo/tiny:v1", "--key", key_pair[0], "--no-upload", *stored, env=EMPTY)

    assert result.code == 2
    assert "--bundle" in result.stderr


def test_a_key_without_a_password_is_not_asked_for_one(modelpack, tiny_checkpoint, key_pair):
    result = modelpack("build", tiny_checkpoint, "-t", "a:v1", "--quant", "Q8_0", "--sign", key_pair[0])

    assert result.code == 0, result.stderr
