"""The hub, through huggingface_hub's own client against a server on loopback."""

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fakes.hub import COMMIT, FakeHub, serve_hub

from modelpack import hub
from modelpack.errors import (
    AccessDeniedError,
    DigestMismatchError,
    HubUnavailableError,
    NotFoundError,
    UnsupportedError,
)
from modelpack.oci.reference import HubReference

REFERENCE = HubReference("org/tiny")
WEIGHTS = b"weights" * 100_000


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    import huggingface_hub.constants as constants

    # huggingface_hub reads its environment when it is imported, which may have been long ago.
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    files = {
        "config.json": b'{"architectures": ["LlamaForCausalLM"]}',
        "model.safetensors": WEIGHTS,
        "tokenizer.model": b"sp",
        "chat_template.jinja": b"{{ messages }}",
        "LICENSE.txt": b"Apache",
        "README.md": b"# Tiny",
        "pytorch_model.bin": b"pickle",
        "modeling_tiny.py": b"code",
        "onnx/model.safetensors": b"again",
        "1_Pooling/config.json": b"{}",
        ".gitattributes": b"x",
        "../escape.json": b"{}",
        "consolidated.safetensors": b"the same weights",
    }
    with serve_hub(FakeHub({"org/tiny": files})) as server:
        yield server


class CountingProgress:
    """Adds up what its steps are told."""

    def __init__(self) -> None:
        self.done = 0
        self.total: int | None = None

    def step(self, label: str, *, total: int | None = None, unit: str = "B") -> "CountingProgress":
        self.total = total
        return self

    def advance(self, amount: int) -> None:
        self.done += amount

    def note(self, message: str) -> None: ...

    def warn(self, message: str) -> None: ...

    def __enter__(self) -> "CountingProgress":
        return self

    def __exit__(self, *_: object) -> None: ...


def test_resolve_pins_a_revision_to_a_commit_and_its_date(fake: FakeHub) -> None:
    snapshot = hub.resolve(REFERENCE, endpoint=fake.endpoint)

    assert snapshot.commit == COMMIT
    assert snapshot.committed_at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    weights = next(file for file in snapshot.files if file.path == "model.safetensors")
    assert (weights.size, weights.sha256) == (len(WEIGHTS), hashlib.sha256(WEIGHTS).hexdigest())


def test_resolve_lists_neither_pickle_nor_code_nor_paths_that_escape(fake: FakeHub) -> None:
    snapshot = hub.resolve(REFERENCE, endpoint=fake.endpoint)

    assert [file.path for file in snapshot.files] == [
        "1_Pooling/config.json",
        "LICENSE.txt",
        "README.md",
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "tokenizer.model",
    ]


def test_fetch_brings_the_listed_files_of_the_commit_and_nothing_else(fake: FakeHub, tmp_path: Path) -> None:
    snapshot = hub.resolve(REFERENCE, endpoint=fake.endpoint)
    progress = CountingProgress()

    directory = hub.fetch(snapshot, tmp_path / "model", endpoint=fake.endpoint, progress=progress)

    fetched = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}
    assert fetched == {file.path for file in snapshot.files}
    assert (directory / "model.safetensors").read_bytes() == WEIGHTS
    assert not any(path.is_symlink() for path in directory.rglob("*"))
    assert sorted(fake.downloaded()) == [file.path for file in snapshot.files]
    assert progress.done == progress.total == sum(file.size for file in snapshot.files)


def test_a_second_fetch_takes_what_the_cache_has(fake: FakeHub, tmp_path: Path) -> None:
    snapshot = hub.resolve(REFERENCE, endpoint=fake.endpoint)
    hub.fetch(snapshot, tmp_path / "first", endpoint=fake.endpoint)
    fake.requests.clear()
    progress = CountingProgress()

    hub.fetch(snapshot, tmp_path / "second", endpoint=fake.endpoint, progress=progress)

    assert fake.downloaded() == []
    assert progress.done == progress.total


@pytest.mark.parametrize("path", ["model.safetensors", "config.json"])
def test_a_file_that_comes_damaged_is_fetched_once_more(fake: FakeHub, tmp_path: Path, path: str) -> None:
    fake.corrupt[path] = 1
    snapshot = hub.resolve(REFERENCE, endpoint=fake.endpoint)

    directory = hub.fetch(snapshot, tmp_path / "model", endpoint=fake.endpoint)

    assert (directory / path).read_bytes() == fake.repositories["org/tiny"][path]


def test_fetch_refuses_a_file_that_stays_damaged(fake: FakeHub, tmp_path: Path) -> None:
    fake.corrupt["model.safetensors"] = 2
    snapshot = hub.resolve(REFERENCE, endpoint=fake.endpoint)

    with pytest.raises(DigestMismatchError, match=r"model\.safetensors"):
        hub.fetch(snapshot, tmp_path / "model", endpoint=fake.endpoint)

    assert not (tmp_path / "model" / "model.safetensors").exists()


def test_a_gated_repository_is_denied_without_a_token_and_opens_with_it(fake: FakeHub) -> None:
    fake.gated.add("org/tiny")

    with pytest.raises(AccessDeniedError, match="gated"):
        hub.resolve(REFERENCE, endpoint=fake.endpoint)
    assert hub.resolve(REFERENCE, endpoint=fake.endpoint, token=fake.token).commit == COMMIT


def test_what_does_not_exist_is_not_found(fake: FakeHub) -> None:
    with pytest.raises(NotFoundError):
        hub.resolve(HubReference("org/nothing"), endpoint=fake.endpoint)
    with pytest.raises(NotFoundError, match="nightly"):
        hub.resolve(HubReference("org/tiny", "nightly"), endpoint=fake.endpoint)


def test_a_repository_of_pickles_is_refused(fake: FakeHub) -> None:
    fake.repositories["org/old"] = {"config.json": b"{}", "pytorch_model.bin": b"pickle"}

    with pytest.raises(UnsupportedError, match="pickled"):
        hub.resolve(HubReference("org/old"), endpoint=fake.endpoint)


def test_a_hub_that_fails_or_is_not_there_is_unavailable(fake: FakeHub) -> None:
    fake.status = 503
    with pytest.raises(HubUnavailableError, match="503"):
        hub.resolve(REFERENCE, endpoint=fake.endpoint)
    with pytest.raises(HubUnavailableError):
        hub.resolve(REFERENCE, endpoint="http://127.0.0.1:9")


def test_offline_a_snapshot_comes_from_the_cache(
    fake: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants as constants

    online = hub.resolve(REFERENCE, endpoint=fake.endpoint)
    hub.fetch(online, tmp_path / "first", endpoint=fake.endpoint)
    refs = tmp_path / "cache" / "models--org--tiny" / "refs"
    refs.mkdir(exist_ok=True)
    (refs / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    offline = hub.resolve(REFERENCE)
    directory = hub.fetch(offline, tmp_path / "second")

    assert offline.files == online.files
    assert (directory / "model.safetensors").read_bytes() == WEIGHTS
    with pytest.raises(HubUnavailableError, match="cache"):
        hub.resolve(HubReference("org/other"))
