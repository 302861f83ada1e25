"""build --oms: model.sig beside the weights, checked by OpenSSF's own ``model-signing`` package."""

import json
import shutil
import subprocess

import pytest
from fakes.peers import peer_environment

# 1.1.1 imports pyOpenSSL and does not ask for it.
PEER = ("model-signing==1.1.1", "pyopenssl")


@pytest.fixture(scope="session")
def model_signing(request):
    return peer_environment(request.config, *PEER) / "model_signing"


@pytest.fixture
def signed(modelpack, tiny_gguf, key_pair):
    arguments = ("build", tiny_gguf, "-t", "demo/tiny:v1", "--oms", key_pair[0], "--json")
    built = modelpack(*arguments, env={"MODELPACK_PASSWORD": ""})
    assert built.code == 0, built.stderr
    return built.json("build")["variants"][0]


def unpacked(modelpack, home, folder):
    """The artifact's files in a plain folder, as oras pull and its like leave them."""
    folder.mkdir()
    for file in modelpack("inspect", "demo/tiny:v1", "--json").json("inspect")["files"]:
        hexadecimal = file["digest"].removeprefix("sha256:")
        shutil.copy(home / ".local/share/modelpack/blobs/sha256" / hexadecimal, folder / file["name"])
    return folder


@pytest.mark.peer
def test_the_files_of_an_artifact_prove_themselves_and_a_changed_one_is_found(
    modelpack, home, signed, key_pair, model_signing, tmp_path
):
    folder = unpacked(modelpack, home, tmp_path / "plain")
    command = [model_signing, "verify", "key", folder, "--signature", folder / "model.sig", "--public_key", key_pair[1]]

    whole = subprocess.run(command, capture_output=True, text=True, check=False)
    assert whole.returncode == 0, whole.stderr

    weights = next(folder.glob("*.gguf"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0
    shutil.rmtree(folder)

    folder = unpacked(modelpack, home, tmp_path / "plain")
    (folder / "extra.gguf").write_bytes(b"one more")
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


def test_the_artifact_stays_what_it_was_for_every_other_reader(modelpack, signed, tiny_gguf, key_pair):
    shown = modelpack("inspect", "demo/tiny:v1", "--json").json("inspect")
    assert [(file["name"], file["kind"]) for file in shown["files"]][1:] == [("model.sig", "doc")]
    manifest = json.loads(modelpack("inspect", "demo/tiny:v1", "--raw").stdout)
    assert manifest["layers"][1]["mediaType"] == "application/vnd.cncf.model.doc.v1.raw"
    assert manifest["layers"][1]["size"] < 2_000

    env = {"MODELPACK_PASSWORD": ""}
    again = modelpack("build", tiny_gguf, "-t", "demo/tiny:v2", "--oms", key_pair[0], "--json", env=env)
    assert again.json("build")["variants"][0]["digest"] == signed["digest"]


def test_a_format_without_a_place_for_it_refuses(modelpack, tiny_gguf, key_pair):
    arguments = ("build", tiny_gguf, "-t", "demo/tiny:v1", "--oms", key_pair[0], "--format", "docker")
    result = modelpack(*arguments, env={"MODELPACK_PASSWORD": ""})

    assert result.code == 2
    assert "no place for model.sig" in result.stderr


@pytest.mark.skopeo
def test_skopeo_reads_it(modelpack, home, signed, tmp_path):
    if not shutil.which("skopeo"):
        pytest.skip("skopeo is not installed")
    source = f"oci:{home}/.local/share/modelpack:demo/tiny:v1"
    copied = subprocess.run(
        ["skopeo", "copy", source, f"dir:{tmp_path}/copy"], capture_output=True, text=True, check=False
    )
    assert copied.returncode == 0, copied.stderr
    digest = json.loads((tmp_path / "copy" / "manifest.json").read_bytes())["layers"][1]["digest"]
    assert json.loads((tmp_path / "copy" / digest.removeprefix("sha256:")).read_bytes())["dsseEnvelope"]
