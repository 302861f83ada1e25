"""verify, through the command line: trust and bytes are looked at together, and both must hold."""

import pytest
from fakes.artifacts import put_cncf_model

from modelpack.store import Store

NAME = "registry.example.com/team/tiny:v1"
WEIGHTS = b"GGUF" + bytes(range(256)) * 5000
EMPTY_PASSWORD = {"MODELPACK_PASSWORD": ""}


@pytest.fixture
def store(home):
    return Store.open(home / ".local/share/modelpack")


@pytest.fixture
def signed(modelpack, store, key_pair):
    """A signed model in the store; its manifest."""
    manifest, _ = put_cncf_model(store, NAME, WEIGHTS)
    result = modelpack("sign", NAME, "--key", key_pair[0], "--local", env=EMPTY_PASSWORD)
    assert result.code == 0, result.stderr
    return manifest


@pytest.fixture
def stranger(modelpack, tmp_path):
    """Somebody else's public key."""
    result = modelpack("keygen", "--out", tmp_path / "stranger", "--no-password")
    assert result.code == 0, result.stderr
    return tmp_path / "stranger.pub"


def damage(store, manifest):
    path = store.blob_path(manifest.layers[0])
    path.chmod(0o600)
    path.write_bytes(b"EVIL" + path.read_bytes()[4:])


def test_every_byte_is_counted(modelpack, signed, key_pair):
    result = modelpack("verify", NAME, "--key", key_pair[1], "--no-smoke", "--json")

    assert result.code == 0, result.stderr
    answer = result.json("verify")
    assert answer["trust"]["verified"]
    size = sum(blob.size for blob in signed.blobs) + signed.descriptor.size
    assert answer["content"] == {"blobs": len(signed.blobs) + 1, "bytes": size}


def test_a_changed_blob_under_a_good_signature_is_refused(modelpack, store, signed, key_pair):
    damage(store, signed)

    result = modelpack("verify", NAME, "--key", key_pair[1], "--no-smoke", "--local")

    assert result.code == 6
    assert "verified" not in result.stdout
    assert str(signed.layers[0].digest) in result.stderr


def test_who_made_it_is_told_before_what_it_is(modelpack, store, signed, stranger):
    damage(store, signed)

    result = modelpack("verify", NAME, "--key", stranger, "--no-smoke")

    assert result.code == 6
    assert "no signature is by a key that was asked for" in result.stderr
    assert "nothing was loaded" in result.stderr
    assert result.stdout == ""


def test_a_policy_that_is_broken_is_told_before_a_model_that_is_missing(modelpack, tmp_path):
    (tmp_path / "policy.toml").write_text("version = 2\n")
    assert modelpack("verify", NAME, "--policy", tmp_path / "policy.toml").code == 2

    result = modelpack("verify", NAME, "--key", tmp_path / "none.pub")
    assert result.code == 3
    assert "none.pub" in result.stderr


def test_a_model_that_is_missing_is_to_be_pulled(modelpack, key_pair):
    for flags in ((), ("--trust-only", "--local")):
        result = modelpack("verify", NAME, "--key", key_pair[1], *flags)
        assert result.code == 3
        assert f"modelpack pull {NAME}" in result.stderr


def test_a_policy_that_lets_everything_in_verifies_nothing(modelpack, store, tmp_path):
    put_cncf_model(store, NAME, WEIGHTS)
    (tmp_path / "policy.toml").write_text('version = 1\n[default]\naction = "allow-unsigned"\n')

    result = modelpack("verify", NAME, "--policy", tmp_path / "policy.toml", "--no-smoke")

    assert result.code == 0, result.stderr
    assert "signed by nobody; default: allow-unsigned" in result.stdout
    assert "✓ signed" not in result.stdout
    assert result.stdout.splitlines()[-1].startswith("not verified, and allowed")


def test_a_view_of_what_was_let_in_unverified_is_not_verified(modelpack, tiny_checkpoint, key_pair, tmp_path):
    assert modelpack("build", tiny_checkpoint, "-t", NAME).code == 0
    archive = f"oci-archive:{tmp_path / 'a.tar'}:v1"
    elsewhere = ("--store", tmp_path / "elsewhere")
    assert modelpack("copy", f"store:{NAME}", archive, "--insecure-skip-verify").code == 0
    assert modelpack("copy", archive, f"store:{NAME}", "--insecure-skip-verify", *elsewhere).code == 0
    made = modelpack("export-view", NAME, "--format", "slim", *elsewhere)
    assert made.code == 0, made.stderr

    result = modelpack("verify", f"{NAME}-slim", "--key", key_pair[1], "--no-smoke", *elsewhere)

    assert result.code == 6
    assert "it is not signed" in result.stderr
    assert result.stdout == ""
