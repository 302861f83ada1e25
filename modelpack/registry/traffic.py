"""What goes over the wire, counted; and slowed down, where a limit is set."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator

_PIECE = 1 << 20
_SMALLEST_PIECE = 4 << 10
# A limit may be overdrawn by what would have passed in this many seconds of silence.
_BURST = 0.25


class Traffic:
    """The bodies of all requests to one registry and to where it sends us, every try counted.

    ``rate_limit`` (bytes a second) is for all connections together. Safe to use from several threads.
    """

    def __init__(
        self,
        rate_limit: int | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.bytes_received = 0
        self.bytes_sent = 0
        self.retries = 0
        # Small pieces under a low limit: a connection must not look dead between two of them.
        self.piece = max(_SMALLEST_PIECE, min(_PIECE, rate_limit // 8)) if rate_limit else _PIECE
        self._rate_limit = rate_limit
        self._clock, self._sleep = clock, sleep
        self._free_at = 0.0
        self._lock = threading.Lock()

    @property
    def is_limited(self) -> bool:
        """Whether somebody wants it to be slow."""
        return self._rate_limit is not None

    def received(self, amount: int) -> None:
        """So many bytes have come. Returns when the next may be asked for."""
        with self._lock:
            self.bytes_received += amount
        self._hold_back(amount)

    def sending(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The same chunks, none larger than ``piece``, each at its time."""
        for chunk in chunks:
            for start in range(0, len(chunk), self.piece):
                piece = chunk if len(chunk) <= self.piece else chunk[start : start + self.piece]
                self._hold_back(len(piece))
                yield piece
                with self._lock:
                    self.bytes_sent += len(piece)

    def retried(self) -> None:
        with self._lock:
            self.retries += 1

    def _hold_back(self, amount: int) -> None:
        if not self._rate_limit:
            return
        with self._lock:
            now = self._clock()
            self._free_at = max(self._free_at, now - _BURST) + amount / self._rate_limit
            pause = self._free_at - now
        if pause > 0:
            self._sleep(pause)
