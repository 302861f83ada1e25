"""Quantization through llama.cpp in a child process: what comes out, and what happens when it goes wrong."""

import hashlib
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from fakes.checkpoints import SYNTHETIC, write_checkpoint, write_weights

import modelpack
from modelpack.convert import Checkpoint, plan_conversion, run_conversion
from modelpack.errors import (
    ConversionError,
    InvalidGGUFError,
    NotFoundError,
    UnknownQuantizationError,
    UnsupportedError,
    WorkerCrashedError,
    WorkerTimeoutError,
)
from modelpack.gguf_header import read_header
from modelpack.quantize import QUANTIZATIONS, parse_quantization, quantize

TINY = Path(__file__).parent.parent / "data" / "tiny-llama"

pytestmark = pytest.mark.llama


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def bf16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    run_conversion(plan_conversion(Checkpoint.open(TINY), name="tiny-llama"), path)
    return path


class RecordingProgress:
    def __init__(self) -> None:
        self.steps: list[tuple[str, int | None, str]] = []
        self.done = 0

    def step(self, label: str, *, total: int | None = None, unit: str = "B") -> "RecordingProgress":
        self.steps.append((label, total, unit))
        return self

    def advance(self, amount: int) -> None:
        self.done += amount

    def note(self, message: str) -> None: ...

    def warn(self, message: str) -> None: ...

    def __enter__(self) -> "RecordingProgress":
        return self

    def __exit__(self, *_: object) -> None: ...


# What llama.cpp 0.3.36 makes of the tiny checkpoint's BF16 conversion (llama-quantize gives the same bytes).
DIGESTS = {
    "Q8_0": "94d7bd46b55b84112a5731c4f3a393fced04f83177d7084a93b1d3a2fde425df",
    "Q4_K_M": "5cc1a8a883c35414c3ad9d6f699b7d96edb494e1b7a0f359c50710d95930283e",
}


@pytest.mark.parametrize("name", DIGESTS)
def test_a_converted_checkpoint_quantizes_to_the_same_bytes_everywhere(bf16: Path, tmp_path: Path, name: str) -> None:
    progress = RecordingProgress()

    result = quantize(bf16, tmp_path / "one.gguf", parse_quantization(name), threads=1, progress=progress)
    quantize(bf16, tmp_path / "elsewhere" / "two.gguf", parse_quantization(name.lower()), threads=2)

    header = read_header(tmp_path / "one.gguf")
    assert (header.file_type, header.parameters, header.name) == (name, 918_784, "Tiny Llama")
    assert result.size == (tmp_path / "one.gguf").stat().st_size
    assert result.fallbacks == ()
    assert sha256(tmp_path / "one.gguf") == sha256(tmp_path / "elsewhere" / "two.gguf") == DIGESTS[name]
    size = sum(tensor.size for tensor in read_header(bf16).tensors)
    assert progress.steps == [(f"quantize {name}", size, "B")]
    assert progress.done == size > 1_800_000


def assert_direct_is_quantized(directory: Path, name: str, at: Path) -> None:
    direct = plan_conversion(Checkpoint.open(directory), file_type="Q8_0", name=name)
    run_conversion(direct, at / "direct.gguf")
    run_conversion(plan_conversion(Checkpoint.open(directory), name=name), at / "plain.gguf")
    result = quantize(at / "plain.gguf", at / "quantized.gguf", QUANTIZATIONS["Q8_0"], threads=1)

    assert sha256(at / "direct.gguf") == sha256(at / "quantized.gguf")
    assert sorted(direct.fallbacks) == sorted(fallback.tensor for fallback in result.fallbacks)


@pytest.mark.parametrize("name", ["tiny-llama", *SYNTHETIC])
def test_a_direct_conversion_to_q8_0_gives_the_bytes_of_the_detour(tmp_path: Path, name: str) -> None:
    directory = TINY if name == "tiny-llama" else write_checkpoint(name, tmp_path / "checkpoint")

    assert_direct_is_quantized(directory, name, tmp_path)


def test_a_direct_conversion_rounds_as_the_detour_does(tmp_path: Path) -> None:
    directory = Path(shutil.copytree(TINY, tmp_path / "checkpoint"))
    random, weights = np.random.default_rng(0), {}
    for name, stored in Checkpoint.open(directory).tensors.items():
        values = random.standard_normal(stored.shape, dtype=np.float32)
        # One matrix in more bits than the checkpoint's own type has.
        is_other = name == "model.layers.0.mlp.up_proj.weight"
        weights[name] = ("F32", values) if is_other else ("BF16", (values.view("<u4") >> 16).astype("<u2"))
    write_weights(directory, weights)

    assert_direct_is_quantized(directory, "mixed", tmp_path)


@pytest.mark.parametrize("name", ["F32", "F16", "IQ4_XS", "Q2_K", "TQ1_0"])
def test_other_file_types_are_made_too(bf16: Path, tmp_path: Path, name: str) -> None:
    quantize(bf16, tmp_path / "out.gguf", QUANTIZATIONS[name], threads=1)

    assert read_header(tmp_path / "out.gguf").file_type == name
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]


def test_the_mode_of_the_file_does_not_depend_on_the_umask(bf16: Path, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        quantize(bf16, tmp_path / "out.gguf", QUANTIZATIONS["Q8_0"], threads=1)
    finally:
        os.umask(before)

    assert (tmp_path / "out.gguf").stat().st_mode & 0o777 == 0o644


def test_tensors_whose_rows_do_not_fit_are_reported(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_checkpoint("linear-rope-biases", tmp_path / "checkpoint"))
    run_conversion(plan_conversion(checkpoint, name="odd"), tmp_path / "odd.gguf")

    result = quantize(tmp_path / "odd.gguf", tmp_path / "out.gguf", QUANTIZATIONS["Q4_K_M"], threads=1)

    by_tensor = {fallback.tensor: (fallback.wanted, fallback.type) for fallback in result.fallbacks}
    assert by_tensor["blk.0.ffn_gate.weight"] == ("q4_K", "q5_0")
    assert str(result.fallbacks[0]).startswith(result.fallbacks[0].tensor)


def test_what_is_quantized_already_is_refused(bf16: Path, tmp_path: Path) -> None:
    quantize(bf16, tmp_path / "q8.gguf", QUANTIZATIONS["Q8_0"], threads=1)

    with pytest.raises(ConversionError, match=r"q8\.gguf is quantized already \(Q8_0\)"):
        quantize(tmp_path / "q8.gguf", tmp_path / "q4.gguf", QUANTIZATIONS["Q4_K_M"])

    assert not (tmp_path / "q4.gguf").exists()


def test_a_quantization_that_needs_an_importance_matrix_is_refused_before_any_work(bf16: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="IQ2_XXS needs an importance matrix"):
        quantize(bf16, tmp_path / "out.gguf", QUANTIZATIONS["IQ2_XXS"])

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["IQ1_S", "IQ2_M", "IQ3_XS", "Q2_K_S"])
def test_a_quantization_said_to_need_a_matrix_really_does(bf16: Path, tmp_path: Path, name: str) -> None:
    unchecked = replace(QUANTIZATIONS[name], needs_importance_matrix=False)

    with pytest.raises(ConversionError, match="this quantization requires an imatrix"):
        quantize(bf16, tmp_path / "out.gguf", unchecked, threads=1)


def test_an_unknown_quantization_is_answered_with_those_there_are() -> None:
    with pytest.raises(UnknownQuantizationError, match=r"'Q9_Z'.*Q8_0.*Q4_K_M.*IQ4_XS"):
        parse_quantization("Q9_Z")


def test_names_are_read_in_any_case_and_short_ones_mean_the_medium_mixture() -> None:
    assert parse_quantization("q4_k_m") is parse_quantization(" Q4_K ") is QUANTIZATIONS["Q4_K_M"]


def test_a_hostile_or_missing_source_never_reaches_llama_cpp(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0))

    with pytest.raises(InvalidGGUFError):
        quantize(tmp_path / "bad.gguf", tmp_path / "out.gguf", QUANTIZATIONS["Q8_0"])
    with pytest.raises(NotFoundError):
        quantize(tmp_path / "none.gguf", tmp_path / "out.gguf", QUANTIZATIONS["Q8_0"])


def test_what_llama_cpp_refuses_is_said_in_its_words(tmp_path: Path) -> None:
    # A whole GGUF file of an architecture that llama.cpp has never heard of.
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    content = b"GGUF" + struct.pack("<IQQ", 3, 1, 1)
    content += text("general.architecture") + struct.pack("<I", 8) + text("nonsense")
    content += text("t.weight") + struct.pack("<IQIQ", 1, 32, 0, 0)
    (tmp_path / "odd.gguf").write_bytes(content + bytes(-len(content) % 32) + bytes(128))

    with pytest.raises(ConversionError, match="unknown model architecture: 'nonsense'"):
        quantize(tmp_path / "odd.gguf", tmp_path / "out.gguf", QUANTIZATIONS["Q8_0"])

    assert not (tmp_path / "out.gguf").exists()


def test_a_child_that_takes_too_long_is_ended(bf16: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(WorkerTimeoutError, match=r"longer than 0\.05 seconds"):
        quantize(bf16, tmp_path / "out.gguf", QUANTIZATIONS["Q8_0"], timeout=0.05)

    assert time.monotonic() - began < 10
    assert list(tmp_path.iterdir()) == []


def children() -> list[int]:
    own = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    if not own.exists():
        pytest.skip("finds the child through Linux's /proc")
    return [int(pid) for pid in own.read_text().split()]


def test_a_child_that_crashes_is_a_result(bf16: Path, tmp_path: Path) -> None:
    class CrashingProgress(RecordingProgress):
        def advance(self, amount: int) -> None:
            for pid in children():
                os.kill(pid, signal.SIGSEGV)

    with pytest.raises(WorkerCrashedError, match=r"ended by SIGSEGV while quantizing tiny\.gguf to Q4_K_M"):
        quantize(bf16, tmp_path / "out.gguf", QUANTIZATIONS["Q4_K_M"], progress=CrashingProgress())

    assert list(tmp_path.iterdir()) == []


def test_the_child_sees_no_secrets(bf16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = b""

    class LookingProgress(RecordingProgress):
        def advance(self, amount: int) -> None:
            nonlocal seen
            for pid in children():
                seen += Path(f"/proc/{pid}/environ").read_bytes()

    monkeypatch.setenv("HF_TOKEN", "hf_canary")

    quantize(bf16, tmp_path / "out.gguf", QUANTIZATIONS["Q4_K_M"], progress=LookingProgress())

    assert b"PATH=" in seen
    assert b"hf_canary" not in seen


def test_the_child_imports_nothing_from_the_current_directory(
    bf16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "llama_cpp.py").write_text("raise SystemExit(3)")
    (tmp_path / "modelpack").mkdir()
    (tmp_path / "modelpack" / "__init__.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)

    quantize(bf16, tmp_path / "out.gguf", QUANTIZATIONS["Q8_0"], threads=1)

    assert read_header(tmp_path / "out.gguf").file_type == "Q8_0"


def test_an_interrupt_ends_the_child_and_leaves_nothing(bf16: Path, tmp_path: Path) -> None:
    class InterruptingProgress(RecordingProgress):
        def advance(self, amount: int) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(bf16, tmp_path / "out.gguf", QUANTIZATIONS["Q4_K_M"], progress=InterruptingProgress())

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["blk.0.attn_norm.weight", "blk.1.ffn_up.weight"], ids=["copied", "quantized"])
def test_a_weight_that_is_no_number_is_refused_and_its_tensor_named(bf16: Path, tmp_path: Path, name: str) -> None:
    header = read_header(bf16)
    tensor = next(tensor for tensor in header.tensors if tensor.name == name)
    content = bytearray(bf16.read_bytes())
    end = header.data_offset + tensor.offset + tensor.size
    content[end - 2 : end] = b"\xff\x7f"  # the upper half of a float, or all of a BF16: not a number
    (tmp_path / "nan.gguf").write_bytes(content)

    with pytest.raises(ConversionError, match=rf"refused quantizing nan\.gguf to Q4_K_M: tensor '{name}' has invalid"):
        quantize(tmp_path / "nan.gguf", tmp_path / "out.gguf", QUANTIZATIONS["Q4_K_M"], threads=2)

    assert [path.name for path in tmp_path.iterdir()] == ["nan.gguf"]


ROOT = Path(modelpack.__file__).parent.parent

QUANTIZE_ELSEWHERE = """
import resource, sys
from pathlib import Path
from modelpack.errors import ModelpackError
from modelpack.quantize import parse_quantization, quantize

try:
    quantize(Path(sys.argv[1]), Path(sys.argv[2]), parse_quantization(sys.argv[3]))
except ModelpackError as error:
    print(type(error).__name__, error)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def write_large_embeddings(path: Path, rows: int, columns: int) -> int:
    """A Llama of nothing but embeddings, in BF16: their size. They are a hole in the file, so writing them is free."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(columns)
    writer.add_feed_forward_length(columns)
    writer.add_head_count(8)
    writer.add_layer_norm_rms_eps(1e-5)
    size = 2 * rows * columns
    writer.add_tensor_info("token_embd.weight", (rows, columns), np.dtype("<u2"), size, gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    begin = path.stat().st_size
    os.truncate(path, begin + -begin % 32 + size)
    return size


def test_memory_does_not_grow_with_the_vocabulary(tmp_path: Path) -> None:
    size = write_large_embeddings(tmp_path / "large.gguf", 262_144, 512)

    # From a process of its own, whose only child is the one that quantizes.
    command = [sys.executable, "-c", QUANTIZE_ELSEWHERE, tmp_path / "large.gguf", tmp_path / "out.gguf", "Q4_0"]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    peak = int(output) * (1 if sys.platform == "darwin" else 1024)
    assert read_header(tmp_path / "out.gguf").file_type == "Q4_0"
    assert peak < size // 2


def test_a_disk_that_fills_up_is_called_so(bf16: Path, tmp_path: Path) -> None:
    mount = 'mount -t tmpfs -o size=600k tmpfs "$0"; exec "$@"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "bash", "-e", "-c", mount, tmp_path]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let us mount anything")

    command += [sys.executable, "-c", QUANTIZE_ELSEWHERE, bf16, tmp_path / "out.gguf", "Q8_0"]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert output.startswith("InsufficientDiskError no space left to write")


def test_nothing_heavy_is_imported_to_name_quantizations() -> None:
    code = "import sys, modelpack.quantize; print([m for m in ('numpy', 'llama_cpp', 'gguf') if m in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert output.strip() == "[]"
