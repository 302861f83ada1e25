"""The models that ``serve`` offers: those in the store that the policy allows."""

from pathlib import Path

from modelpack import catalog
from modelpack.cli.app import App
from modelpack.cli.places import require_trusted
from modelpack.errors import NotFoundError
from modelpack.oci.reference import Reference
from modelpack.server.models import ModelEntry


class StoreCatalog:
    """Implements the server's Catalog over the store; ``only`` names what may be served, empty for all."""

    def __init__(self, app: App, only: tuple[Reference, ...] = ()) -> None:
        self._app = app
        self._only = {str(app.store.find(reference).reference.tagged) for reference in only}

    def list(self) -> list[ModelEntry]:
        return [
            ModelEntry(stored.reference.tagged, int(stored.model.created.timestamp()), str(stored.descriptor.digest))
            for stored in catalog.list_models(self._app.store)
            if not self._only or stored.reference.tagged in self._only
        ]

    def path(self, name: str) -> Path:
        """The weights of a model. Raises NotFoundError, and UntrustedError for what the policy does not allow."""
        stored = catalog.find_model(self._app.store, Reference.parse(name))
        if self._only and stored.reference.tagged not in self._only:
            raise NotFoundError(f"{name} is not served here")
        require_trusted(self._app, stored.reference, stored.descriptor)
        return catalog.weights_path(self._app.store, stored.model)
