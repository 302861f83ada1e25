"""How a person looks after the store: fsck, df and prune."""

import os
import shutil
import subprocess
import sys
import time

import pytest

from modelpack.store import Store


@pytest.fixture(scope="module")
def built(tiny_checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("built") / "store"
    build = [sys.executable, "-m", "modelpack", "build", tiny_checkpoint, "-t", "tiny:v1", "--quant", "Q8_0"]
    subprocess.run([*build, "--store", path], capture_output=True, check=True)
    return path


@pytest.fixture
def store(built, home):
    return Store.open(shutil.copytree(built, home / ".local/share/modelpack"))


def largest_blob(store):
    digest = max(store.blobs.all(), key=lambda blob: blob[1].st_size)[0]
    return digest, store.blobs.path(digest)


def test_fsck_of_a_store_in_order_ends_with_0(modelpack, store):
    result = modelpack("fsck")
    assert result.code == 0
    assert result.stdout.endswith("nothing is wrong\n")
    answer = modelpack("fsck", "--json").json("fsck")
    assert (answer["ok"], answer["blobs_hashed"]) == (True, len(list(store.blobs.all())))
    assert modelpack("fsck", "--fast", "--json").json("fsck")["blobs_hashed"] == 0


def test_fsck_finds_a_flipped_bit_and_ends_with_6_until_it_is_pulled_again(modelpack, store):
    digest, path = largest_blob(store)
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)

    found = modelpack("fsck", "--json")
    assert found.code == 6
    assert found.json("fsck")["repaired"] == []
    assert [each["kind"] for each in found.json("fsck")["remaining"]] == ["damaged"]
    assert found.json("fsck")["incomplete"] == ["tiny:v1", "tiny:v1-q8_0"]

    repaired = modelpack("fsck", "--repair")
    assert repaired.code == 6
    assert f"blob {digest} is missing" in repaired.stdout
    assert "lacking   tiny:v1: modelpack pull it again, or rm it" in repaired.stdout
    assert modelpack("run", "tiny:v1", "Hello").code == 3
    assert modelpack("rm", "tiny:v1", "tiny:v1-q8_0").code == 0
    assert modelpack("fsck").code == 0


def test_fsck_puts_a_lost_index_right(modelpack, store):
    (store.root / "index.json").write_text("{")
    assert modelpack("list").code == 1
    assert modelpack("fsck").code == 6
    result = modelpack("fsck", "--repair", "--json").json("fsck")
    assert result["ok"]
    assert [each["kind"] for each in result["repaired"]] == ["index"]
    assert modelpack("fsck").code == 0


def test_prune_and_df_tell_what_would_be_freed_now(modelpack, store):
    partial = store.partials / ("a" * 64)
    partial.write_bytes(b"x" * 50_000)
    two_days_ago = time.time() - 2 * 86400
    os.utime(partial, (two_days_ago, two_days_ago))

    df = modelpack("df", "--json").json("df")
    assert df["partial_bytes"] >= 50_000
    assert df["reclaimable_bytes"] == 0, "somebody may resume it"

    plan = modelpack("prune", "--dry-run", "--older-than", "1d", "--json").json("prune")
    assert (plan["dry_run"], plan["partials"], plan["bytes"] >= 50_000) == (True, 1, True)
    assert partial.exists()
    assert modelpack("prune", "--older-than", "3d", "--json").json("prune")["partials"] == 0
    assert modelpack("prune", "--older-than", "1d", "--json").json("prune")["partials"] == 1
    assert not partial.exists()
    assert modelpack("prune", "--older-than", "soon").code == 2
    assert modelpack("prune", "--older-than", "0s").code == 0
    assert modelpack("inspect", "tiny:v1").code == 0
