"""A server for the tests: ``serve_models.py '{"models": {NAME: PATH}, "options": {...}, "worker": {...}}'``.

Prints where it serves once it is ready, and "interrupted" when SIGINT ended it.
"""

import json
import sys
from pathlib import Path

from modelpack.engine.worker import WorkerOptions
from modelpack.errors import NotFoundError, UntrustedError
from modelpack.oci.reference import Reference
from modelpack.server.app import ServerOptions, serve
from modelpack.server.models import ModelEntry


class Models:
    def __init__(self, paths: dict[str, str]) -> None:
        self._paths = paths

    def list(self) -> list[ModelEntry]:
        return [ModelEntry(name, created=1_700_000_000, digest="sha256:" + "0" * 64) for name in sorted(self._paths)]

    def path(self, name: str) -> Path:
        Reference.parse(name)
        if name not in self._paths:
            raise NotFoundError(f"there is no model {name!r}")
        if name == "untrusted":
            raise UntrustedError("nobody signed it")
        return Path(self._paths[name])


settings = json.loads(sys.argv[1])
if "unix_socket" in settings["options"]:
    settings["options"]["unix_socket"] = Path(settings["options"]["unix_socket"])
options = ServerOptions(**settings["options"], worker=WorkerOptions(threads=1, **settings["worker"]))
try:
    serve(Models(settings["models"]), options, on_ready=lambda where: print(where, flush=True))
except KeyboardInterrupt:
    print("interrupted", flush=True)
