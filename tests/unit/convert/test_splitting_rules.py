"""Each way to split text that is told by its rule: llama.cpp, given the name, must split as the rule itself does.

The rules are spelled as the families spell them, with a vocabulary that nobody has seen before.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from fakes.tokenizers import (
    byte_level,
    digits,
    punctuation,
    sequence,
    split,
    trained,
    trained_across,
    trained_on_characters,
    write_vocabulary,
)

from modelpack.convert import Checkpoint, parity
from modelpack.convert.limits import CUT_AT_MARKS
from modelpack.convert.model_card import parse_model_card
from modelpack.convert.special_tokens import read_special_tokens
from modelpack.convert.splitting import name_by_rule
from modelpack.convert.tokenizer import byte_level_bpe
from modelpack.convert.vocabulary import Vocabulary
from modelpack.engine.tokenize import tokenize
from modelpack.errors import TokenizerMismatchError, UnsupportedError

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = CONTRACTIONS + WORDS + r"\p{N}{1,3}" + REST
QWEN2 = CONTRACTIONS + WORDS + r"\p{N}" + REST
BLOOM = " ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+"
CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
HAN_AND_HANGUL = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
ASCII_THEN_LETTERS = r"""[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"""
DEEPSEEK3 = ASCII_THEN_LETTERS + r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPARK = ASCII_THEN_LETTERS + r" ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+"
ASIAN = (
    "[\u4e00-\u9fff\u3400-\u4dbf\u8c48-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e40-\u0e7f"
    "\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+"
)
CASCADE = "".join(rf"|\s{{{length}}}(?!\S)" for length in ("512", "256", "128", "64", "32", "16", "8", "4", "1,2"))


def cased(number: str, suffix: str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?", but: str = "") -> str:
    """o200k's words: what is upper case, then what is lower case."""
    upper, lower = rf"[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}{but}]", rf"[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}{but}]"
    first, rest = r"[^\r\n\p{L}\p{N}]?", r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    return f"{first}{upper}*{lower}+{suffix}|{first}{upper}+{lower}*{suffix}|{number}{rest}"


def splits(*regexes: str) -> dict[str, Any]:
    return sequence(*map(split, regexes), byte_level())


# By llama.cpp's name: under these it puts its cuts exactly where tokenizers does, on every text of the gate.
EXACT = {
    "gpt-2": byte_level(use_regex=True),
    "smollm": sequence(digits(True), byte_level(use_regex=True)),
    "falcon": sequence(punctuation("Contiguous"), byte_level(use_regex=True), split("[0-9][0-9][0-9]")),
    "default": splits(r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
    "chameleon": sequence(
        split("<sentinel:[0-9]+>"),
        split("(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z"),
        split("([\t\n]|    |  )"),
        digits(True),
        punctuation("Isolated"),
        byte_level(use_regex=True),
    ),
    "llama-bpe": splits(LLAMA3),
    "dbrx": sequence(split(LLAMA3, "Removed", invert=True), byte_level()),
    "jais-2": splits(CONTRACTIONS + WORDS + r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+" + CASCADE + r"|\s{1}"),
    "minicpm5": splits(r"\p{N}{1,3}", CONTRACTIONS + WORDS + r"\p{N}+" + REST),
    "qwen2": splits(QWEN2),
    "laguna": splits(r"[^\n]+|[\n]+", QWEN2),
    "qwen35": splits(
        CONTRACTIONS + r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "ufakzeka": splits(WORDS + r"\p{N}" + REST),
    "seed-coder": splits(CONTRACTIONS + WORDS + "\\p{N}{1}| ?[^\\s\\p{L}\\p{N}\r\n]+|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"),
    "exaone-moe": splits(
        CONTRACTIONS
        + r"[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|"
        r"\s+(?!\S)|\s+"
    ),
    "deepseek-v3": splits(r"\p{N}{1,3}", CJK, DEEPSEEK3),
    "spark2_5": splits(r"\p{N}{1,3}", CJK, SPARK, r"\p{N}"),
    "bloom": splits(BLOOM),
    "viking": sequence(split(BLOOM), digits(True), byte_level()),
}
# Under these it cuts less often, which makes no difference to merges that were learned within the words.
LEARNED = {
    "deepseek-coder": sequence(
        *map(split, ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", HAN_AND_HANGUL)), digits(True), byte_level()
    ),
    "granite-embed-multi-97m": splits(cased(r"\p{N}{1,3}")),
    "youtu": splits(
        "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f"
        "\ufe30-\ufe4f]+|[\u3105-\u312f]+|" + CJK,
        cased(r"\p{N}"),
    ),
    "superbpe": splits(r"\p{N}+", r"(?=(\d{3})+(?!\d))"),
}
IGNORING = {"llama-bpe", "minicpm5", "granite-embed-multi-97m", "youtu"}


def read(document: dict[str, Any], directory: Path) -> tuple[Checkpoint, Vocabulary]:
    (directory / "tokenizer.json").write_text(json.dumps(document))
    checkpoint = Checkpoint(directory, {}, {}, parse_model_card(""))
    vocabulary = byte_level_bpe(checkpoint, None)
    assert vocabulary is not None
    return checkpoint, vocabulary


def check_parity(document: dict[str, Any], directory: Path) -> str:
    """The gate. Gives the name under which it was passed."""
    checkpoint, vocabulary = read(document, directory)
    wanted = parity.expected(checkpoint)
    assert len(wanted) > 300
    path = write_vocabulary(vocabulary, directory / "out.gguf")
    parity.check(wanted, tokenize(path, [text for text, _ in wanted]))
    return vocabulary.pre


@pytest.mark.llama
@pytest.mark.parametrize("name", EXACT)
def test_llama_cpp_cuts_under_the_name_where_the_rule_does(tmp_path: Path, name: str) -> None:
    ignores = name in IGNORING

    assert check_parity(trained_across(EXACT[name], ignore_merges=ignores), tmp_path) == name
    assert check_parity(trained(EXACT[name], ignore_merges=ignores), tmp_path) == name


@pytest.mark.llama
@pytest.mark.parametrize("name", LEARNED)
def test_llama_cpp_tokenizes_under_the_name_as_the_family_does(tmp_path: Path, name: str) -> None:
    assert check_parity(trained(LEARNED[name], ignore_merges=name in IGNORING), tmp_path) == name


@pytest.mark.llama
@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("tekken", splits(cased(r"\p{N}", suffix=""))),
        ("gpt-4o", splits(cased(r"\p{N}{1,3}"))),
        (
            "kimi-k2",
            splits(r"[\p{Han}]+|" + cased(r"\p{N}{1,3}", but=r"&&[^\p{Han}]").replace("[\\r\\n/]*", "[\\r\\n]*")),
        ),
    ],
)
def test_words_that_llama_cpp_cuts_at_their_vowel_signs_are_named_and_nothing_else_may_differ(
    tmp_path: Path, name: str, rule: dict[str, Any]
) -> None:
    checkpoint, vocabulary = read(trained(rule, ignore_merges=name != "gpt-4o"), tmp_path)
    path = write_vocabulary(vocabulary, tmp_path / "out.gguf")
    tried = parity.trials(checkpoint, pre=vocabulary.pre)
    actual = tokenize(path, [one.text for one in tried])

    assert vocabulary.pre == name in CUT_AT_MARKS
    assert 300 < len(parity.expected(checkpoint, pre=vocabulary.pre)) < len(tried)
    (limit,) = parity.compare(tried, actual)
    assert f"splits text the {name} way and cuts words at combining marks" in limit
    with pytest.raises(TokenizerMismatchError, match="otherwise than the checkpoint does"):
        parity.compare(parity.trials(checkpoint), actual)


SPACE_WRITTEN = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
WORDS_AND_LINES = sequence(
    split("\n+"), {"type": "Split", "pattern": {"String": "\u2581"}, "behavior": "MergedWithNext", "invert": False}
)


@pytest.mark.llama
@pytest.mark.parametrize(
    "afterwards",
    [None, {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}],
    ids=["sarvam", "gemma"],
)
@pytest.mark.parametrize("falls_back", [True, False])
def test_spaces_that_are_written_and_nothing_split_are_sarvams_way(
    tmp_path: Path, afterwards: dict[str, Any] | None, falls_back: bool
) -> None:
    document = trained_on_characters(SPACE_WRITTEN, WORDS_AND_LINES, afterwards, falls_back=falls_back)

    assert check_parity(document, tmp_path) == "sarvam-moe"


def test_lines_that_are_joined_to_words_are_refused(tmp_path: Path) -> None:
    document = trained_on_characters(SPACE_WRITTEN, WORDS_AND_LINES, None)
    vocabulary = document["model"]["vocab"]
    vocabulary["\na"] = len(vocabulary)
    document["model"]["merges"].append(["\n", "a"])

    with pytest.raises(UnsupportedError, match="normalizes text with Replace"):
        name_by_rule(document)


@pytest.mark.llama
@pytest.mark.parametrize("kind", ["Whitespace", "WhitespaceSplit"])
@pytest.mark.parametrize("normalizer", [None, {"type": "Lowercase"}])
def test_words_between_spaces_that_are_dropped_are_a_vocabulary_of_their_own(
    tmp_path: Path, kind: str, normalizer: dict[str, Any] | None
) -> None:
    document = trained_on_characters(normalizer, {"type": kind}, {"type": kind})
    checkpoint, vocabulary = read(document, tmp_path)
    special = read_special_tokens(checkpoint, vocabulary_size=len(vocabulary.tokens))
    path = write_vocabulary(vocabulary, tmp_path / "out.gguf", special=special)
    tried = parity.trials(checkpoint, pre=vocabulary.pre)

    assert (vocabulary.model, vocabulary.pre) == ("whitespace", "whitespace")
    assert len(tried) > 300
    limits = parity.compare(tried, tokenize(path, [one.text for one in tried]))
    assert [limit.startswith("llama.cpp makes a plain i of \u0130") for limit in limits] == [True] * bool(normalizer)


def test_words_joined_to_punctuation_are_refused(tmp_path: Path) -> None:
    kind = {"type": "Whitespace"}
    document = trained_on_characters(None, {"type": "WhitespaceSplit"}, kind)

    with pytest.raises(UnsupportedError, match="no name for: Whitespace"):
        name_by_rule(document)


@pytest.mark.parametrize(
    "rule",
    [
        splits(r"\d{1,3}(?=(?:\d{3})*\b)", cased(r"\p{N}{1,3}")),
        splits(r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))", ASIAN, DEEPSEEK3),
    ],
    ids=["tiny_aya", "afmoe"],
)
def test_what_llama_cpp_has_a_name_for_and_gets_wrong_is_refused_with_the_reason(
    tmp_path: Path, rule: dict[str, Any]
) -> None:
    with pytest.raises(UnsupportedError, match="characters before a number into one piece"):
        read(trained(rule), tmp_path)


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        (sequence(sequence(split(QWEN2)), byte_level()), "qwen2"),
        (sequence(split(QWEN2, invert=True), byte_level()), "qwen2"),
        (sequence(split(QWEN2, "Removed", invert=True), byte_level()), "qwen2"),
        (splits(QWEN2.removesuffix(r"|\s+")), "qwen2"),
        (splits(QWEN2.replace(CONTRACTIONS, "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|")), "qwen2"),
        (splits(QWEN2.replace(r"\r", "\r").replace(r"\n", "\n")), "qwen2"),
        (
            splits(
                r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|"
                r"\s+(?!\S)|\s+"
            ),
            "qwen2",
        ),
        (splits(GPT2), "gpt-2"),
        (splits(r"\p{N}", GPT2), "smollm"),
        (sequence(digits(True), split(GPT2), byte_level()), "smollm"),
        (
            sequence(punctuation("Contiguous"), byte_level(use_regex=True), digits(False), split("[0-9][0-9][0-9]")),
            "falcon",
        ),
    ],
)
@pytest.mark.llama
def test_other_spellings_of_a_rule_are_the_same_rule(tmp_path: Path, rule: dict[str, Any], name: str) -> None:
    assert check_parity(trained(rule), tmp_path) == name


def test_dropout_does_not_decide_whether_ignored_merges_make_a_difference() -> None:
    document = trained(splits(QWEN2), ignore_merges=True)
    document["model"]["dropout"] = 0.5

    assert name_by_rule(document) == "qwen2"


def test_merges_may_be_ignored_or_minded_where_that_makes_no_difference(tmp_path: Path) -> None:
    document = trained(splits(QWEN2), ignore_merges=True)
    assert name_by_rule(document) == "qwen2"

    vocabulary = document["model"]["vocab"]
    vocabulary["\u0120unreachable"] = len(vocabulary)
    with pytest.raises(UnsupportedError, match="ignore_merges is true"):
        name_by_rule(document)


@pytest.mark.parametrize(
    ("rule", "normalizer", "reason"),
    [
        (splits(r"\p{N}{1,7}"), None, r"no name for: '\\\\p\{N\}\{1,7\}', 'bytes'"),
        (None, None, "no name for: not at all"),
        (splits(QWEN2)["pretokenizers"][0], None, "no name for"),
        (sequence(split(r"\p{N}", "Removed", invert=True), byte_level()), None, "Split with Removed"),
        (sequence(split(QWEN2, "MergedWithNext"), byte_level()), None, "Split with MergedWithNext"),
        (sequence({"type": "WhitespaceSplit"}, byte_level()), None, "WhitespaceSplit"),
        (byte_level(use_regex=True, add_prefix_space=True), None, "a space is put before every text"),
        (splits(QWEN2), {"type": "Lowercase"}, "normalizes text with Lowercase"),
        (
            splits(QWEN2),
            {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "NFKC"}]},
            "normalizes text with NFKC",
        ),
    ],
)
def test_what_llama_cpp_cannot_do_is_refused_by_name(
    rule: dict[str, Any] | None, normalizer: dict[str, Any] | None, reason: str
) -> None:
    document = {"pre_tokenizer": rule, "normalizer": normalizer, "model": {"type": "BPE"}}

    with pytest.raises(UnsupportedError, match=reason):
        name_by_rule(document)
