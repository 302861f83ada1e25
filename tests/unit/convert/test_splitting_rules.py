"""Each way to split text that is told by its rule: llama.cpp, given the name, must split as the rule itself does."""

import json
from pathlib import Path

import pytest
from fakes.checkpoints import write_checkpoint

from modelpack.convert import Checkpoint, parity, plan_conversion, run_conversion
from modelpack.convert.pre_tokenizer import BYTE_LEVEL, RULES
from modelpack.engine.tokenize import tokenize

pytestmark = pytest.mark.llama


def written(step: str) -> dict[str, object]:
    """A step as tokenizer.json spells it."""
    match step:
        case "Digits alone":
            return {"type": "Digits", "individual_digits": True}
        case "Punctuation":
            return {"type": "Punctuation", "behavior": "Contiguous"}
        case "ByteLevel" | "ByteLevel with regex":
            return {
                "type": "ByteLevel",
                "add_prefix_space": False,
                "trim_offsets": False,
                "use_regex": step == BYTE_LEVEL,
            }
    return {"type": "Split", "pattern": {"Regex": step}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    ("rule", "name"), RULES.items(), ids=[f"{at}-{name}" for at, name in enumerate(RULES.values())]
)
def test_llama_cpp_splits_under_the_name_as_the_rule_does(tmp_path: Path, rule: tuple[str, ...], name: str) -> None:
    directory = write_checkpoint("qwen2-0.5b", tmp_path / "checkpoint")
    document = json.loads((directory / "tokenizer.json").read_text())
    steps = rule if BYTE_LEVEL in rule else (*rule, "ByteLevel")
    document["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [written(step) for step in steps]}
    document["model"]["ignore_merges"] = name == "llama-bpe"
    (directory / "tokenizer.json").write_text(json.dumps(document))
    checkpoint = Checkpoint.open(directory)

    plan = plan_conversion(checkpoint)
    run_conversion(plan, tmp_path / "out.gguf")

    assert plan.metadata["tokenizer.ggml.pre"] == name
    wanted = parity.expected(checkpoint)
    assert len(wanted) > 300
    parity.check(wanted, tokenize(tmp_path / "out.gguf", [text for text, _ in wanted]))
