"""What a quantization may cost: gates over the numbers of a comparison, and the text they are measured on."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from modelpack.engine.comparison import Comparison
from modelpack.errors import CheckFailedError, InvalidInputError

_DATA = Path(__file__).parent / "data"

EVALUATION_TEXT = _DATA / "evaluation.txt"
"""What variants are measured on. It shares no sentence with the calibration text, or it would flatter the matrix."""
CALIBRATION_TEXT = _DATA / "calibration.txt"
"""What importance matrices are computed on where nobody names a text."""

REFERENCE_KLD: Mapping[str, float] = MappingProxyType(
    {
        "F16": 0.000551,
        "BF16": 0.000551,
        "Q8_0": 0.001355,
        "Q6_K": 0.005452,
        "Q5_K_M": 0.010762,
        "Q5_K_S": 0.016595,
        "Q5_1": 0.018045,
        "Q5_0": 0.022239,
        "Q4_K_M": 0.031273,
        "IQ4_NL": 0.035742,
        "IQ4_XS": 0.036334,
        "Q4_K_S": 0.043136,
        "Q4_1": 0.071683,
        "Q4_0": 0.071940,
        "Q3_K_L": 0.087176,
        "Q3_K_M": 0.101913,
        "IQ3_M": 0.102534,
        "IQ3_S": 0.111278,
        "IQ3_XS": 0.138693,
        "IQ3_XXS": 0.183625,
        "Q3_K_S": 0.228217,
        "IQ2_M": 0.325989,
        "IQ2_S": 0.439197,
        "Q2_K": 0.445132,
        "IQ2_XS": 0.546290,
        "IQ2_XXS": 0.812022,
    }
)
"""Mean divergence of Llama 3 8B on Wikitext-2: the scoreboard in tools/perplexity/README.md of llama.cpp, without a
matrix where it has such a row. Published numbers of one model, not measured here."""

SMALL = 1_000_000_000
"""Fewer weights than this lose more: their gates come from models of that kind."""
_MEASURED = _DATA / "gates.json"
_TOLERANCE = 2.5
_SMALL_TOLERANCE = 1.5
_LEAST = 0.01


@dataclass(frozen=True, slots=True)
class Gate:
    """What a variant must reach; None asks for nothing."""

    max_kld: float | None = None
    min_top1: float | None = None

    @classmethod
    def default(cls, quantization: str, parameters: int) -> "Gate":
        """A guard against broken variants of a model of so many weights, not a promise of quality.

        From a billion weights on it is 2.5 times the published divergence of Llama 3 8B; below, and for what was not
        published, 1.5 times the largest that ``scripts/calibrate-gates`` measured of SmolLM2 135M and Gemma 3 270M. At
        least 0.01. Raises InvalidInputError where there is no number.
        """
        published = _TOLERANCE * REFERENCE_KLD.get(quantization, 0.0)
        measured = _SMALL_TOLERANCE * small_kld().get(quantization, 0.0)
        limit = published if parameters >= SMALL and published else max(published, measured)
        if not limit:
            raise InvalidInputError(
                f"there is no default gate for {quantization}: say one, such as {quantization}:max_kld=0.5"
            )
        return cls(max_kld=max(_LEAST, round(limit, 4)))

    def check(self, comparison: Comparison, what: str) -> None:
        """Raises CheckFailedError with the numbers that fail."""
        failures = []
        if self.max_kld is not None and comparison.mean_kld > self.max_kld:
            failures.append(
                f"its predictions diverge by {comparison.mean_kld:.4f} on average (max_kld {self.max_kld:g})"
            )
        if self.min_top1 is not None and comparison.same_top < self.min_top1:
            failures.append(f"it agrees on {comparison.same_top:.1%} of tokens (min_top1 {self.min_top1:g})")
        if failures:
            raise CheckFailedError(f"{what} lost too much: {' and '.join(failures)}")


@dataclass(frozen=True, slots=True)
class Gates:
    """What ``--gate`` asks of each variant. Empty: no variant is measured."""

    common: Gate | None = None
    by_quantization: Mapping[str, Gate | None] = field(default_factory=dict)
    """None stands for the default."""
    with_defaults: bool = False

    @classmethod
    def parse(cls, texts: Iterable[str]) -> "Gates":
        """``default``, ``max_kld=0.1,min_top1=0.9``, or either after a quantization: ``Q4_K_M:max_kld=0.1``.

        Raises InvalidInputError.
        """
        common, with_defaults = None, False
        named: dict[str, Gate | None] = {}
        for text in texts:
            name, separator, limits = text.rpartition(":")
            quantization = name.strip().upper()
            if separator:
                named[quantization] = None if limits == "default" else _parse_limits(limits)
            elif limits == "default":
                with_defaults = True
            else:
                common = _parse_limits(limits)
        return cls(common, MappingProxyType(named), with_defaults)

    @property
    def is_empty(self) -> bool:
        return not (self.common or self.by_quantization or self.with_defaults)

    def of(self, quantization: str, parameters: int) -> Gate:
        """The most particular gate there is. One that only measures has no limits.

        Raises InvalidInputError for a default that there is not.
        """
        if quantization in self.by_quantization:
            return self.by_quantization[quantization] or Gate.default(quantization, parameters)
        if self.common:
            return self.common
        return Gate.default(quantization, parameters) if self.with_defaults else Gate()


def small_kld() -> dict[str, float]:
    """The largest mean divergence that was measured of small models, by quantization."""
    measured: dict[str, dict[str, dict[str, float]]] = json.loads(_MEASURED.read_text(encoding="utf-8"))
    return {name: max(row["mean_kld"] for row in models.values()) for name, models in measured.items()}


def _parse_limits(text: str) -> Gate:
    limits: dict[str, float] = {}
    for part in text.split(","):
        key, separator, number = part.strip().partition("=")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if not separator or key not in ("max_kld", "min_top1") or key in limits or not 0 <= value < float("inf"):
            raise InvalidInputError(
                f"not a gate: {text[:80]!r}; write default, or max_kld=0.1 and min_top1=0.9 with a comma between them"
            )
        limits[key] = value
    if limits.get("min_top1", 0) > 1:
        raise InvalidInputError(f"min_top1 is a share, 0 to 1, not {limits['min_top1']:g}")
    return Gate(**limits)
