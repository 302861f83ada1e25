"""Help is quick and complete: it is the first thing that a person sees."""

import subprocess
import sys

import pytest

from modelpack.cli.main import ALIASES, COMMANDS

HEAVY = {"cryptography", "gguf", "huggingface_hub", "jsonschema", "llama_cpp", "numpy", "oras", "rich", "starlette",
         "tokenizers", "urllib3", "uvicorn"}  # fmt: skip


def test_help_imports_nothing_heavy():
    code = "import sys; sys.argv = ['modelpack', '--help']; from modelpack.cli.main import cli\n"
    code += "cli.main(standalone_mode=False); print(sorted(sys.modules), file=sys.stderr)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    loaded = set(process.stderr.strip("[]\n").replace("'", "").split(", "))
    assert HEAVY & {name.partition(".")[0] for name in loaded} == set()


@pytest.mark.parametrize("name", [*COMMANDS, *ALIASES])
def test_every_command_explains_itself(modelpack, name):
    result = modelpack(name, "--help")

    assert result.code == 0
    assert result.stdout.startswith(f"Usage: modelpack {name}") or result.stdout.startswith(
        "Usage: python -m modelpack"
    )
    assert len(result.stdout.splitlines()) > 5


def test_the_groups_list_their_commands(modelpack):
    assert "serve" in modelpack("registry", "--help").stdout
    assert "add" in modelpack("trust", "--help").stdout


def test_completion_knows_the_commands(modelpack, environment):
    env = {"_MODELPACK_COMPLETE": "bash_complete", "COMP_WORDS": "modelpack pu", "COMP_CWORD": "1"}
    script = "import sys; sys.argv = ['modelpack']; from modelpack.cli.main import main; main()"
    process = subprocess.run(
        [sys.executable, "-c", script], env={**environment, **env}, capture_output=True, text=True, check=False
    )
    assert {line.partition(",")[2] for line in process.stdout.splitlines()} == {"push", "pull"}
