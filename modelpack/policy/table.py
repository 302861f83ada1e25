"""A TOML table that is read strictly: what is missing, of another type or left over is an error that says where."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NoReturn, TypeVar

from modelpack.errors import MalformedPolicyError

T = TypeVar("T")

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", re.ASCII)
"""What keys and identities may be called."""


class Table:
    """A table that is emptied field by field; what is left at the end was not known."""

    def __init__(self, content: Mapping[str, Any], where: str) -> None:
        self.content = dict(content)
        self.where = where

    def __contains__(self, name: str) -> bool:
        return name in self.content

    def refuse(self, reason: str) -> NoReturn:
        raise MalformedPolicyError(f"{self.where}: {reason}")

    def take(self, name: str, kind: type[T]) -> T:
        if name not in self.content:
            self.refuse(f"{name!r} is missing")
        value = self.content.pop(name)
        # bool is an int to Python, and nobody means "threshold = true".
        if type(value) is not kind:
            self.refuse(f"{name!r} is {value!r:.60}, not of type {kind.__name__}")
        return value

    def optional(self, name: str, kind: type[T]) -> T | None:
        return self.take(name, kind) if name in self.content else None

    def choice(self, name: str, choices: tuple[Any, ...], default: Any) -> Any:
        value = self.optional(name, str) if name in self.content else default
        if value not in choices:
            self.refuse(f"{name!r} is {value!r:.60}, not one of {', '.join(choices)}")
        return value

    def time(self, name: str) -> datetime | None:
        value = self.optional(name, datetime)
        if value is not None and value.tzinfo is None:
            self.refuse(f"{name!r} has no time zone; write 2027-12-31T00:00:00Z")
        try:
            return value.astimezone(UTC) if value else None
        except OverflowError:
            self.refuse(f"{name!r} is not in the years 1 to 9999")

    def texts(self, name: str) -> tuple[str, ...]:
        values = self.take(name, list)
        if not values or not all(isinstance(value, str) for value in values) or len(set(values)) != len(values):
            self.refuse(f"{name!r} is not a list of different strings")
        return tuple(values)

    def table(self, name: str) -> "Table":
        return Table(self.optional(name, dict) or {}, f"{self.where}: [{name}]")

    def named_tables(self, name: str) -> "list[tuple[str, Table]]":
        tables = []
        for key, content in (self.optional(name, dict) or {}).items():
            if not NAME.fullmatch(key) or not isinstance(content, dict):
                self.refuse(f"[{name}] has {key!r:.80}, not a named table (letters, digits, - and _)")
            tables.append((key, Table(content, f"{self.where}: [{name}.{key}]")))
        return tables

    def tables(self, name: str) -> "list[Table]":
        contents = self.optional(name, list) or []
        if not all(isinstance(content, dict) for content in contents):
            self.refuse(f"{name!r} is not a list of tables, [[{name}]]")
        return [Table(content, f"{self.where}: [[{name}]] {index}") for index, content in enumerate(contents, start=1)]

    def done(self) -> None:
        for name in self.content:
            self.refuse(f"unknown field {name!r:.80}")
