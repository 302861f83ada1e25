"""Whether llama.cpp loads what becomes of a checkpoint, and tokenizes as the checkpoint does: asked, where it can be,
while the weights are being written.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Self

from modelpack.convert import Checkpoint, limits, parity
from modelpack.convert.conversion import write_skeleton
from modelpack.engine.tokenize import tokenize
from modelpack.errors import (
    ConversionError,
    TokenizerMismatchError,
    WorkerCrashedError,
    WorkerError,
    WorkerTimeoutError,
)
from modelpack.gguf_header import ArraySummary
from modelpack.gguf_shards import read_whole_header
from modelpack.progress import Progress
from modelpack.upstream import UpstreamPlan

if TYPE_CHECKING:
    from modelpack.converter import AnyPlan


class TokenizerGate:
    """A context manager that ends with the conversion. Of our own plan all but the weights is known before any is read;
    of upstream's it is what upstream wrote.
    """

    def __init__(self, conversion: "AnyPlan", checkpoint: Checkpoint, work: Path) -> None:
        self._checkpoint = checkpoint
        self._pool = ThreadPoolExecutor(1)
        self._limits: Future[list[str]] | None = None
        if not isinstance(conversion, UpstreamPlan):
            skeleton = work / "skeleton.gguf"
            write_skeleton(conversion, skeleton)
            pre, rows = conversion.metadata["tokenizer.ggml.pre"], len(conversion.metadata["tokenizer.ggml.tokens"])
            self._limits = self._pool.submit(_compare, checkpoint, skeleton, pre, rows)

    def look(self, *, is_allowed: bool = False) -> None:
        """Raises what is known to be wrong by now, other tokens only where none may be. Does not wait."""
        if self._limits and self._limits.done():
            try:
                self._limits.result()
            except TokenizerMismatchError:
                if not is_allowed:
                    raise

    def mismatch(self, converted: Path, *, is_allowed: bool, progress: Progress) -> str | None:
        """How many texts llama.cpp tokenizes otherwise than the checkpoint's own tokenizer, where any may be.

        ``converted`` is what the conversion wrote. Raises TokenizerMismatchError where none may be, and ConversionError
        for what llama.cpp does not load.
        """
        try:
            for limit in self._limits.result() if self._limits else _compare_file(self._checkpoint, converted):
                progress.warn(limit)
        except TokenizerMismatchError as mismatch:
            if not is_allowed:
                raise
            progress.warn(str(mismatch))
            return mismatch.share
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()


def _compare_file(checkpoint: Checkpoint, converted: Path) -> list[str]:
    metadata = read_whole_header(converted).metadata
    tokens = metadata.get("tokenizer.ggml.tokens")
    rows = tokens.length if isinstance(tokens, ArraySummary) else None
    return _compare(checkpoint, converted, str(metadata.get("tokenizer.ggml.pre")), rows)


def _compare(checkpoint: Checkpoint, converted: Path, pre: str, rows: int | None) -> list[str]:
    tried = parity.trials(checkpoint, pre=pre, rows=rows)
    try:
        actual = tokenize(
            converted, [one.text for one in tried], has_tensors=True, name="what becomes of the checkpoint"
        )
    except (WorkerCrashedError, WorkerTimeoutError):
        raise
    except WorkerError as error:
        raise ConversionError(str(error)) from error
    return parity.compare(tried, actual, cause=lambda: limits.normalization(checkpoint))
