"""push and pull over the wire: rates, files in a folder, mounts, and what the report says."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.artifacts import put_cncf_model
from fakes.registry import FakeRegistry
from fakes.registry_flavours import DISTRIBUTION_2
from tests_data import TINY_LLAMA

from modelpack.oci.digest import Digest
from modelpack.store import Store

Command = Callable[..., Any]
WEIGHTS = bytes(range(256)) * 1200


@pytest.fixture
def fake() -> Iterator[FakeRegistry]:
    with FakeRegistry(quirks=DISTRIBUTION_2) as registry:
        yield registry


@pytest.fixture
def reference(fake: FakeRegistry, tmp_path: Path, modelpack: Command) -> str:
    """A model that lies in the registry and in the store ``here``."""
    name = f"{fake.address}/team/tiny:v1"
    put_cncf_model(Store.open(tmp_path / "here"), name, WEIGHTS)
    result = modelpack("push", name, "--store", tmp_path / "here")
    assert result.code == 0, result.stderr
    return name


def pull(modelpack: Command, reference: str, *arguments: object) -> Any:
    return modelpack("pull", reference, "--insecure-skip-verify", *arguments)


def steps(stderr: str, label: str) -> list[dict[str, Any]]:
    """What ``--progress json`` told of one step."""
    return [one for one in map(json.loads, stderr.splitlines()) if one.get("label") == label]


def test_the_report_tells_the_wire_from_the_payload(modelpack: Command, reference: str) -> None:
    answer = pull(modelpack, reference, "--json").json("pull")
    again = pull(modelpack, reference, "--json").json("pull")

    assert answer["transfer"]["bytes_received"] > answer["bytes_copied"] >= len(WEIGHTS)
    assert (answer["transfer"]["bytes_resumed"], answer["transfer"]["retries"]) == (0, 0)
    assert again["bytes_copied"] == 0
    assert again["transfer"]["bytes_received"] < 10_000


def test_retries_and_resumed_bytes_are_told(modelpack: Command, fake: FakeRegistry, reference: str) -> None:
    weights = f"blobs/{Digest.of(WEIGHTS)}"
    fake.fail("GET", weights, cut_after=200_000)
    fake.fail("GET", weights, times=99, status=404)
    # One at a time and the largest first, so that nothing else was on its way when the pull gave up.
    assert pull(modelpack, reference, "--jobs", "1").code == 3
    fake.faults.clear()
    fake.fail("GET", weights, status=503)

    result = pull(modelpack, reference, "--json", "--progress", "json")
    answer = result.json("pull")

    last = steps(result.stderr, "tiny-Q8_0.gguf")[-1]
    assert (last["state"], last["resumed"], last["retries"]) == ("done", 200_000, 1)
    assert answer["transfer"]["bytes_resumed"] == 200_000
    assert answer["transfer"]["retries"] == 1
    assert answer["transfer"]["bytes_received"] < answer["bytes_copied"]


def test_progress_tells_how_a_transfer_goes(modelpack: Command, fake: FakeRegistry, tmp_path: Path) -> None:
    weights = bytes(range(256)) * (40 << 12)  # 40 MiB, for two connections
    name = f"{fake.address}/team/large:v1"
    put_cncf_model(Store.open(tmp_path / "here"), name, weights)
    assert modelpack("push", name, "--store", tmp_path / "here").code == 0
    blob = f"blobs/{Digest.of(weights)}"
    fake.fail("GET", blob, cut_after=1 << 20)

    result = pull(modelpack, name, "--progress", "json", "--limit-rate", "12M")

    assert result.code == 0, result.stderr
    news = steps(result.stderr, "tiny-Q8_0.gguf")
    assert max(one["connections"] for one in news) == 2
    assert [one["state"] for one in news][-2:] == ["running", "done"]
    assert (news[-1]["done"], news[-1]["retries"], news[-1]["resumed"]) == (len(weights), 1, 0)
    assert all({"rate", "remaining"} <= one.keys() for one in news)


def test_a_slow_pull_is_as_slow_as_it_was_told_to_be(modelpack: Command, reference: str) -> None:
    begun = time.monotonic()
    result = pull(modelpack, reference, "--limit-rate", "100K")

    assert result.code == 0, result.stderr
    assert time.monotonic() - begun > 0.8 * len(WEIGHTS) / (100 << 10)


@pytest.mark.parametrize("rate", ["0", "fast", "10", "-5M", "1e9"])
def test_a_rate_that_is_none_is_a_usage_error(modelpack: Command, reference: str, rate: str) -> None:
    result = pull(modelpack, reference, f"--limit-rate={rate}")

    assert result.code == 2
    assert "write 500K, 10M or 1G" in result.stderr


def test_pull_puts_the_files_into_a_folder(modelpack: Command, reference: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    answer = pull(modelpack, reference, "--output", out, "--json").json("pull")

    assert (out / "tiny-Q8_0.gguf").read_bytes() == WEIGHTS
    assert sorted(answer["files"]) == sorted(str(out / name) for name in ("tiny-Q8_0.gguf", "LICENSE", "README.md"))
    assert sorted(path.name for path in out.iterdir()) == ["LICENSE", "README.md", "tiny-Q8_0.gguf"]
    again = pull(modelpack, reference, "--output", out)
    assert again.code == 0, again.stderr


def test_a_file_in_the_way_stops_the_pull_before_it_fetches(
    modelpack: Command, fake: FakeRegistry, reference: str, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "LICENSE").write_text("mine")

    result = pull(modelpack, reference, "--output", tmp_path / "out")

    assert result.code == 2
    assert "LICENSE exists already" in result.stderr
    assert (tmp_path / "out" / "LICENSE").read_text() == "mine"
    assert fake.count("GET", "blobs") <= 1  # the config


def test_a_push_to_a_second_repository_sends_no_weights(
    modelpack: Command, fake: FakeRegistry, reference: str, tmp_path: Path
) -> None:
    copy = f"{fake.address}/team/copy:v1"
    modelpack("tag", reference, copy, "--store", tmp_path / "here")
    fake.requests.clear()

    result = modelpack("push", copy, "--store", tmp_path / "here", "--json", "--progress", "json")
    answer = result.json("push")

    assert fake.count("PUT", "blobs/uploads") == 0
    assert answer["transfer"]["bytes_mounted"] == answer["bytes_copied"] > 0
    assert answer["transfer"]["bytes_resumed"] == 0
    told = steps(result.stderr, "tiny-Q8_0.gguf")
    assert {(one["mounted"], one["resumed"]) for one in told} == {(len(WEIGHTS), 0)}
    assert told[-1]["done"] == len(WEIGHTS)
    assert "mounted from another repository" in json.loads(result.stderr.splitlines()[-1])["message"]
    assert pull(modelpack, copy).code == 0


def test_a_token_server_at_another_site_is_refused_with_the_setting_that_allows_it(
    modelpack: Command, home: Path
) -> None:
    login = ("-u", "alice", "--password-stdin")
    with FakeRegistry(auth="token") as server, FakeRegistry(auth="token", realm=f"{server.url}/token") as fake:
        fake.tokens = server.tokens

        refused = modelpack("login", fake.address, *login, stdin="s3cret-canary\n")
        assert refused.code == 4
        assert 'config.toml: trusted_realms = ["ITS-HOST"]' in refused.stderr

        config = home / ".config/modelpack/config.toml"
        config.parent.mkdir(parents=True)
        config.write_text('trusted_realms = ["127.0.0.1"]\n')
        allowed = modelpack("login", fake.address, *login, stdin="s3cret-canary\n")
        assert allowed.code == 0, allowed.stderr


def test_trusted_realms_is_a_setting(modelpack: Command, home: Path) -> None:
    config = home / ".config/modelpack/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text('trusted_realms = ["auth.example.net"]\n')
    assert modelpack("list").code == 0
    config.write_text('trusted_realms = "auth.example.net"\n')
    result = modelpack("list", "--json")
    assert result.code == 2
    assert "trusted_realms is not a list of hosts" in json.loads(result.stdout)["error"]["message"]


@pytest.fixture
def variants(modelpack: Command, fake: FakeRegistry, tmp_path: Path) -> str:
    """Two variants in the store and the registry, and in the store a tag that only looks like a third."""
    reference, here = f"{fake.address}/team/variants:v1", ("--store", tmp_path / "author")
    built = modelpack("build", TINY_LLAMA, "-t", reference, "--quant", "Q8_0", "--quant", "Q4_0", *here)
    assert built.code == 0, built.stderr
    modelpack("tag", reference, f"{reference}-draft", *here)
    pushed = modelpack("push", reference, "--all-variants", *here, "--json").json("push")
    assert [one["reference"] for one in pushed["variants"]] == [f"{reference}-q4_0", f"{reference}-q8_0"]
    assert pushed["reference"] == reference
    return reference


def test_all_variants_are_pushed_and_one_is_pulled_by_its_quantization(
    modelpack: Command, fake: FakeRegistry, variants: str
) -> None:
    assert {tag for _, tag in fake.tags} == {"v1", "v1-q4_0", "v1-q8_0"}

    answer = pull(modelpack, variants, "--variant", "q4_0", "--json").json("pull")

    assert answer["reference"] == f"{variants}-q4_0"
    missing = pull(modelpack, variants, "--variant", "Q2_K")
    assert missing.code == 3
    assert "v1-q2_k" in missing.stderr


def test_a_variant_is_pulled_by_the_index_that_lists_it_and_only_if_it_is_what_it_is_called(
    modelpack: Command, fake: FakeRegistry, variants: str
) -> None:
    index = variants.replace(":v1", ":index")
    listed = [f"{variants}-q8_0", f"{variants}-q4_0"]
    assert modelpack("index", "create", index, *listed, "--remote").code == 0

    answer = pull(modelpack, index, "--variant", "Q4_0", "--json").json("pull")
    unknown = pull(modelpack, index, "--variant", "Q2_K")
    repository = "team/variants"
    fake.tags[repository, "v1-q4_0"] = fake.tags[repository, "v1-q8_0"]
    moved = pull(modelpack, index, "--variant", "Q4_0")

    assert answer["reference"] == f"{variants}-q4_0"
    assert "it lists: Q4_0, Q8_0" in unknown.stderr
    assert moved.code == 1
    assert "is Q8_0, not Q4_0" in moved.stderr
