"""pull --include and --exclude: some files into a folder, and no claim of the store to have the model."""

import hashlib
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fakes.artifacts import put_cncf_model
from fakes.registry import FakeRegistry
from fakes.tars import entry, make_tar
from tests_data import TINY_LLAMA

from modelpack.oci.digest import Digest
from modelpack.oci.manifest import Descriptor, image_manifest
from modelpack.store import Store

Command = Callable[..., Any]
WEIGHTS = b"GGUF" + bytes(range(256)) * 1200


@pytest.fixture
def fake() -> Iterator[FakeRegistry]:
    with FakeRegistry() as registry:
        yield registry


@pytest.fixture
def reference(fake: FakeRegistry, tmp_path: Path, modelpack: Command) -> str:
    """A model of three files that lies in the registry and in the store ``here``."""
    return publish(modelpack, fake, tmp_path, WEIGHTS)


def publish(modelpack: Command, fake: FakeRegistry, tmp_path: Path, weights: bytes, *arguments: object) -> str:
    name = f"{fake.address}/team/tiny:v1"
    put_cncf_model(Store.open(tmp_path / "here"), name, weights)
    result = modelpack("push", name, "--store", tmp_path / "here", *arguments)
    assert result.code == 0, result.stderr
    fake.requests.clear()
    return name


def pull(modelpack: Command, reference: str, *arguments: object) -> Any:
    return modelpack("pull", reference, "--insecure-skip-verify", *arguments)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def my_store(home: Path) -> Store:
    return Store.open(home / ".local/share/modelpack")


def test_only_the_files_that_are_wanted_come_over(
    modelpack: Command, fake: FakeRegistry, reference: str, home: Path, tmp_path: Path
) -> None:
    result = pull(modelpack, reference, "--include", "*.gguf", "--output", tmp_path / "out", "--json")

    answer = result.json("pull")
    assert names(tmp_path / "out") == ["tiny-Q8_0.gguf"]
    assert (tmp_path / "out/tiny-Q8_0.gguf").read_bytes() == WEIGHTS
    assert answer["files"] == [str(tmp_path / "out/tiny-Q8_0.gguf")]
    assert (answer["partial"], answer["left_out"]) == (True, ["LICENSE", "README.md"])
    assert (answer["blobs_copied"], answer["bytes_copied"]) == (1, len(WEIGHTS))
    assert fake.count("GET", f"blobs/{Digest.of(b'# Tiny')}") == 0
    # The config tells the files; beside it and the weights nothing was read.
    assert fake.count("GET", "/blobs/") == 2


def test_a_store_with_some_of_the_files_does_not_claim_the_model(
    modelpack: Command, reference: str, home: Path, tmp_path: Path
) -> None:
    assert pull(modelpack, reference, "--include", "*.gguf", "--output", tmp_path / "out").code == 0

    assert modelpack("list", "--json").json("list")["models"] == []
    assert modelpack("run", reference, "Hello").code == 3
    assert modelpack("fsck").code == 0
    store = my_store(home)
    assert store.read_index().entries == ()
    assert list((store.root / "receipts").iterdir()) == []
    assert [digest for digest, _ in store.prune(grace=timedelta(0)).blobs] == [Digest.of(WEIGHTS)]
    assert (tmp_path / "out/tiny-Q8_0.gguf").read_bytes() == WEIGHTS


def test_a_model_that_is_there_keeps_its_tag(modelpack: Command, reference: str, home: Path, tmp_path: Path) -> None:
    assert pull(modelpack, reference).code == 0

    answer = pull(modelpack, reference, "--include", "README.md", "--output", tmp_path / "out", "--json").json("pull")

    assert (answer["blobs_copied"], answer["blobs_skipped"]) == (0, 1)
    assert [str(one.reference) for one in my_store(home).list()] == [reference]


def test_what_came_in_part_is_not_fetched_again_by_a_whole_pull(
    modelpack: Command, reference: str, tmp_path: Path
) -> None:
    pull(modelpack, reference, "--include", "*.gguf", "--output", tmp_path / "out")

    answer = pull(modelpack, reference, "--json").json("pull")

    assert answer["bytes_copied"] < 10_000
    assert (answer["partial"], answer["left_out"], answer["files"]) == (False, [], [])


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["--exclude", "*.gguf"], ["LICENSE", "README.md"]),
        (["--include", "*.md", "--include", "LIC*"], ["LICENSE", "README.md"]),
        (["--include", "*", "--exclude", "LICENSE", "--exclude", "tiny-*"], ["README.md"]),
        (["--include", "[RL]*", "--exclude", "?ICENSE"], ["README.md"]),
        (["--include", "*"], ["LICENSE", "README.md", "tiny-Q8_0.gguf"]),
    ],
)
def test_patterns_choose_as_those_of_hf_download(
    modelpack: Command, reference: str, tmp_path: Path, patterns: list[str], expected: list[str]
) -> None:
    result = pull(modelpack, reference, *patterns, "--output", tmp_path / "out")

    assert result.code == 0, result.stderr
    assert names(tmp_path / "out") == expected


@pytest.mark.parametrize("patterns", [("--include", "*.GGUF"), ("--exclude", "*"), ("--include", "gguf")])
def test_patterns_that_leave_nothing_say_what_there_is(
    modelpack: Command, fake: FakeRegistry, reference: str, home: Path, tmp_path: Path, patterns: tuple[str, ...]
) -> None:
    result = pull(modelpack, reference, *patterns, "--output", tmp_path / "out")

    assert result.code == 3
    assert f"{patterns[0]} '{patterns[1]}' leaves no file of tiny-Q8_0.gguf, LICENSE, README.md" in result.stderr
    assert not (tmp_path / "out").exists()
    assert fake.count("GET", "/blobs/") == 1


def test_patterns_without_a_folder_are_a_usage_error(modelpack: Command, fake: FakeRegistry, reference: str) -> None:
    for option in ("--include", "--exclude"):
        result = pull(modelpack, reference, option, "*.gguf")

        assert result.code == 2
        assert "--output" in result.stderr
    assert fake.requests == []


def test_an_interrupted_partial_pull_goes_on(
    modelpack: Command, fake: FakeRegistry, reference: str, tmp_path: Path
) -> None:
    wanted = ("--include", "*.gguf", "--output", tmp_path / "out")
    weights = f"blobs/{Digest.of(WEIGHTS)}"
    fake.fail("GET", weights, cut_after=200_000)
    fake.fail("GET", weights, times=99, status=404)
    assert pull(modelpack, reference, *wanted).code == 3
    assert not (tmp_path / "out").exists()
    fake.faults.clear()

    answer = pull(modelpack, reference, *wanted, "--json").json("pull")

    assert answer["transfer"]["bytes_resumed"] == 200_000
    assert (tmp_path / "out/tiny-Q8_0.gguf").read_bytes() == WEIGHTS


def test_weights_that_are_not_what_the_manifest_says_are_not_exported(
    modelpack: Command, fake: FakeRegistry, reference: str, tmp_path: Path
) -> None:
    fake.fail("GET", f"blobs/{Digest.of(WEIGHTS)}", times=99, change_body=lambda body: b"!" + body[1:])

    result = pull(modelpack, reference, "--include", "*.gguf", "--output", tmp_path / "out")

    assert result.code == 6
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_there_already_is_in_nobodys_way(
    modelpack: Command, reference: str, home: Path, tmp_path: Path
) -> None:
    wanted = ("--include", "*.gguf", "--output", tmp_path / "out")
    assert pull(modelpack, reference, *wanted).code == 0
    my_store(home).prune(grace=timedelta(0))

    assert pull(modelpack, reference, *wanted).code == 0

    (tmp_path / "out/tiny-Q8_0.gguf").unlink()
    (tmp_path / "out/tiny-Q8_0.gguf").write_bytes(b"mine")
    refused = pull(modelpack, reference, *wanted)
    assert refused.code == 2
    assert "exists already" in refused.stderr


def test_a_part_of_what_nobody_trusts_is_refused_before_it_moves(
    modelpack: Command, fake: FakeRegistry, reference: str, key_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    wanted = ("--include", "*.gguf", "--output", tmp_path / "out")

    assert modelpack("pull", reference, *wanted).code == 6
    assert modelpack("pull", reference, "--key", key_pair[1], *wanted).code == 6
    assert fake.count("GET", f"blobs/{Digest.of(WEIGHTS)}") == 0
    assert not (tmp_path / "out").exists()


def test_a_part_is_held_against_the_lock_and_the_newest_that_was_seen(
    modelpack: Command, fake: FakeRegistry, key_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    signing = ("--sign", key_pair[0])
    wanted = ("--include", "*.gguf", "--output")
    name = publish(modelpack, fake, tmp_path, WEIGHTS, *signing)
    assert modelpack("trust", "add", "team", key_pair[1], "--match", f"{fake.address}/**").code == 0
    assert modelpack("lock", name).code == 0
    old = fake.tags["team/tiny", "v1"]
    time.sleep(1.1)  # signatures tell their time to the second
    publish(modelpack, fake, tmp_path, WEIGHTS[::-1], *signing)

    # What the tag is now is verified, and remembered; what the lock file has is still to be had.
    assert modelpack("pull", name, *wanted, tmp_path / "new").code == 0
    frozen = modelpack("pull", name, "--frozen", *wanted, tmp_path / "locked")
    assert frozen.code == 0, frozen.stderr
    assert (tmp_path / "new/tiny-Q8_0.gguf").read_bytes() == WEIGHTS[::-1]
    assert (tmp_path / "locked/tiny-Q8_0.gguf").read_bytes() == WEIGHTS
    fake.tags["team/tiny", "v1"] = old
    back = modelpack("pull", name, *wanted, tmp_path / "back")
    assert back.code == 6
    assert not (tmp_path / "back").exists()


def test_files_inside_archives_cannot_be_chosen(
    modelpack: Command, fake: FakeRegistry, home: Path, tmp_path: Path
) -> None:
    store = Store.open(tmp_path / "here")
    config = b'{"descriptor":{"name":"tiny"},"config":{"format":"gguf"},"modelfs":{"type":"layers","diffIds":[]}}'
    weights = store.write_small(make_tar(entry("tiny.gguf", b"GGUF")), "application/vnd.cncf.model.weight.v1.tar")
    manifest = image_manifest(
        config=store.write_small(config, "application/vnd.cncf.model.config.v1+json"),
        layers=[Descriptor(weights.media_type, weights.digest, weights.size)],
        artifact_type="application/vnd.cncf.model.manifest.v1+json",
    )
    name = f"{fake.address}/team/packed:v1"
    store.repository(name.rpartition(":")[0]).put_manifest(manifest, tag="v1")
    assert modelpack("push", name, "--store", store.root).code == 0

    result = pull(modelpack, name, "--include", "*.gguf", "--output", tmp_path / "out")

    assert result.code == 1
    assert "inside archives: pull it without --output, then unpack it" in result.stderr


def test_a_part_of_a_variant(modelpack: Command, fake: FakeRegistry, tmp_path: Path) -> None:
    reference, here = f"{fake.address}/team/variants:v1", ("--store", tmp_path / "author")
    assert modelpack("build", TINY_LLAMA, "-t", reference, "--quant", "Q8_0", "--quant", "Q4_0", *here).code == 0
    assert modelpack("push", reference, "--all-variants", *here).code == 0

    result = pull(modelpack, reference, "--variant", "Q4_0", "--include", "*.gguf", "--output", tmp_path / "out")

    assert result.code == 0, result.stderr
    assert names(tmp_path / "out") == ["variants-Q4_0.gguf"]


@pytest.mark.parametrize("patterns", [("--include", "*.gguf"), ()], ids=["a part", "all"])
def test_a_template_that_a_registry_hid_from_the_look_is_not_exported(
    modelpack: Command,
    fake: FakeRegistry,
    key_pair: tuple[Path, Path],
    home: Path,
    tmp_path: Path,
    patterns: tuple[str, ...],
) -> None:
    """Bytes before a pull are not hashed: a registry can show the header of other weights to whoever looks."""
    text, hidden = b"{{ messages }}", b"{{ massages }}"

    def header(template: bytes) -> bytes:
        pairs = b"".join(
            len(key).to_bytes(8, "little") + key + (8).to_bytes(4, "little") + len(value).to_bytes(8, "little") + value
            for key, value in ((b"general.architecture", b"llama"), (b"tokenizer.chat_template", template))
        )
        made = b"GGUF" + (3).to_bytes(4, "little") + bytes(8) + (2).to_bytes(8, "little") + pairs
        return made + bytes(-len(made) % 32)

    name = publish(modelpack, fake, tmp_path, header(hidden), "--sign", key_pair[0])
    assert modelpack("trust", "add", "team", key_pair[1], "--match", f"{fake.address}/**").code == 0
    policy = home / ".config/modelpack/policy.toml"
    policy.write_text(policy.read_text() + f'template_sha256 = ["{hashlib.sha256(text).hexdigest()}"]\n')
    fake.fail("GET", f"blobs/{Digest.of(header(hidden))}", change_body=lambda _: header(text))

    result = modelpack("pull", name, *patterns, "--output", tmp_path / "out")

    assert result.code == 6
    assert "its chat template is" in result.stderr
    assert "nothing was exported" in result.stderr
    assert not (tmp_path / "out").exists()
