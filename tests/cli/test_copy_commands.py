"""Copying, bundles, tags, indexes, views and unpacking, through the command line."""

import hashlib
import io
import json
import tarfile
import time

import pytest
from fakes.artifacts import put_cncf_model
from fakes.servers import running_registry

from modelpack import schemas
from modelpack.formats.cncf import ARTIFACT_TYPE, CONFIG_TYPE
from modelpack.oci import strict_json
from modelpack.oci.manifest import Descriptor, image_manifest
from modelpack.store import Store

WEIGHTS = b"GGUF" + bytes(range(256)) * 5000
NAME = "registry.example.com/team/tiny:v1"


@pytest.fixture
def store(home):
    return Store.open(home / ".local/share/modelpack")


@pytest.fixture
def signed(modelpack, store, key_pair):
    """A signed model in the store; its manifest."""
    manifest, _ = put_cncf_model(store, NAME, WEIGHTS)
    result = modelpack("sign", NAME, "--key", key_pair[0], "--local", env={"MODELPACK_PASSWORD": ""})
    assert result.code == 0, result.stderr
    return manifest


@pytest.fixture
def elsewhere(tmp_path):
    """Another machine's store, as an argument."""
    return ("--store", tmp_path / "elsewhere")


def test_a_bundle_carries_a_model_with_its_signatures_to_where_no_network_goes(
    modelpack, signed, key_pair, elsewhere, tmp_path
):
    saved = modelpack("bundle", "save", NAME, "-o", tmp_path / "model.tar", "--json")
    assert saved.code == 0, saved.stderr
    assert saved.json("bundle-save")["artifacts"] == [{"reference": NAME, "digest": str(signed.digest)}]

    loaded = modelpack("bundle", "load", tmp_path / "model.tar", "--key", key_pair[1], "--json", *elsewhere)

    assert loaded.code == 0, loaded.stderr
    artifact = loaded.json("bundle-load")["artifacts"][0]
    assert artifact["digest"] == str(signed.digest)
    assert artifact["trust"]["verified"]
    models = modelpack("list", "--json", *elsewhere).json("list")["models"]
    assert [(model["reference"], model["verified"]) for model in models] == [
        (NAME, artifact["trust"]["signers"][0]["name"])
    ]
    # Both forms of the signature came along: sent on, it is still signed.
    other = tmp_path / "third.tar"
    assert modelpack("bundle", "save", NAME, "-o", other, *elsewhere).code == 0
    assert other.read_bytes() == (tmp_path / "model.tar").read_bytes()


def test_the_same_models_give_the_same_bundle(modelpack, signed, store, tmp_path):
    put_cncf_model(store, "other:v1", b"GGUF other")
    for name in ("a.tar", "b.tar"):
        assert modelpack("bundle", "save", "other:v1", NAME, "-o", tmp_path / name).code == 0

    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as archive:
        members = archive.getmembers()
    assert [member.name for member in members[:2]] == ["oci-layout", "index.json"]
    assert sorted(member.name for member in members[2:]) == [member.name for member in members[2:]]
    assert {(member.mtime, member.uid, member.gid, member.uname, member.mode) for member in members} == {
        (0, 0, 0, "", 0o644)
    }


def test_a_bundle_is_refused_without_a_policy_and_nothing_is_stored(modelpack, signed, elsewhere, tmp_path):
    modelpack("bundle", "save", NAME, "-o", tmp_path / "model.tar")

    refused = modelpack("bundle", "load", tmp_path / "model.tar", *elsewhere)

    assert refused.code == 6
    assert not (tmp_path / "elsewhere").exists()


def test_the_keys_in_a_bundle_are_for_a_person_to_see_and_never_believed(
    modelpack, signed, key_pair, elsewhere, tmp_path
):
    added = modelpack("trust", "add", "team", key_pair[1], "--match", "registry.example.com/team/**")
    assert added.code == 0, added.stderr
    modelpack("bundle", "save", NAME, "-o", tmp_path / "model.tar")

    with tarfile.open(tmp_path / "model.tar") as archive:
        key = archive.extractfile("trust/1.pub").read()
        rules = archive.extractfile("trust/policy.toml").read().decode()
    assert key == key_pair[1].read_bytes()
    assert 'match = "registry.example.com/team/**"' in rules
    stranger = modelpack(
        "bundle", "load", tmp_path / "model.tar", *elsewhere, env={"XDG_CONFIG_HOME": str(tmp_path / "empty")}
    )
    assert stranger.code == 6


def test_a_bundle_whose_weights_were_changed_is_refused(modelpack, signed, key_pair, elsewhere, tmp_path):
    modelpack("bundle", "save", NAME, "-o", tmp_path / "model.tar")
    content = (tmp_path / "model.tar").read_bytes()
    position = content.index(WEIGHTS[:1000])
    (tmp_path / "model.tar").write_bytes(content[: position + 500] + b"!" + content[position + 501 :])

    refused = modelpack("bundle", "load", tmp_path / "model.tar", "--key", key_pair[1], *elsewhere)

    assert refused.code == 6
    assert "error[digest.mismatch]" in refused.stderr
    assert modelpack("list", "--json", *elsewhere).json("list")["models"] == []


def test_a_bundle_that_is_older_than_what_came_before_is_refused(
    modelpack, signed, store, key_pair, elsewhere, tmp_path
):
    modelpack("bundle", "save", NAME, "-o", tmp_path / "old.tar")
    time.sleep(1.1)  # signatures tell their time in seconds
    newer, _ = put_cncf_model(store, NAME, b"GGUF newer")
    modelpack("sign", NAME, "--key", key_pair[0], "--local", env={"MODELPACK_PASSWORD": ""})
    modelpack("bundle", "save", NAME, "-o", tmp_path / "new.tar")
    load = ("bundle", "load", "--key", key_pair[1], *elsewhere)
    assert modelpack(*load, tmp_path / "new.tar").code == 0

    refused = modelpack(*load, tmp_path / "old.tar")

    assert refused.code == 6, refused.stderr
    assert modelpack("list", "--json", *elsewhere).json("list")["models"][0]["digest"] == str(newer.digest)
    assert modelpack(*load, tmp_path / "old.tar", "--allow-rollback").code == 0
    assert modelpack("list", "--json", *elsewhere).json("list")["models"][0]["digest"] == str(signed.digest)


def test_copy_to_a_layout_and_back_keeps_digest_and_signature(modelpack, signed, key_pair, elsewhere, tmp_path):
    out = modelpack("copy", f"store:{NAME}", f"oci-layout:{tmp_path / 'usb'}:v1", "--json")
    assert out.code == 0, out.stderr
    assert out.json("copy")["trust"] is None
    assert out.json("copy")["referrers_copied"] == 2

    back = modelpack(
        "copy", f"oci-layout:{tmp_path / 'usb'}:v1", f"store:{NAME}", "--key", key_pair[1], "--json", *elsewhere
    )

    assert back.code == 0, back.stderr
    assert back.json("copy")["digest"] == str(signed.digest)
    assert modelpack("list", "--json", *elsewhere).json("list")["models"][0]["verified"] != "no"


def test_what_cosign_saved_is_read_with_its_signatures(modelpack, signed, key_pair, elsewhere, tmp_path):
    layout = tmp_path / "saved"
    assert modelpack("copy", f"store:{NAME}", f"oci-layout:{layout}:v1").code == 0
    index = json.loads((layout / "index.json").read_bytes())
    # cosign save gives no names, says in an annotation what is what, and leaves referrers behind.
    kinds = {"v1": "image", f"sha256-{signed.digest.hex}.sig": "sigs"}
    name = "org.opencontainers.image.ref.name"
    entries = {entry.get("annotations", {}).get(name): entry for entry in index["manifests"]}
    index["manifests"] = [
        entries[tag] | {"annotations": {"kind": f"dev.cosignproject.cosign/{kind}"}} for tag, kind in kinds.items()
    ]
    (layout / "index.json").write_text(json.dumps(index))

    loaded = modelpack("copy", f"oci-layout:{layout}", "store:team/tiny:v1", "--key", key_pair[1], *elsewhere)
    assert loaded.code == 0, loaded.stderr
    tree = modelpack("tree", "team/tiny:v1", "--key", key_pair[1], *elsewhere)
    assert "[cosign-legacy]" in tree.stdout


def test_copy_from_an_archive_needs_a_signature_by_somebody_trusted(modelpack, store, elsewhere, tmp_path, key_pair):
    put_cncf_model(store, "mine:v1", WEIGHTS)
    assert modelpack("copy", "mine:v1", f"oci-archive:{tmp_path / 'a.tar'}:v1").code == 0
    command = ("copy", f"oci-archive:{tmp_path / 'a.tar'}:v1", "store:mine:v1", *elsewhere)

    assert modelpack(*command).code == 6
    assert modelpack(*command, "--key", key_pair[1]).code == 6
    skipped = modelpack(*command, "--insecure-skip-verify", "--json")
    assert skipped.code == 0, skipped.stderr
    assert "NOT verifying" in skipped.stderr
    assert not skipped.json("copy")["trust"]["verified"]


def test_copy_between_registries_takes_the_signatures_along(modelpack, store, key_pair, tmp_path):
    near, far = Store.open(tmp_path / "near"), Store.open(tmp_path / "far")
    with running_registry(near) as first, running_registry(far) as second:
        source, target = f"{first}/team/tiny:v1", f"{second}/mirror/tiny"
        manifest, _ = put_cncf_model(store, source, WEIGHTS)
        pushed = modelpack("push", source, "--sign", key_pair[0], env={"MODELPACK_PASSWORD": ""})
        assert pushed.code == 0, pushed.stderr

        assert modelpack("copy", source, target).code == 6
        copied = modelpack("copy", source, target, "--key", key_pair[1], "--json")

        assert copied.code == 0, copied.stderr
        assert copied.json("copy")["tag"] == "v1"
        listed = modelpack("tags", target, "--json").json("tags")
        assert listed["tags"] == ["v1"]
        assert f"sha256-{manifest.digest.hex}.sig" in modelpack("tags", target, "--all").stdout.split()
        # What was copied verifies at its new place by the same key.
        pulled = modelpack("pull", f"{target}:v1", "--key", key_pair[1], "--store", tmp_path / "user")
        assert pulled.code == 0, pulled.stderr

        removed = modelpack("rm", f"{target}:v1", "--remote", "--json")
        assert removed.code == 0, removed.stderr
        assert modelpack("tags", target, "--json").json("tags")["tags"] == []
        assert modelpack("list", "--json").json("list")["models"], "the store keeps its own"


def test_what_a_revoked_key_signed_does_not_leave_the_store(modelpack, signed, key_pair, tmp_path):
    assert modelpack("trust", "add", "author", key_pair[1], "--match", "registry.example.com/**").code == 0
    before = modelpack("copy", f"store:{NAME}", f"oci-layout:{tmp_path / 'before'}:v1", "--json")
    assert before.json("copy")["trust"]["verified"], before.stderr
    assert modelpack("trust", "revoke", "author").code == 0

    after = modelpack("copy", f"store:{NAME}", f"oci-layout:{tmp_path / 'after'}:v1")

    assert after.code == 6
    assert "its key 'author' is revoked" in after.stderr
    assert "next: nothing was copied; modelpack policy explain" in after.stderr
    assert json.loads((tmp_path / "after" / "index.json").read_text())["manifests"] == []
    bundle = modelpack("bundle", "save", NAME, "-o", tmp_path / "model.tar")
    assert bundle.code == 6
    assert "its key 'author' is revoked" in bundle.stderr
    assert not (tmp_path / "model.tar").exists()


def test_a_key_that_is_named_for_a_copy_out_of_the_store_has_its_say(modelpack, signed, key_pair, tmp_path):
    assert modelpack("keygen", "--out", tmp_path / "other", "--no-password").code == 0
    there = f"oci-layout:{tmp_path / 'layout'}:v1"

    assert modelpack("copy", f"store:{NAME}", there, "--key", tmp_path / "other.pub").code == 6
    assert modelpack("copy", f"store:{NAME}", there, "--key", key_pair[1]).code == 0


def test_an_index_leaves_the_store_if_all_that_it_lists_may(modelpack, signed, key_pair, tmp_path):
    index = NAME.replace(":v1", ":index")
    assert modelpack("index", "create", index, NAME).code == 0
    there = f"oci-layout:{tmp_path / 'layout'}:index"
    assert modelpack("trust", "add", "author", key_pair[1], "--match", "registry.example.com/**").code == 0

    assert modelpack("copy", f"store:{index}", there).code == 0
    assert modelpack("trust", "revoke", "author").code == 0
    assert modelpack("copy", f"store:{index}", there).code == 6


def test_a_repository_without_a_registry_is_looked_up_in_the_store(modelpack, store):
    put_cncf_model(store, "mine:v1", WEIGHTS)
    put_cncf_model(store, "mine:v2", b"GGUF two")

    assert modelpack("tags", "mine", "--json").json("tags") == {"repository": "mine", "tags": ["v1", "v2"]}


def test_an_index_lists_variants_with_what_tells_them_apart(modelpack, store, tmp_path):
    one, _ = put_cncf_model(store, "mine:v1-q8_0", WEIGHTS)
    two, _ = put_cncf_model(store, "other:v1", b"GGUF two")

    made = modelpack("index", "create", "mine:index", "mine:v1-q8_0", "other:v1", "--json")

    assert made.code == 0, made.stderr
    variants = made.json("index-create")["variants"]
    assert [variant["digest"] for variant in variants] == [str(one.digest), str(two.digest)]
    assert [variant["tag"] for variant in variants] == ["v1-q8_0", "v1"]
    assert variants[0]["quantization"] == "Q8_0"
    assert {variant["artifact_type"] for variant in variants} == {ARTIFACT_TYPE}
    shown = modelpack("index", "show", "mine:index", "--json").json("index-show")
    assert shown == made.json("index-create")
    # The index goes to a registry with its variants, and can be made there from what is there.
    far = Store.open(tmp_path / "far")
    with running_registry(far) as address:
        assert modelpack("tag", "mine:index", f"{address}/mine:index").code == 0
        pushed = modelpack("push", f"{address}/mine:index")
        assert pushed.code == 0, pushed.stderr
        pulled = modelpack("pull", f"{address}/mine:index", "--insecure-skip-verify")
        assert pulled.code == 1
        assert "name one of them" in pulled.stderr
        assert "next: modelpack index show REF lists them" in pulled.stderr
        again = modelpack(
            "index", "create", f"{address}/mine:again", f"{address}/mine@{one.digest}", "--remote", "--json"
        )
        assert again.code == 0, again.stderr
        foreign = modelpack("index", "create", f"{address}/other:index", f"{address}/mine:index", "--remote")
        assert foreign.code == 2
        assert "modelpack copy it there first" in foreign.stderr
        assert len(modelpack("index", "show", f"{address}/mine:index", "--remote").stdout.splitlines()) == 3
    assert modelpack("index", "show", "mine:v1-q8_0").code == 1


@pytest.fixture
def built(modelpack, tiny_checkpoint):
    result = modelpack("build", tiny_checkpoint, "-t", "demo/tiny:v1", "--quant", "Q4_K_M", "--json")
    assert result.code == 0, result.stderr
    return result.json("build")["variants"][0]


def test_views_are_other_manifests_over_the_same_weights(modelpack, built, store, tmp_path):
    result = modelpack(
        "export-view", "demo/tiny:v1",
        *("--format", "docker", "--format", "slim", "--format", "ollama", "--format", "car"), "--json",
    )  # fmt: skip

    assert result.code == 0, result.stderr
    views = {view["format"]: view for view in result.json("export-view")["views"]}
    assert [view["reference"] for view in views.values()] == [
        f"demo/tiny:v1-{name}" for name in ("docker", "slim", "ollama", "car")
    ]
    repository = store.repository("demo/tiny")
    manifests = {
        name: repository.fetch_manifest(repository.resolve(f"v1-{name}")) for name in ("docker", "slim", "ollama")
    }
    for name, manifest in manifests.items():
        assert str(manifest.layers[0].digest) == built["file"]["digest"]
        assert views[name]["extra_bytes"] < 20_000
    configs = {name: json.loads(store.blob_path(one.config).read_bytes()) for name, one in manifests.items()}
    assert schemas.violations("docker/config", configs["docker"]) == []
    assert configs["docker"]["config"]["context_size"] == 256
    assert schemas.violations("cncf/config", configs["slim"]) == []
    assert len(manifests["slim"].layers) == 1
    assert schemas.violations("ollama/config", configs["ollama"]) == []
    assert schemas.violations("ollama/manifest", json.loads(manifests["ollama"].raw)) == []
    again = modelpack("export-view", "demo/tiny:v1", "--format", "car", "--json").json("export-view")["views"]
    assert again == [views["car"]]


def test_a_car_is_an_image_whose_layers_unpack_to_the_weights(modelpack, built, store):
    assert modelpack("export-view", "demo/tiny:v1", "--format", "car").code == 0

    repository = store.repository("demo/tiny")
    index = repository.fetch_manifest(repository.resolve("v1-car"))
    platforms = [one["platform"] for one in json.loads(index.raw)["manifests"]]
    assert platforms == [{"architecture": "amd64", "os": "linux"}, {"architecture": "arm64", "os": "linux"}]
    images = [repository.fetch_manifest(child) for child in index.manifests]
    assert images[0].layers == images[1].layers
    config = json.loads(store.blob_path(images[0].config).read_bytes())
    assert schemas.violations("car/config", config) == []
    assert config["rootfs"]["diff_ids"] == [str(layer.digest) for layer in images[0].layers]
    with tarfile.open(store.blob_path(images[0].layers[0])) as layer:
        (member,) = layer.getmembers()
        assert member.name == f"models/{built['file']['name']}"
        digest = hashlib.sha256(layer.extractfile(member).read()).hexdigest()
    assert f"sha256:{digest}" == built["file"]["digest"]


def test_a_view_of_what_nobody_verified_is_not_verified_either(modelpack, built, elsewhere, tmp_path):
    archive = f"oci-archive:{tmp_path / 'a.tar'}:v1"
    assert modelpack("copy", "demo/tiny:v1", archive).code == 0
    assert modelpack("copy", archive, "store:demo/tiny:v1", "--insecure-skip-verify", *elsewhere).code == 0

    assert modelpack("export-view", "demo/tiny:v1", "--format", "slim", *elsewhere).code == 0

    models = modelpack("list", "--json", *elsewhere).json("list")["models"]
    assert {model["reference"]: model["verified"] for model in models} == {
        "demo/tiny:v1": "no",
        "demo/tiny:v1-slim": "no",
    }


def put_packed_model(store, reference, files):
    """A model as KitOps writes it by default: a tar+gzip layer."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    layer = store.write_small(content.getvalue(), "application/vnd.cncf.model.weight.v1.tar+gzip")
    config = strict_json.canonical(
        {"descriptor": {"name": "packed"}, "config": {}, "modelfs": {"type": "layers", "diffIds": [str(layer.digest)]}}
    )
    manifest = image_manifest(
        artifact_type=ARTIFACT_TYPE,
        config=store.write_small(config, CONFIG_TYPE),
        layers=[Descriptor(layer.media_type, layer.digest, layer.size, {"org.cncf.model.filepath": "packed"})],
    )
    name, _, tag = reference.rpartition(":")
    return store.repository(name).put_manifest(manifest, tag=tag)


@pytest.mark.llama
def test_a_packed_model_runs_after_unpacking_and_keeps_its_name_and_digest(modelpack, built, store, tmp_path, key_pair):
    weights = store.blob_path(store.repository("demo/tiny").resolve("v1")).parent / built["file"]["digest"][7:]
    made = put_packed_model(store, "packed:v1", {"dir/tiny.gguf": weights.read_bytes(), "LICENSE": b"MIT"})
    modelpack("sign", "packed:v1", "--key", key_pair[0], env={"MODELPACK_PASSWORD": ""})
    modelpack("trust", "add", "team", key_pair[1], "--match", "packed")

    refused = modelpack("run", "packed:v1", "Hello", "--max-tokens", "4")
    assert refused.code == 1
    assert "modelpack unpack" in refused.stderr
    result = modelpack("unpack", "packed:v1", "--json")

    assert result.code == 0, result.stderr
    unpacked = result.json("unpack")
    assert unpacked["digest"] == str(made.digest)
    assert {file["name"]: file["kind"] for file in unpacked["files"]} == {"tiny.gguf": "weight", "LICENSE": "doc"}
    ran = modelpack("run", "packed:v1", "Hello", "--max-tokens", "4", "--temperature", "0")
    assert ran.code == 0, ran.stderr
    # What was unpacked is no model of its own, and goes with the one it came from.
    models = modelpack("list", "--json").json("list")["models"]
    assert sorted(model["reference"] for model in models) == ["demo/tiny:v1", "demo/tiny:v1-q4_k_m", "packed:v1"]
    assert modelpack("rm", "packed:v1").code == 0
    assert store.repository("packed").list_tags() == []


def test_a_view_of_what_was_built_here_outlives_it(modelpack, built):
    assert modelpack("export-view", "demo/tiny:v1", "--format", "slim").code == 0
    assert modelpack("rm", "demo/tiny:v1").code == 0

    models = modelpack("list", "--json").json("list")["models"]
    assert {model["reference"]: model["verified"] for model in models}["demo/tiny:v1-slim"] == "built here"
    assert modelpack("run", "demo/tiny:v1-slim", "Hello!", "--temperature", "0").code == 0


def test_a_refusal_fits_one_screen_however_many_signed(modelpack, signed, tmp_path):
    for number in range(5):
        assert modelpack("keygen", "--out", tmp_path / f"k{number}", "--no-password").code == 0
        assert modelpack("sign", NAME, "--key", tmp_path / f"k{number}.key", "--local").code == 0
    assert modelpack("keygen", "--out", tmp_path / "other", "--no-password").code == 0
    arguments = ("verify", NAME, "--local", "--trust-only", "--key", tmp_path / "other.pub")

    refused = modelpack(*arguments)

    assert refused.code == 6
    assert len(refused.stderr.splitlines()) == 11
    assert "and 4 more, which --json lists" in refused.stderr
    assert "modelpack key info KEY.pub" in refused.stderr
    assert len(modelpack(*arguments, "--json").json("error")["error"]["rejections"]) == 12
