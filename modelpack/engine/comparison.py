"""Two models side by side: how far a variant's predictions are from those of the model it was made from.

The statistics of llama-perplexity (tools/perplexity of llama.cpp), to its printed digits: its base model's
log-probabilities pass through 16 bits on their way into a file of many gigabytes, so here they are rounded the same
way, chunk by chunk and without the file. This module is both sides: the caller's function and the program of the child.
"""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelpack.engine.task import Advance, Unfit, run_task, serve_task
from modelpack.errors import NotFoundError, UnsupportedError
from modelpack.gguf_header import GGUFHeader
from modelpack.gguf_shards import read_whole_header
from modelpack.progress import SILENT, Progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Doubles = NDArray[np.float64]

# Of tools/perplexity/perplexity.cpp: what lies further below the best logit counts as this far, or not at all.
_RANGE = 16.0
_STEPS = 65535.0
# Numbers in a block of rows: a vocabulary of 262,144 tokens has 16 rows in one, 16 MiB.
_BLOCK = 1 << 22


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a variant lost, over ``tokens`` predictions of a text's next token."""

    perplexity: float
    base_perplexity: float
    """As llama-perplexity has it: tokens more than 16 nats below the best one count as 16, so it flatters a base model
    that is far from the text."""
    mean_kld: float
    """Kullback-Leibler divergence from the base model, in nats; 0 for equal predictions."""
    p99_kld: float
    """99 of 100 predictions diverge less."""
    same_top: float
    """Share of predictions, 0 to 1, whose most likely token is the base model's."""
    tokens: int
    context: int
    """Tokens in a chunk; only the second half of each is scored."""


def compare_models(
    base: Path,
    variant: Path,
    text: str,
    *,
    context: int | None = None,
    threads: int | None = None,
    on_gpu: bool = False,
    timeout: float = 24 * 3600,
    progress: Progress = SILENT,
) -> Comparison:
    """Compare two GGUF files of one model over ``text``, both loaded in one child.

    Raises NotFoundError, InvalidGGUFError, UnsupportedError for models that predict no tokens, InvalidInputError for a
    text of fewer than two chunks and for models of different vocabularies, WorkerError.
    """
    for model in (base, variant):
        if not model.is_file():
            raise NotFoundError(f"no model file at {model}")
        if _embeds(read_whole_header(model)):
            raise UnsupportedError(f"{model.name} embeds texts; only models that predict tokens can be compared")
    configuration = {
        "base": str(base.absolute()),
        "variant": str(variant.absolute()),
        "text": text,
        "context": context,
        "threads": threads,
        "on_gpu": on_gpu,
    }
    answer = run_task(
        __name__,
        configuration,
        label=f"compare {variant.name}",
        name=variant.name,
        timeout=timeout,
        progress=progress,
    )
    return Comparison(**answer)


def _embeds(header: GGUFHeader) -> bool:
    return f"{header.architecture}.pooling_type" in header.metadata


@dataclass
class _Statistics:
    """Sums over all predictions, in double precision; the divergences one by one, for the percentile."""

    loss: float = 0.0
    base_loss: float = 0.0
    same_top: int = 0
    divergences: "list[Floats] | None" = None

    def add(self, base: "Floats", variant: "Floats", following: "NDArray[np.int64]") -> None:
        """One block of predictions: logits of both models, shape (positions, vocabulary), and the tokens that came."""
        import numpy as np

        rows = np.arange(len(following))
        base_log = _as_stored(base)
        best = variant.max(axis=1, keepdims=True)
        log_sum = np.log(_sums(_exp(variant - best)))[:, None].astype(np.float32)

        self.loss += float((best[:, 0] + log_sum[:, 0] - variant[rows, following]).sum(dtype=np.float64))
        self.base_loss -= float(base_log[rows, following].sum(dtype=np.float64))
        self.same_top += int((variant.argmax(axis=1) == base_log.argmax(axis=1)).sum())
        terms = _exp(base_log) * (base_log - variant + (best + log_sum))
        terms[base_log <= -_RANGE] = 0
        self.divergences = [*(self.divergences or []), _sums(terms).astype(np.float32)]

    def summarize(self, context: int) -> dict[str, Any]:
        import numpy as np

        divergences = np.sort(np.concatenate(self.divergences or []))
        count = len(divergences)
        # Interpolated in single precision, like there.
        place = np.float32(0.99) * np.float32(count - 1)
        below = int(place)
        rest = np.float32(place - below)
        p99 = (1 - rest) * divergences[below] + rest * divergences[min(below + 1, count - 1)]
        return {
            "perplexity": float(np.exp(self.loss / count)),
            "base_perplexity": float(np.exp(self.base_loss / count)),
            "mean_kld": float(divergences.sum(dtype=np.float64) / count),
            "p99_kld": float(p99),
            "same_top": self.same_top / count,
            "tokens": count,
            "context": context,
        }


def _as_stored(logits: "Floats") -> "Floats":
    """Log-probabilities after they went through 16 bits, as in the base file of llama-perplexity."""
    import numpy as np

    best = logits.max(axis=1, keepdims=True)
    least = np.maximum(logits.min(axis=1, keepdims=True), best - np.float32(_RANGE))
    log_sum = np.log(_sums(_exp(logits - best)))[:, None].astype(np.float32)
    floor = least - best - log_sum
    scale = (best - least) / np.float32(_STEPS)
    with np.errstate(divide="ignore"):
        inverse = np.where(scale > 0, 1 / scale, np.float32(0)).astype(np.float32)
    steps = np.rint(inverse * (np.maximum(logits, least) - least))
    stored: Floats = scale * steps + floor
    return stored


def _exp(values: "Floats") -> "Floats":
    """Correctly rounded, as the C library's; numpy's own in single precision is a unit off here and there."""
    import numpy as np

    return np.exp(values.astype(np.float64)).astype(np.float32)


def _sums(rows: "Floats") -> "Doubles":
    import numpy as np

    sums: Doubles = rows.sum(axis=1, dtype=np.float64)
    return sums


def _work(configuration: dict[str, Any], advance: Advance) -> dict[str, Any]:
    import numpy as np

    from modelpack.engine.entry import take_log
    from modelpack.engine.inference import Inference

    take_log(import_module("llama_cpp"))
    options = {"threads": configuration["threads"], "on_gpu": configuration["on_gpu"]}
    base = Inference(configuration["base"], context=configuration["context"], **options)
    variant = Inference(configuration["variant"], context=base.context, **options)
    tokens = base.tokenize(configuration["text"])
    if base.vocabulary_size != variant.vocabulary_size or tokens != variant.tokenize(configuration["text"]):
        raise Unfit("the two models read the text as different tokens: they are not variants of one model")
    chunks = base.chunks(tokens)
    # The first half of a chunk is context only; its last position predicts what no longer belongs to it.
    first = base.context // 2
    block = max(_BLOCK // base.vocabulary_size, 1)
    statistics = _Statistics()
    for chunk in chunks:
        logits = base.run(chunk, outputs_from=first)[:-1], variant.run(chunk, outputs_from=first)[:-1]
        following = np.array(chunk[first + 1 :], np.int64)
        for start in range(0, len(following), block):
            part = slice(start, start + block)
            statistics.add(logits[0][part], logits[1][part], following[part])
        advance(len(chunks))
    summary = statistics.summarize(base.context)
    if not np.isfinite(list(summary.values())).all():
        raise RuntimeError("a model's predictions are not numbers: its weights are damaged")
    return summary


if __name__ == "__main__":
    serve_task(_work)
