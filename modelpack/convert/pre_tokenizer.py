"""Which of llama.cpp's ways to split text a byte-level BPE tokenizer wants: ``tokenizer.ggml.pre``.

A GGUF file names the way instead of describing it. Known vocabularies are recognised as upstream's converter does it,
by a hash of the ids that a probe text is encoded to (``pre_tokenizers.json``);
others, retrained or extended, by the splitting rule that tokenizer.json spells out.
"""

import hashlib
import json
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any

from modelpack.convert.vocabulary import as_dict, steps
from modelpack.errors import InvalidCheckpointError, UnsupportedError

# The regular expressions that tokenizer.json files carry, by what llama.cpp calls their way to split; where it has
# several names, one whose other settings (merges ignored, spaces cleaned) are the plainest.
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_MARKED = r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_FIRST = r"[^\r\n\p{L}\p{N}]?"
_CASED_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"
    r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTE_LEVEL = "ByteLevel with regex"
RULES: dict[tuple[str, ...], str] = {
    (BYTE_LEVEL,): "gpt-2",
    (_GPT2,): "gpt-2",
    ("Digits alone", BYTE_LEVEL): "smollm",
    (r"\p{N}", BYTE_LEVEL): "smollm",
    (r"\p{N}", _GPT2): "smollm",
    ("Punctuation", BYTE_LEVEL, r"[0-9][0-9][0-9]"): "falcon",
    (_CONTRACTIONS + _WORDS + r"\p{N}{1,3}" + _REST,): "llama-bpe",
    (_CONTRACTIONS + _WORDS + r"\p{N}" + _REST,): "qwen2",
    (_CONTRACTIONS + _MARKED + r"\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",): "qwen35",
    (_WORDS + r"\p{N}" + _REST,): "ufakzeka",
    (r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", _DEEPSEEK3): "deepseek-v3",
    (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+", r"\p{N}"): "deepseek-coder",
    (f"{_FIRST}{_UPPER}*{_LOWER}+|{_FIRST}{_UPPER}+{_LOWER}*|" + r"\p{N}" + _CASED_REST,): "tekken",
    (
        f"{_FIRST}{_UPPER}*{_LOWER}+{_SUFFIX}|{_FIRST}{_UPPER}+{_LOWER}*{_SUFFIX}|" + r"\p{N}{1,3}" + _CASED_REST,
    ): "gpt-4o",
    (" ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+",): "bloom",
    (" ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+", r"\p{N}"): "viking",
    (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    ): "bailingmoe",
    (_CONTRACTIONS + _WORDS + r"\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",): "seed-coder",
}


def find_pre_tokenizer(tokenizer_json: bytes, *, fallback: str | None = None) -> tuple[str, Callable[[str], str]]:
    """llama.cpp's name for the splitting rule, and a function that gives a token's text as it comes out again.

    ``fallback`` is for kinds of tokenizer to which llama.cpp does the same under any name.

    Raises InvalidCheckpointError when tokenizer.json cannot be loaded, UnsupportedError when its rule is unknown.
    """
    tokenizer = load_tokenizer(tokenizer_json)

    def normalize(text: str) -> str:
        result: str = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False)
        return result

    table = _known()
    ids = tokenizer.encode(table["probe"]).ids
    name = table["names"].get(hashlib.sha256(str(ids).encode()).hexdigest())
    name = name or fallback or _by_rule(json.loads(tokenizer_json))
    if name is None:
        raise UnsupportedError("tokenizer.json splits text in a way that llama.cpp has no name for")
    return name, normalize


def load_tokenizer(tokenizer_json: bytes) -> Any:
    """A ``tokenizers.Tokenizer`` that neither cuts nor pads. Raises InvalidCheckpointError."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_buffer(tokenizer_json)
    except Exception as error:  # tokenizers raises nothing narrower
        raise InvalidCheckpointError(f"tokenizer.json cannot be loaded: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _by_rule(tokenizer: dict[str, Any]) -> str | None:
    described = tuple(text for step in steps(tokenizer, "pre_tokenizer") if (text := _describe(step)) != "")
    if None in described:
        return None
    name = RULES.get(described)  # type: ignore[arg-type]  # no None in it, as was just seen
    if name == "llama-bpe" and not as_dict(tokenizer.get("model")).get("ignore_merges"):
        return "dbrx"  # the same regular expression, merges minded
    return name


def _describe(step: dict[str, Any]) -> str | None:
    """A step in a word or a regular expression; empty where it splits nothing, None where llama.cpp lacks it."""
    match step.get("type"):
        case "ByteLevel" if not step.get("add_prefix_space"):
            return BYTE_LEVEL if step.get("use_regex", True) else ""
        case "Split" if step.get("behavior") in ("Isolated", "Removed") and isinstance(step.get("pattern"), dict):
            invert = bool(step.get("invert"))
            if invert == (step["behavior"] == "Removed"):
                return str(step["pattern"].get("Regex"))
        case "Digits" if step.get("individual_digits"):
            return "Digits alone"
        case "Punctuation" if step.get("behavior") == "Contiguous":
            return "Punctuation"
    return None


@cache
def _known() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(files(__package__).joinpath("pre_tokenizers.json").read_text(encoding="utf-8"))
    return table
