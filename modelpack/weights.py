"""The weights of a variant: quantized as asked, with an importance matrix or without, then measured against their base.

Everything here works on GGUF files; where they come from and what becomes of them is the build's business.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from modelpack.engine.comparison import Comparison, compare_models
from modelpack.engine.imatrix import compute_imatrix
from modelpack.engine.task import read_text
from modelpack.errors import InvalidInputError, UnsupportedError
from modelpack.file_digest import sha256_of
from modelpack.gguf_header import GGUFHeader
from modelpack.gguf_shards import read_whole_header
from modelpack.imatrix import ImportanceMatrix
from modelpack.oci.digest import Digest
from modelpack.progress import SILENT, Progress
from modelpack.quality import CALIBRATION_TEXT, EVALUATION_TEXT, SMALL, Gates
from modelpack.quantize import PLAIN_RECIPE, Quantization, Recipe, quantize

BUILTIN = "builtin"
_BUILTIN_DATASET = "modelpack calibration text"


@dataclass(frozen=True, slots=True)
class WeightsOptions:
    """How variants are quantized, and what they must reach."""

    recipe: Recipe = PLAIN_RECIPE
    imatrix: Path | None = None
    """An importance matrix, GGUF or legacy."""
    imatrix_text: str | None = None
    """Compute one on this file, or on the built-in text (``builtin``)."""
    gates: Gates = field(default_factory=Gates)

    @property
    def has_imatrix(self) -> bool:
        return self.imatrix is not None or self.imatrix_text is not None


@dataclass(frozen=True, slots=True)
class Imatrix:
    """An importance matrix that is at hand, and the digest of its file."""

    path: Path
    digest: Digest


@dataclass(frozen=True, slots=True)
class Weights:
    """How a variant's weights came out. ``comparison`` is with the base, None where nothing was to be measured."""

    fallbacks: tuple[str, ...] = ()
    comparison: Comparison | None = None
    imatrix: Digest | None = None

    @property
    def annotations(self) -> dict[str, str]:
        """What the artifact says of it."""
        annotations = {"dev.modelpack.imatrix": str(self.imatrix)} if self.imatrix else {}
        if self.comparison:
            annotations |= quality_annotations(self.comparison)
        return annotations


def check_options(options: WeightsOptions, quantizations: Sequence[Quantization]) -> None:
    """Before any work: what can only fail later. Raises UnsupportedError, InvalidInputError, NotFoundError."""
    if options.imatrix and options.imatrix_text:
        raise InvalidInputError("an importance matrix is either given or computed, not both")
    unbuilt = set(options.gates.by_quantization) - {quantization.name for quantization in quantizations}
    if unbuilt and quantizations:
        raise InvalidInputError(f"--gate names {min(unbuilt)}, which is not built here")
    for quantization in quantizations:
        if quantization.needs_importance_matrix and not options.has_imatrix:
            raise UnsupportedError(
                f"{quantization.name} needs an importance matrix: without one a model of so few bits is useless"
            )
        if not options.gates.is_empty:
            options.gates.of(quantization.name, SMALL)
    if options.imatrix:
        ImportanceMatrix.load(options.imatrix)
    if options.imatrix_text and options.imatrix_text != BUILTIN:
        read_text(Path(options.imatrix_text))


def obtain_imatrix(options: WeightsOptions, base: Path, work: Path, *, progress: Progress = SILENT) -> Imatrix | None:
    """The importance matrix that the options ask for, computed on ``base`` if need be, into ``work``.

    A computed one depends on the processor in its last digits: for the same bytes everywhere, keep and name the file.
    Raises InvalidContentError, InvalidInputError, WorkerError.
    """
    if options.imatrix:
        path = options.imatrix
    elif options.imatrix_text:
        path = work / "imatrix.gguf"
        is_builtin = options.imatrix_text == BUILTIN
        text = CALIBRATION_TEXT if is_builtin else Path(options.imatrix_text)
        dataset = _BUILTIN_DATASET if is_builtin else text.name
        compute_imatrix(base, read_text(text), path, dataset=dataset, progress=progress)
    else:
        return None
    with path.open("rb") as file:
        return Imatrix(path, Digest.from_hex(sha256_of(file.fileno())[0]))


def make_weights(
    base: Path,
    target: Path,
    quantization: Quantization,
    *,
    options: WeightsOptions,
    imatrix: Imatrix | None = None,
    progress: Progress = SILENT,
) -> Weights:
    """Quantize ``base`` to ``target``, and measure it if the options have gates.

    Raises what quantizing and comparing raise, and CheckFailedError for weights that do not pass their gate.
    """
    path = imatrix.path if imatrix else None
    result = quantize(base, target, quantization, recipe=options.recipe, imatrix=path, progress=progress)
    comparison = None
    if not options.gates.is_empty:
        comparison = compare_models(base, target, read_text(EVALUATION_TEXT), progress=progress)
        gate = options.gates.of(quantization.name, read_whole_header(base).parameters)
        gate.check(comparison, quantization.name)
    fallbacks = tuple(fallback.tensor for fallback in result.fallbacks)
    return Weights(fallbacks, comparison, imatrix.digest if imatrix else None)


def quality_annotations(comparison: Comparison) -> dict[str, str]:
    """Three digits: more would differ from one kind of processor to the next, and with them the artifact's digest."""
    return {
        "dev.modelpack.quality.perplexity": f"{comparison.perplexity:.3g}",
        "dev.modelpack.quality.base-perplexity": f"{comparison.base_perplexity:.3g}",
        "dev.modelpack.quality.mean-kld": f"{comparison.mean_kld:.3g}",
        "dev.modelpack.quality.p99-kld": f"{comparison.p99_kld:.3g}",
        "dev.modelpack.quality.same-top": f"{comparison.same_top:.3g}",
        "dev.modelpack.quality.tokens": str(comparison.tokens),
    }


def fact_annotations(header: GGUFHeader) -> dict[str, str]:
    """What the weights say about themselves, read back from the file and never from what was asked for."""
    facts = {
        "architecture": header.architecture,
        "file-type": header.file_type,
        "quantization-version": header.metadata.get("general.quantization_version"),
        "imatrix-entries": header.metadata.get("quantize.imatrix.entries_count"),
        "tensor-types": _tensor_types(header),
    }
    return {f"dev.modelpack.{key}": str(value) for key, value in facts.items() if value is not None}


def _tensor_types(header: GGUFHeader) -> str:
    """``F32:5,Q4_K:14``: how many tensors have which type."""
    types = [tensor.type for tensor in header.tensors]
    return ",".join(f"{name}:{types.count(name)}" for name in sorted(set(types)))
