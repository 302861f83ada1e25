"""The JSON Schemas that modelpack publishes, found in a wheel and in a checkout alike."""

import json
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).resolve().parent


def schema_path(name: str) -> Path:
    """The file of a schema, for example ``cncf/config`` or ``cli/build``.

    In a wheel the schemas lie inside the package; in a checkout at the top level, where the project keeps them.
    """
    for root in (_PACKAGE / "_schemas", _PACKAGE.parent / "schemas"):
        path = root / f"{name}.json"
        if path.is_file():
            return path
    raise FileNotFoundError(f"no schema {name!r} in this installation")


@cache
def load_schema(name: str) -> dict[str, Any]:
    """The schema as parsed JSON (draft 2020-12)."""
    schema: dict[str, Any] = json.loads(schema_path(name).read_text(encoding="utf-8"))
    return schema


def prepare() -> None:
    """Load what ``violations`` takes, in good time: while something else is waited for it costs nothing."""
    import_module("jsonschema")


def violations(name: str, document: object) -> list[str]:
    """What in ``document`` breaks the schema, one sentence each; empty when it fits."""
    import jsonschema  # 40 ms: only commands that validate pay for it

    validator = jsonschema.Draft202012Validator(load_schema(name))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]
