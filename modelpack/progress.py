"""How long work tells what it does: news goes sideways to a Progress, answers go up as results."""

from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self, runtime_checkable


class Step(Protocol):
    """One piece of work with a beginning and an end; a context manager."""

    def advance(self, amount: int) -> None:
        """Add ``amount`` (bytes, or what else the step counts) to what is done."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class Going:
    """How a transfer goes, beside how far it is: what carries this blob now, and what the whole command has met."""

    connections: int
    resumed: int
    """Bytes of this blob that did not have to come: an earlier try or another process had brought them."""
    retries: int
    """Requests of all blobs that were tried again."""
    mounted: int = 0
    """Bytes of this blob that did not have to come: another repository of the registry had them."""


@runtime_checkable
class TransferStep(Protocol):
    """A Step that wants to know how its transfer goes."""

    def tell(self, going: Going) -> None:
        """Called before each ``advance``, and when all is there."""


class Progress(Protocol):
    """Receives the news of one command. Implementations must be safe to call from several threads."""

    def step(self, label: str, *, total: int | None = None, unit: str = "B") -> Step:
        """Begin a step of ``total`` units, unknown when None."""

    def note(self, message: str) -> None:
        """Something a person may want to know."""

    def warn(self, message: str) -> None:
        """Something a person must not miss."""


class _SilentStep:
    def advance(self, amount: int) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class _Silent:
    def step(self, label: str, *, total: int | None = None, unit: str = "B") -> Step:  # noqa: ARG002
        return _SilentStep()

    def note(self, message: str) -> None:
        pass

    def warn(self, message: str) -> None:
        pass


SILENT: Progress = _Silent()
