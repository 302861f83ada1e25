"""Which models `serve REF...` offers: those named, and nothing else of the same name."""

from pathlib import Path

import pytest
from fakes.artifacts import put_cncf_model

from modelpack.cli.app import App
from modelpack.cli.models import StoreCatalog
from modelpack.cli.settings import load_settings
from modelpack.errors import ModelpackError, NotFoundError, UntrustedError
from modelpack.oci.reference import Reference
from modelpack.progress import SILENT

NAME = "registry.example.com/team/tiny"


@pytest.fixture
def app(tmp_path: Path) -> App:
    settings = load_settings({"HOME": str(tmp_path)}, store=str(tmp_path / "store"))
    return App(settings, json_output=False, progress=SILENT)


def put(app: App, name: str, weights: bytes) -> str:
    """The model's digest."""
    put_cncf_model(app.store, name, weights)
    return str(app.store.find(Reference.parse(name)).descriptor.digest)


def is_served(catalog: StoreCatalog, name: str) -> bool:
    try:
        catalog.path(name)
    except UntrustedError:
        return True  # it came to the question whether it may run: nobody signed it
    except NotFoundError:
        return False
    return True


@pytest.mark.parametrize("pinned", [False, True], ids=["by tag", "by digest"])
def test_only_what_was_named_is_served(app: App, pinned: bool):
    new, old = put(app, f"{NAME}:v2", b"GGUF new"), put(app, f"{NAME}:v1", b"GGUF old")
    named = f"{NAME}@{old}" if pinned else f"{NAME}:v1"
    catalog = StoreCatalog(app, (Reference.parse(named),))

    served = {
        name: is_served(catalog, name)
        for name in (
            f"{NAME}:v1",
            f"{NAME}@{old}",
            f"{NAME}:v1@{old}",
            f"{NAME}:v2",
            f"{NAME}@{new}",
            f"{NAME}:v1@{new}",
        )
    }

    assert [served[name] for name in served] == [True, True, True, False, False, False]
    assert [(model.name, model.digest) for model in catalog.list()] == [(named, old)]


def test_a_tag_is_served_as_what_it_names_now_and_a_digest_as_what_it_was(app: App):
    old = put(app, f"{NAME}:v1", b"GGUF old")
    by_tag = StoreCatalog(app, (Reference.parse("tiny:v1"),))
    by_digest = StoreCatalog(app, (Reference.parse(f"{NAME}:v1@{old}"),))
    new = put(app, f"{NAME}:v1", b"GGUF new")

    assert [model.digest for model in by_tag.list()] == [new]
    assert (is_served(by_tag, "tiny:v1"), is_served(by_tag, f"{NAME}@{old}")) == (True, False)
    assert [model.digest for model in by_digest.list()] == [old]
    assert (is_served(by_digest, f"{NAME}:v1"), is_served(by_digest, f"{NAME}@{old}")) == (False, True)


def test_a_tag_that_is_gone_is_not_replaced_by_a_longer_name(app: App):
    put(app, "team/tiny:v1", b"GGUF")
    catalog = StoreCatalog(app, (Reference.parse("team/tiny:v1"),))
    put(app, f"{NAME}:v1", b"GGUF other")
    app.store.remove(Reference.parse("team/tiny:v1"))

    assert catalog.list() == []
    assert not is_served(catalog, "team/tiny:v1")


def test_without_a_list_all_is_served_and_a_missing_name_is_known_at_the_start(app: App):
    put(app, f"{NAME}:v1", b"GGUF")

    assert [model.name for model in StoreCatalog(app).list()] == [f"{NAME}:v1"]
    assert is_served(StoreCatalog(app), f"{NAME}:v1")
    with pytest.raises(ModelpackError):
        StoreCatalog(app, (Reference.parse("nothing:v1"),))
