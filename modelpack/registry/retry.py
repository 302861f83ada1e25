"""When to try again, and when to stop trying."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from modelpack.errors import RegistryUnavailableError

T = TypeVar("T")


class TransientError(RegistryUnavailableError):
    """An exchange failed in a way that may pass: a broken connection, a stall, 429, 5xx.

    ``retry_after`` is how many seconds the registry asked to wait, None when it did not say.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Retries:
    """Full-jitter exponential back-off: between tries, a random part of ``base * 2**n`` seconds, at most ``cap``."""

    attempts: int = 6  # without progress in between
    base: float = 0.25
    cap: float = 20.0
    patience: float = 120.0  # the longest Retry-After that is waited for
    sleep: Callable[[float], None] = time.sleep
    jitter: Callable[[], float] = random.random
    on_retry: Callable[[], None] = lambda: None

    def run(self, attempt: Callable[[], T]) -> T:
        """Call ``attempt`` until it raises no TransientError; raises the last one when the tries are used up."""
        backoff = Backoff(self)
        while True:
            try:
                return attempt()
            except TransientError as error:
                backoff.wait(error)


class Backoff:
    """The tries of one piece of work."""

    def __init__(self, retries: Retries) -> None:
        self._retries = retries
        self._failures = 0

    def progressed(self) -> None:
        """Something arrived: a long transfer over a bad line has all its tries again."""
        self._failures = 0

    def wait(self, error: TransientError) -> None:
        """Sleep before the next try, or raise ``error`` if there is none."""
        retries = self._retries
        self._failures += 1
        if self._failures >= retries.attempts:
            raise error
        pause = retries.jitter() * min(retries.cap, retries.base * 2.0 ** (self._failures - 1))
        if error.retry_after is not None:
            if error.retry_after > retries.patience:
                raise error
            pause = max(pause, error.retry_after)
        retries.on_retry()
        retries.sleep(pause)
