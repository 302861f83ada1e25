"""Getting a file onto the disk while it is still being written, so that the sync at its end has little left to do.

A gigabyte that waits in the page cache for its one fsync takes half a second on a fast disk, many on a slow one, in
which nothing else moves.
"""

import contextlib
import logging
import os
import threading
from types import TracebackType
from typing import Self

_log = logging.getLogger(__name__)

_EVERY = 64 << 20


class Writeback:
    """Syncs an open file on a thread of its own whenever another 64 MiB were written. A context manager.

    The kernel tells once that a sync failed, forgets what it could not write, and goes on showing it to readers. So
    whoever leaves without another error, or with one of the disk, gets this one, and the file is emptied: the next try
    shall not find what no disk holds.
    """

    def __init__(self, file: int, *, every: int = _EVERY) -> None:
        self._file = file
        self._every = every
        self._changed = threading.Condition()
        self._unsynced = 0
        self._is_over = False
        self._failure: OSError | None = None
        self._thread: threading.Thread | None = None

    def wrote(self, amount: int) -> None:
        """So many bytes more are in the file, wherever. From any thread."""
        with self._changed:
            self._unsynced += amount
            if self._unsynced < self._every or self._is_over:
                return
            if self._thread is None:
                self._start()
            self._changed.notify()

    def _start(self) -> None:
        # A copy of the descriptor, for a thread that is left behind in a sync.
        file = os.dup(self._file)
        thread = threading.Thread(target=self._run, args=(file,), name="modelpack-sync", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # as many threads as the system allows: then the end has more to sync
            os.close(file)
            self._unsynced = 0
            _log.info("no thread to sync a file with: %s", error)
        else:
            self._thread = thread

    def _run(self, file: int) -> None:
        try:
            while self._is_due():
                os.fsync(file)
        except OSError as error:
            self._failure = error
            _log.warning("the disk does not keep what is written: %s", error)
            with contextlib.suppress(OSError):
                os.ftruncate(file, 0)
        finally:
            os.close(file)

    def _is_due(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._is_over or self._unsynced >= self._every)
            self._unsynced = 0
            return not self._is_over

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._is_over = True
            self._changed.notify()
        if error is None and self._thread is not None:
            self._thread.join()
        if self._failure is not None and (error is None or isinstance(error, OSError)):
            raise self._failure
