"""Shards side by side in the store: links that are right, made again where they are not, gone with their blobs."""

import os
from pathlib import Path

import pytest

from modelpack.catalog import weights_path
from modelpack.convert import Checkpoint, plan_conversion, run_conversion
from modelpack.errors import AccessDeniedError, UnsupportedError
from modelpack.formats import FileKind, Model, ModelFile
from modelpack.formats.model import parse_rfc3339
from modelpack.gguf_shards import plan_shards, read_whole_header, write_shards
from modelpack.oci.digest import Digest
from modelpack.store import Store
from modelpack.store.shards import forget_broken

TINY = Path(__file__).parent.parent.parent / "data" / "tiny-llama"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    run_conversion(plan_conversion(Checkpoint.open(TINY), name="tiny"), path)
    return path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


@pytest.fixture
def shards(store: Store, whole: Path, tmp_path: Path) -> list[Digest]:
    paths = write_shards(whole, plan_shards(whole, 1_000_000), tmp_path / "m")
    return [store.import_file(path, "application/octet-stream").digest for path in paths]


def model(names: list[str], digests: list[Digest]) -> Model:
    files = (ModelFile(name, FileKind.WEIGHT, digest, 1) for name, digest in zip(names, digests, strict=True))
    return Model("tiny", tuple(files), parse_rfc3339(None))


def test_a_link_that_points_elsewhere_or_is_missing_is_made_again(store: Store, shards: list[Digest]) -> None:
    first = store.weights_path(shards)
    second = first.with_name("model-00002-of-00002.gguf")
    for damage in (second.unlink, lambda: (second.unlink(), second.symlink_to("/etc/hostname"))):
        damage()
        assert store.weights_path(shards) == first
        assert second.resolve() == store.blob_path(shards[1]).resolve()
        assert read_whole_header(first).parameters == 918_784


def test_a_store_that_cannot_be_written_says_so(store: Store, shards: list[Digest], monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "symlink", refuse)
    with pytest.raises(AccessDeniedError, match="needs links in it first"):
        store.weights_path(shards)
    assert not list((store.root / "shards").iterdir())


def test_leftovers_stop_no_clean_up(store: Store, shards: list[Digest]) -> None:
    kept = store.weights_path(shards).parent
    folder = kept.parent
    (folder / "stray").write_text("")
    (folder / ".half").mkdir()
    forget_broken(folder)
    assert {path.name for path in folder.iterdir()} == {kept.name, "stray"}
    store.blob_path(shards[1]).unlink()
    forget_broken(folder)
    assert {path.name for path in folder.iterdir()} == {"stray"}


def test_shards_in_any_order_are_the_model(store: Store, shards: list[Digest]) -> None:
    names = ["m-00002-of-00002.gguf", "m-00001-of-00002.gguf"]
    assert read_whole_header(weights_path(store, model(names, shards[::-1]))).parameters == 918_784


def test_two_models_in_one_artifact_are_not_taken_for_one(store: Store, shards: list[Digest], whole: Path) -> None:
    digest = store.import_file(whole, "application/octet-stream").digest
    with pytest.raises(UnsupportedError, match="2 files of weights, not the shards of one"):
        weights_path(store, model(["a.gguf", "b.gguf"], [digest, digest]))
