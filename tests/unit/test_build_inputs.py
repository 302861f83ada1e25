"""What a build names as its inputs: every file that may have had a say in the bytes."""

import json
import shutil
import sys
from hashlib import sha256
from pathlib import Path

from modelpack.build import plan_build
from modelpack.build.evidence import read_inputs
from modelpack.converter import ConverterChoice
from modelpack.formats import codec_named
from modelpack.oci.reference import FileReference, Reference
from modelpack.progress import SILENT
from modelpack.upstream import UpstreamEnvironment

TINY = Path(__file__).parent.parent / "data" / "tiny-llama"


def inputs_of(checkpoint: Path, choice: ConverterChoice) -> dict[str, str]:
    plan = plan_build(
        FileReference(checkpoint), Reference.parse("tiny:v1"), (), codec=codec_named("cncf"), converter=choice
    )
    return {one.name: one.digest.hex for one in read_inputs(plan, (), SILENT)}


def test_files_one_folder_down_are_inputs_and_foreign_code_only_where_it_is_run(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(TINY, checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "modeling_tiny.Tiny"}}))
    (checkpoint / "modeling_tiny.py").write_text("print('run me')")
    for name in ("1_Pooling/config.json", ".cache/notes.json"):
        (checkpoint / name).parent.mkdir()
        (checkpoint / name).write_text("{}")
    environment = UpstreamEnvironment(tmp_path / "converter")
    environment.python.parent.mkdir(parents=True)
    environment.python.symlink_to(sys.executable)
    (environment.directory / "installed.json").write_text('{"llama_cpp_python": "0.3.36"}')

    native = inputs_of(checkpoint, ConverterChoice("native"))
    upstream = inputs_of(checkpoint, ConverterChoice("upstream", environment, trust_code=True))

    assert {"config.json", "model.safetensors", "tokenizer.json", "1_Pooling/config.json"} <= native.keys()
    assert not [name for name in native if name.endswith(".py") or name.startswith(".")]
    assert upstream == native | {"modeling_tiny.py": sha256(b"print('run me')").hexdigest()}
