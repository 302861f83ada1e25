"""llama.cpp's own converter in its cage: a stand-in shows what the cage lets through, the real one what it makes.

The stand-in is a directory like an installed one, with a converter of a few lines run by this Python. The real one is
used where MODELPACK_TEST_CONVERTER names its directory (``modelpack converter install`` makes one).
"""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from modelpack.convert import Checkpoint, plan_conversion, run_conversion
from modelpack.converter import ConverterChoice, convert, converter_annotations
from modelpack.errors import ConversionError, UnknownArchitectureError, UnsupportedError, WorkerTimeoutError
from modelpack.upstream import UpstreamEnvironment, UpstreamPlan

TINY = Path(__file__).parent.parent / "data" / "tiny-llama"


@pytest.fixture
def converted(tmp_path: Path) -> Path:
    """What the stand-in hands out."""
    path = tmp_path / "converted.gguf"
    run_conversion(plan_conversion(Checkpoint.open(TINY), name="tiny-llama"), path)
    return path


def stand_in(directory: Path, converted: Path, body: str = "") -> UpstreamEnvironment:
    (directory / "venv/bin").mkdir(parents=True)
    (directory / "venv/bin/python").symlink_to(sys.executable)
    (directory / "llama.cpp").mkdir()
    (directory / "installed.json").write_text('{"llama_cpp_python": "0.3.36"}')
    (directory / "llama.cpp/convert_hf_to_gguf.py").write_text(
        f"import os, shutil, socket, sys, time\n"
        f"def main():\n"
        f"    checkpoint, output = sys.argv[1], sys.argv[sys.argv.index('--outfile') + 1]\n"
        f"    {body or 'pass'}\n"
        f"    shutil.copyfile({str(converted)!r}, output)\n"
    )
    return UpstreamEnvironment(directory)


def copy_checkpoint(target: Path, **config: object) -> Path:
    shutil.copytree(TINY, target)
    document = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(document | config))
    return target


def plan(environment: UpstreamEnvironment, directory: Path, *, trust_code: bool = False) -> UpstreamPlan:
    choice = ConverterChoice("upstream", environment, trust_code)
    planned = choice.plan(Checkpoint.open(directory), "tiny-llama")
    assert isinstance(planned, UpstreamPlan)
    return planned


def test_the_child_sees_no_secrets_no_code_and_no_network(
    tmp_path: Path, converted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    checkpoint = copy_checkpoint(tmp_path / "checkpoint")
    (checkpoint / "modeling_tiny.py").write_text("raise SystemExit(3)")
    (checkpoint / "weights.bin").write_bytes(b"pickle")
    seen = tmp_path / "seen.json"
    body = (
        f"import json; json.dump([dict(os.environ), sorted(os.listdir(checkpoint)), "
        f"[name for _, name in socket.if_nameindex()]], open({str(seen)!r}, 'w'))"
    )

    convert(plan(stand_in(tmp_path / "env", converted, body), checkpoint), tmp_path / "out.gguf")

    environment, files, interfaces = json.loads(seen.read_text())
    assert "hf_canary" not in environment.values()
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert environment["HOME"] != os.environ.get("HOME")
    assert {"config.json", "model.safetensors"} <= set(files)
    assert not [name for name in files if name.endswith((".py", ".bin"))]
    if sys.platform == "linux" and os.geteuid() == 0:
        assert interfaces == ["lo"]
    assert (tmp_path / "out.gguf").read_bytes() == converted.read_bytes()
    assert not list(tmp_path.glob(".upstream-*"))


def test_code_of_the_checkpoint_is_run_only_when_somebody_says_so(tmp_path: Path, converted: Path) -> None:
    checkpoint = copy_checkpoint(tmp_path / "checkpoint", auto_map={"AutoConfig": "modeling_tiny.Config"})
    (checkpoint / "modeling_tiny.py").write_text("")
    seen = tmp_path / "seen"
    body = f"open({str(seen)!r}, 'w').write(' '.join(os.listdir(checkpoint)))"
    environment = stand_in(tmp_path / "env", converted, body)

    with pytest.raises(UnsupportedError, match=r"wants code of its own to be run \(modeling_tiny\.py\)"):
        plan(environment, checkpoint)
    trusted = plan(environment, checkpoint, trust_code=True)
    convert(trusted, tmp_path / "out.gguf")

    assert "modeling_tiny.py" in seen.read_text().split()
    assert converter_annotations(trusted)["dev.modelpack.remote-code"] == "modeling_tiny.py"


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        ("print('WARNING:** The BPE pre-tokenizer was not recognized!')", ConversionError, "would make a broken model"),
        ("print('WARNING:hf-to-gguf:Unknown RoPE type: odd')", ConversionError, "Unknown RoPE type: odd"),
        ("sys.exit('Model MptForCausalLM is not supported')", UnknownArchitectureError, "neither modelpack nor"),
        ("raise ValueError('no such tensor')", ConversionError, "refused tiny-llama: .*no such tensor"),
    ],
)
def test_what_upstream_only_warns_of_is_an_error(
    tmp_path: Path, converted: Path, body: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        convert(plan(stand_in(tmp_path / "env", converted, body), TINY), tmp_path / "out.gguf")

    assert not (tmp_path / "out.gguf").exists()
    assert not list(tmp_path.glob(".upstream-*"))


def test_a_lost_chat_template_and_another_type_are_errors(tmp_path: Path, converted: Path) -> None:
    content = converted.read_bytes()
    without = tmp_path / "without.gguf"
    without.write_bytes(content.replace(b"tokenizer.chat_template", b"tokenizer.chat_templatx"))
    with pytest.raises(ConversionError, match="lost the chat template of tiny-llama"):
        convert(plan(stand_in(tmp_path / "one", without), TINY), tmp_path / "out.gguf")

    other = tmp_path / "other.gguf"
    run_conversion(plan_conversion(Checkpoint.open(TINY), name="tiny-llama", file_type="F16"), other)
    with pytest.raises(ConversionError, match="made a F16 file, not a BF16 one"):
        convert(plan(stand_in(tmp_path / "two", other), TINY), tmp_path / "out.gguf")


def test_a_converter_that_takes_too_long_is_ended(tmp_path: Path, converted: Path) -> None:
    from modelpack.upstream import run_upstream

    with pytest.raises(WorkerTimeoutError, match="longer than 2 seconds"):
        run_upstream(
            plan(stand_in(tmp_path / "env", converted, "time.sleep(60)"), TINY), tmp_path / "out.gguf", timeout=2
        )


def test_what_is_not_known_natively_goes_to_the_installed_converter(tmp_path: Path, converted: Path) -> None:
    checkpoint = Checkpoint.open(copy_checkpoint(tmp_path / "checkpoint", architectures=["MptForCausalLM"]))
    installed = stand_in(tmp_path / "env", converted)
    missing = UpstreamEnvironment(tmp_path / "none")

    assert isinstance(ConverterChoice("auto", installed).plan(checkpoint, "tiny"), UpstreamPlan)
    with pytest.raises(UnknownArchitectureError, match=r"MptForCausalLM.*LlamaForCausalLM.*is not installed"):
        ConverterChoice("auto", missing).plan(checkpoint, "tiny")
    with pytest.raises(UnknownArchitectureError, match="MptForCausalLM"):
        ConverterChoice("native", installed).plan(checkpoint, "tiny")
    assert not isinstance(ConverterChoice("auto", installed).plan(Checkpoint.open(TINY), "tiny"), UpstreamPlan)


@pytest.mark.peer
def test_the_real_converter_makes_the_bytes_of_ours(tmp_path: Path, converted: Path) -> None:
    directory = os.environ.get("MODELPACK_TEST_CONVERTER")
    if not directory:
        pytest.skip("MODELPACK_TEST_CONVERTER names no installed converter")

    convert(plan(UpstreamEnvironment(Path(directory)), TINY), tmp_path / "out.gguf")

    assert (tmp_path / "out.gguf").read_bytes() == converted.read_bytes()
