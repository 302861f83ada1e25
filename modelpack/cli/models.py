"""The models that ``serve`` offers: those in the store that the policy allows."""

from collections.abc import Iterator
from pathlib import Path

from modelpack import catalog
from modelpack.cli.app import App
from modelpack.cli.places import require_trusted
from modelpack.errors import InvalidContentError, NotFoundError, UnsupportedError
from modelpack.oci.reference import Reference
from modelpack.server.models import ModelEntry


class StoreCatalog:
    """Implements the server's Catalog over the store; ``only`` names what may be served, empty for all.

    A name with a tag means what the tag names at each request, one with a digest always the same.
    """

    def __init__(self, app: App, only: tuple[Reference, ...] = ()) -> None:
        self._app = app
        self._only = tuple(dict.fromkeys(app.store.find(reference).reference for reference in only))

    def list(self) -> list[ModelEntry]:
        models = self._chosen() if self._only else catalog.list_models(self._app.store)
        return [
            ModelEntry(str(stored.reference), int(stored.model.created.timestamp()), str(stored.descriptor.digest))
            for stored in models
        ]

    def path(self, name: str) -> Path:
        """The weights of a model. Raises NotFoundError, and UntrustedError for what the policy does not allow."""
        stored = catalog.find_model(self._app.store, Reference.parse(name))
        if self._only and _identity(stored) not in map(_identity, self._chosen()):
            raise NotFoundError(f"{name} is not served here")
        require_trusted(self._app, stored.reference, stored.descriptor)
        return catalog.weights_path(self._app.store, stored.model)

    def _chosen(self) -> Iterator[catalog.StoredModel]:
        """What is still there of what may be served."""
        for reference in self._only:
            try:
                stored = catalog.find_model(self._app.store, reference)
            except (NotFoundError, UnsupportedError, InvalidContentError):
                continue
            if stored.reference == reference:  # and not one whose name ends so
                yield stored


def _identity(stored: catalog.StoredModel) -> tuple[str, str]:
    return stored.reference.name, str(stored.descriptor.digest)
