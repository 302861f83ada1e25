"""Gates: what they ask, how they are written, and what they say when a variant fails."""

import pytest

from modelpack.engine.comparison import Comparison
from modelpack.errors import CheckFailedError, InvalidInputError
from modelpack.quality import CALIBRATION_TEXT, EVALUATION_TEXT, REFERENCE_KLD, SMALL, Gate, Gates, small_kld
from modelpack.quantize import QUANTIZATIONS

LARGE = 8_000_000_000

LOSSY = Comparison(
    perplexity=12.0, base_perplexity=10.0, mean_kld=0.2, p99_kld=1.0, same_top=0.85, tokens=1000, context=512
)


def test_a_variant_within_its_limits_passes() -> None:
    Gate(max_kld=0.2, min_top1=0.85).check(LOSSY, "Q2_K")
    Gate().check(LOSSY, "Q2_K")


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        (Gate(max_kld=0.1), r"Q2_K lost too much: its predictions diverge by 0\.2000 on average \(max_kld 0\.1\)$"),
        (Gate(min_top1=0.9), r"agrees on 85\.0% of tokens \(min_top1 0\.9\)$"),
        (Gate(0.1, 0.9), "diverge by .* and it agrees on"),
    ],
)
def test_a_variant_beyond_a_limit_fails_with_its_numbers(gate: Gate, message: str) -> None:
    with pytest.raises(CheckFailedError, match=message):
        gate.check(LOSSY, "Q2_K")


def test_the_most_particular_gate_counts() -> None:
    gates = Gates.parse(["default", "max_kld=0.5", "q2_k:max_kld=1,min_top1=0.5"])

    assert gates.of("Q2_K", LARGE) == Gate(1.0, 0.5)
    assert gates.of("Q4_K_M", LARGE) == Gate(0.5, None)
    assert Gates.parse(["default"]).of("Q4_K_M", LARGE) == Gate(max_kld=0.0782)
    assert Gates.parse(["Q8_0:default"]).of("Q8_0", LARGE) == Gate(max_kld=0.01)
    assert Gates.parse(["Q8_0:default"]).of("Q2_K", LARGE) == Gate()
    assert Gates.parse([]).is_empty


@pytest.mark.parametrize(
    "text", ["", "max_kld", "max_kld=x", "max_kld=-1", "max_kld=nan", "max_kld=1,max_kld=2", "min_top1=90", "kld=1"]
)
def test_a_gate_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError):
        Gates.parse([text])


def test_there_is_no_default_where_nothing_was_published() -> None:
    with pytest.raises(InvalidInputError, match="no default gate for TQ1_0"):
        Gates.parse(["default"]).of("TQ1_0", LARGE)


def test_defaults_grow_as_bits_shrink_and_name_real_quantizations() -> None:
    assert set(REFERENCE_KLD) <= set(QUANTIZATIONS)
    for parameters in (SMALL - 1, LARGE):
        names = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")
        limits = [Gate.default(name, parameters).max_kld for name in names]
        assert limits == sorted(limits, key=lambda limit: limit or 0)


def test_small_models_may_lose_what_small_models_were_seen_to_lose() -> None:
    assert set(small_kld()) <= set(QUANTIZATIONS)
    for name, divergence in small_kld().items():
        limit = Gate.default(name, SMALL - 1).max_kld
        assert limit is not None
        assert limit >= divergence
    assert Gate.default("Q4_K_M", SMALL - 1) != Gate.default("Q4_K_M", SMALL)
    # What was published for no large model is guarded by what small ones lose.
    assert Gate.default("IQ1_S", LARGE) == Gate.default("IQ1_S", SMALL - 1)


def test_what_variants_are_measured_on_is_not_what_matrices_are_computed_on() -> None:
    calibration, evaluation = (
        {line for line in text.read_text(encoding="utf-8").splitlines() if len(line) > 20}
        for text in (CALIBRATION_TEXT, EVALUATION_TEXT)
    )

    assert calibration & evaluation == set()
    for text in (CALIBRATION_TEXT, EVALUATION_TEXT):
        written = text.read_text(encoding="utf-8")
        assert 6 << 10 <= len(written.encode()) <= 16 << 10
        # Latin, Cyrillic, Greek, Arabic, Devanagari, Han, kana, Hangul, and code.
        for sample in ("e", "к", "ο", "ي", "न", "的", "の", "하", "```python"):
            assert sample in written
