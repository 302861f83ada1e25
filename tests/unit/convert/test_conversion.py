"""Checkpoints become the very bytes that upstream's converter makes of them."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from fakes.checkpoints import SYNTHETIC, write_checkpoint, write_weights
from fakes.gguf_content import content_digest

from modelpack.convert import Checkpoint, ConversionPlan, plan_conversion, run_conversion
from modelpack.convert.conversion import write_skeleton
from modelpack.engine.tokenize import tokenize
from modelpack.errors import (
    ConversionError,
    InvalidCheckpointError,
    InvalidInputError,
    UnknownArchitectureError,
    UnsupportedError,
)
from modelpack.gguf_header import read_header
from modelpack.quantize import QUANTIZATIONS, quantize

DATA = Path(__file__).parent.parent.parent / "data"
TINY = DATA / "tiny-llama"
RECORDS = json.loads((DATA / "conversion" / "goldens.json").read_text(encoding="utf-8"))
GOLDENS = RECORDS["sha256"]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint, to be changed."""
    return Path(shutil.copytree(TINY, tmp_path / "tiny-llama"))


def change_config(checkpoint: Path, **changes: object) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | changes))


def converted(plan: ConversionPlan, path: Path) -> str:
    run_conversion(plan, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("file_type", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("name", ["tiny-llama", *SYNTHETIC])
def test_a_conversion_equals_upstreams_byte_for_byte(tmp_path: Path, name: str, file_type: str) -> None:
    directory = TINY if name == "tiny-llama" else write_checkpoint(name, tmp_path / "checkpoint")
    plan = plan_conversion(Checkpoint.open(directory), file_type=file_type, name=name)

    assert converted(plan, tmp_path / "out.gguf") == GOLDENS[name][file_type]


@pytest.mark.llama
@pytest.mark.parametrize("name", ["tiny-llama", *SYNTHETIC])
def test_q8_0_holds_what_upstream_converts_to_in_another_order(tmp_path: Path, name: str) -> None:
    directory = TINY if name == "tiny-llama" else write_checkpoint(name, tmp_path / "checkpoint")
    run_conversion(plan_conversion(Checkpoint.open(directory), name=name), tmp_path / "own.gguf")

    quantize(tmp_path / "own.gguf", tmp_path / "out.gguf", QUANTIZATIONS["Q8_0"])

    assert content_digest(tmp_path / "out.gguf") == RECORDS["q8_0"][name]


def test_every_golden_was_compared() -> None:
    assert set(GOLDENS) == set(RECORDS["q8_0"]) == {"tiny-llama", *SYNTHETIC}


def test_a_plan_says_what_the_file_will_be(tmp_path: Path) -> None:
    plan = plan_conversion(Checkpoint.open(TINY), name="tiny-llama")
    run_conversion(plan, tmp_path / "out.gguf")
    header = read_header(tmp_path / "out.gguf")

    assert plan.output_size == header.file_size
    assert (plan.architecture, plan.file_type) == (header.architecture, header.file_type) == ("llama", "BF16")
    assert (plan.tensor_count, plan.parameters) == (len(header.tensors), header.parameters) == (20, 918_784)
    assert [planned.name for planned in plan.tensors] == [info.name for info in header.tensors]
    assert list(plan.metadata) == list(header.metadata)
    assert plan.metadata["general.name"] == header.name == "Tiny Llama"


@pytest.mark.parametrize(("name", "file_type"), [("llama3-rope", "F16"), ("qwen2-0.5b", "BF16"), ("qwen3-yarn", "F32")])
def test_a_conversion_keeps_the_checkpoints_own_type(tmp_path: Path, name: str, file_type: str) -> None:
    plan = plan_conversion(Checkpoint.open(write_checkpoint(name, tmp_path)))

    assert plan.file_type == file_type


def test_named_chat_templates_are_the_same_bytes_in_every_process(tiny: Path) -> None:
    path = tiny / "tokenizer_config.json"
    names = ["default", "tool_use", "rag", "vision", "code"]
    templates = [{"name": name, "template": f"{{{{ {name} }}}}"} for name in names]
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": templates}))
    program = "import sys, pathlib, modelpack.convert as c; sys.stdout.buffer.write(c.plan_conversion("
    program += "c.Checkpoint.open(pathlib.Path(sys.argv[1]))).header)"

    headers = {
        subprocess.run(
            [sys.executable, "-c", program, tiny], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in "1234"
    }

    assert len(headers) == 1
    assert plan_conversion(Checkpoint.open(tiny)).metadata["tokenizer.chat_templates"] == sorted(names[1:])


def test_neither_folder_nor_time_nor_umask_gets_into_the_file(tmp_path: Path) -> None:
    first = Path(shutil.copytree(TINY, tmp_path / "one"))
    second = Path(shutil.copytree(TINY, tmp_path / "deep" / "er" / "Another-7B-v2"))
    for path in second.iterdir():
        os.utime(path, (1, 1))
    one = converted(plan_conversion(Checkpoint.open(first), name="tiny"), tmp_path / "1.gguf")
    before = os.umask(0o077)
    try:
        two = converted(plan_conversion(Checkpoint.open(second), name="tiny"), tmp_path / "2.gguf")
    finally:
        os.umask(before)

    assert one == two
    assert (tmp_path / "2.gguf").stat().st_mode & 0o777 == 0o644


def test_memory_stays_flat_however_large_a_tensor_is(tmp_path: Path) -> None:
    directory = write_checkpoint("llama3-rope", tmp_path / "checkpoint")
    for path in directory.glob("model*"):
        path.unlink()
    hidden = 4096
    change_config(directory, hidden_size=hidden, num_attention_heads=32, num_key_value_heads=32, num_hidden_layers=1)
    square = ("F32", np.zeros((hidden, hidden), "<f4"))
    layer = "model.layers.0."
    names = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj"]
    weights = {f"{layer}{name}.weight": square for name in names}
    norms = ("model.norm.weight", f"{layer}input_layernorm.weight", f"{layer}post_attention_layernorm.weight")
    weights |= {name: ("F32", np.ones(hidden, "<f4")) for name in norms}
    weights["model.embed_tokens.weight"] = ("F32", np.zeros((520, hidden), "<f4"))
    write_weights(directory, weights)
    del weights, square
    plan = plan_conversion(Checkpoint.open(directory), file_type="F16")

    tracemalloc.start()
    run_conversion(plan, tmp_path / "out.gguf")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert plan.output_size > 150 << 20
    assert peak < 24 << 20


def test_progress_counts_every_byte_of_the_weights(tmp_path: Path) -> None:
    class Counting:
        done = 0

        def step(self, label: str, *, total: int | None = None, unit: str = "B") -> "Counting":
            self.total = total
            return self

        def advance(self, amount: int) -> None:
            self.done += amount

        def note(self, message: str) -> None: ...

        def warn(self, message: str) -> None: ...

        def __enter__(self) -> "Counting":
            return self

        def __exit__(self, *_: object) -> None: ...

    progress = Counting()
    plan = plan_conversion(Checkpoint.open(TINY))
    run_conversion(plan, tmp_path / "out.gguf", progress=progress)

    assert progress.done == progress.total == plan.output_size - len(plan.header)


def test_an_interrupted_conversion_leaves_nothing(tmp_path: Path) -> None:
    plan = plan_conversion(Checkpoint.open(TINY))

    def interrupt() -> None:
        raise KeyboardInterrupt

    plan.shards.forget = interrupt  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run_conversion(plan, tmp_path / "out.gguf")

    assert list(tmp_path.iterdir()) == []


def test_what_is_raised_between_two_pieces_ends_a_conversion_that_leaves_nothing(tmp_path: Path) -> None:
    pieces: list[None] = []

    def look() -> None:
        pieces.append(None)
        if len(pieces) == 2:
            raise ConversionError("found out meanwhile")

    with pytest.raises(ConversionError, match="found out meanwhile"):
        run_conversion(plan_conversion(Checkpoint.open(TINY)), tmp_path / "out.gguf", between=look)

    assert len(pieces) == 2
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_architecture_is_answered_with_those_there_are(tiny: Path) -> None:
    change_config(tiny, architectures=["MambaForCausalLM"])

    with pytest.raises(UnknownArchitectureError, match=r"'MambaForCausalLM'.*LlamaForCausalLM.*Qwen3ForCausalLM"):
        plan_conversion(Checkpoint.open(tiny))


def test_a_type_that_is_llama_cpps_work_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="Q4_K_M"):
        plan_conversion(Checkpoint.open(TINY), file_type="Q4_K_M")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_hidden_layers": 3}, r"no tensor for blk\.2\."),
        ({"num_hidden_layers": 1}, r"a tensor for blk\.1\."),
        ({"hidden_size": 128}, "token_embd.weight has the shape"),
        ({"vocab_size": 600}, r"token_embd.weight has the shape \[512, 256\], not \[600, 256\]"),
        ({"num_attention_heads": 3}, "256 rows cannot be split"),
        ({"num_attention_heads": -1}, "-1 for num_attention_heads"),
        ({"num_hidden_layers": "2"}, "'2' for num_hidden_layers"),
        ({"rope_scaling": [1]}, "no proper rope_parameters"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": "8"}}, "'8' for rope_parameters.factor"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": -8.0}}, "impossible llama3 rope"),
        ({"rms_norm_eps": True}, "True for rms_norm_eps"),
        ({"architectures": []}, "names no architecture"),
    ],
)
def test_impossible_hyper_parameters_are_refused_before_any_work(tiny: Path, changes: dict, reason: str) -> None:
    change_config(tiny, **changes)

    with pytest.raises(InvalidCheckpointError, match=reason):
        plan_conversion(Checkpoint.open(tiny))


def test_a_tensor_that_the_architecture_does_not_have_is_refused(tiny: Path) -> None:
    write_weights(tiny, {"model.layers.0.mystery.weight": ("F32", np.zeros((2, 2), "<f4"))})

    with pytest.raises(UnsupportedError, match=r"'model\.layers\.0\.mystery\.weight'"):
        plan_conversion(Checkpoint.open(tiny))


def test_weights_of_integers_are_refused(tiny: Path) -> None:
    write_weights(
        tiny, {"model.embed_tokens.weight": ("I32", np.zeros((512, 256), "<i4")), "x": ("F32", np.zeros((2, 2)))}
    )
    with pytest.raises(InvalidCheckpointError):
        Checkpoint.open(tiny)  # x has float64 bytes under F32

    write_weights(
        tiny,
        {
            "lm_head.weight": ("F32", np.zeros((512, 256), "<f4")),
            "model.embed_tokens.weight": ("I32", np.zeros((512, 256), "<i4")),
        },
    )
    with pytest.raises(UnsupportedError, match="holds I32"):
        plan_conversion(Checkpoint.open(tiny))


@pytest.mark.parametrize(
    ("size", "key", "value"),
    [(32016, "tokenizer.ggml.eot_token_id", 32010), (49152, "tokenizer.ggml.add_bos_token", False)],
)
def test_families_known_by_their_vocabularys_size_get_their_special_tokens(
    tiny: Path, size: int, key: str, value: object
) -> None:
    change_config(tiny, vocab_size=size)
    checkpoint = Checkpoint.open(tiny)
    weights = {name: (stored.dtype, np.zeros(stored.shape, "<u2")) for name, stored in checkpoint.tensors.items()}
    weights["model.embed_tokens.weight"] = ("BF16", np.zeros((size, 256), "<u2"))
    write_weights(tiny, weights)

    assert plan_conversion(Checkpoint.open(tiny)).metadata[key] == value


@pytest.mark.parametrize(("value", "file_type"), [(np.nan, "BF16"), (np.inf, "F32"), (1e6, "F16")])
def test_a_deep_look_finds_what_is_no_number(tiny: Path, tmp_path: Path, value: float, file_type: str) -> None:
    weights = {}
    for name, stored in Checkpoint.open(tiny).tensors.items():
        weights[name] = ("F32", np.ones(stored.shape, "<f4"))
    weights["model.layers.1.mlp.up_proj.weight"][1][200, 7] = value
    write_weights(tiny, weights)
    plan = plan_conversion(Checkpoint.open(tiny), file_type=file_type)
    run_conversion(plan, tmp_path / "shallow.gguf")

    with pytest.raises(InvalidCheckpointError, match=r"blk\.1\.ffn_up\.weight holds a NaN"):
        run_conversion(plan, tmp_path / "out.gguf", deep=True)
    assert not (tmp_path / "out.gguf").exists()
    run_conversion(plan_conversion(Checkpoint.open(TINY)), tmp_path / "out.gguf", deep=True)


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_quantizing_finds_what_is_no_number_unasked(tiny: Path, tmp_path: Path, name: str) -> None:
    weights = {}
    for other, stored in Checkpoint.open(tiny).tensors.items():
        weights[other] = ("F32", np.ones(stored.shape, "<f4"))
    weights[name][1][..., 7] = np.nan
    write_weights(tiny, weights)

    with pytest.raises(InvalidCheckpointError, match="holds a NaN"):
        run_conversion(plan_conversion(Checkpoint.open(tiny), file_type="Q8_0"), tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize("file_type", ["BF16", "Q8_0"])
def test_a_conversion_knows_the_digest_of_what_it_wrote(tmp_path: Path, file_type: str) -> None:
    plan = plan_conversion(Checkpoint.open(TINY), file_type=file_type)
    digest = run_conversion(plan, tmp_path / "out.gguf")

    assert digest is not None
    assert digest.hex == hashlib.sha256((tmp_path / "out.gguf").read_bytes()).hexdigest()
    assert run_conversion(plan, tmp_path / "again.gguf", is_final=False) is None
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "out.gguf").read_bytes()


@pytest.mark.llama
def test_a_deepseek_that_compresses_no_queries_loads_whatever_the_number_of_its_blocks(tmp_path: Path) -> None:
    directory = write_checkpoint("deepseek-v2", tmp_path / "checkpoint")
    weights = {
        name: (stored.dtype, np.zeros(stored.shape, "<u2"))
        for name, stored in Checkpoint.open(directory).tensors.items()
        if ".q_a_" not in name and ".q_b_" not in name
    }
    for block in range(3):
        weights[f"model.layers.{block}.self_attn.q_proj.weight"] = ("BF16", np.zeros((96, 64), "<u2"))
    for path in directory.glob("model*"):
        path.unlink()
    write_weights(directory, weights)
    change_config(directory, q_lora_rank=None)
    plan = plan_conversion(Checkpoint.open(directory))
    write_skeleton(plan, tmp_path / "skeleton.gguf")

    assert plan.metadata["deepseek2.attention.q_lora_rank"] == 0
    assert tokenize(tmp_path / "skeleton.gguf", ["a"], has_tensors=True)


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
@pytest.mark.parametrize("scalar", [None, 17])
def test_a_gemma_whose_attention_llama_cpp_would_scale_otherwise_is_refused(
    tmp_path: Path, name: str, scalar: int | None
) -> None:
    directory = write_checkpoint(name, tmp_path / "checkpoint")
    change_config(directory, query_pre_attn_scalar=scalar)  # transformers takes 256 where it is silent

    with pytest.raises(UnsupportedError, match=r"query_pre_attn_scalar is (17|256); llama\.cpp takes it for 16"):
        plan_conversion(Checkpoint.open(directory))


@pytest.mark.parametrize("value", [1 << 31, -(1 << 31) - 1, 1 << 63])
def test_a_setting_that_no_32_bits_hold_is_refused(tiny: Path, value: int) -> None:
    (tiny / "generation_config.json").write_text(json.dumps({"top_k": value}))

    with pytest.raises(InvalidCheckpointError, match=r"generation_config\.json has -?\d+ for top_k"):
        plan_conversion(Checkpoint.open(tiny))


@pytest.mark.parametrize("value", ["loudest", {}, 7])
def test_a_way_to_choose_experts_that_is_none_is_refused(tmp_path: Path, value: object) -> None:
    directory = write_checkpoint("deepseek-v3", tmp_path / "checkpoint")
    change_config(directory, scoring_func=value)

    with pytest.raises(InvalidCheckpointError, match="for scoring_func, which is not known"):
        plan_conversion(Checkpoint.open(directory))


def test_experts_that_are_missing_or_differ_are_refused(tmp_path: Path) -> None:
    directory = write_checkpoint("qwen3-moe", tmp_path / "checkpoint")
    weights = {}
    for name, stored in Checkpoint.open(directory).tensors.items():
        weights[name] = (stored.dtype, np.zeros(stored.shape, "<u2"))
    for path in directory.glob("model*"):
        path.unlink()
    expert = "model.layers.1.mlp.experts.3.up_proj.weight"

    write_weights(directory, {name: value for name, value in weights.items() if name != expert})
    with pytest.raises(InvalidCheckpointError, match=r"no tensor for number 3 of blk\.1\.ffn_up_exps\.weight"):
        plan_conversion(Checkpoint.open(directory))

    write_weights(directory, {**weights, expert: ("BF16", np.zeros((32, 32), "<u2"))})
    with pytest.raises(InvalidCheckpointError, match="differ in shape or type"):
        plan_conversion(Checkpoint.open(directory))

    write_weights(directory, weights)
    change_config(directory, num_experts=13)
    with pytest.raises(InvalidCheckpointError, match=r"has 12 experts, not 13"):
        plan_conversion(Checkpoint.open(directory))
    change_config(directory, num_experts=12, norm_topk_prob=False)
    with pytest.raises(UnsupportedError, match="norm_topk_prob"):
        plan_conversion(Checkpoint.open(directory))
