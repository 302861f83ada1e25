"""What is installed from a wheel has what a checkout has: schemas, types, data, and the command."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    target = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", target]
    subprocess.run(build, cwd=REPOSITORY, check=True, capture_output=True)
    (path,) = target.glob("*.whl")
    return path


def test_the_wheel_holds_every_schema_the_types_and_the_data(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())

    schemas = {f"modelpack/_schemas/{path.relative_to(REPOSITORY / 'schemas')}" for path in
               (REPOSITORY / "schemas").rglob("*.json")}  # fmt: skip
    assert len(schemas) > 20
    assert schemas <= names
    data = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "modelpack").rglob("*.json")}
    assert data <= names
    assert "modelpack/py.typed" in names
    assert not [name for name in names if name.startswith(("tests", "scripts"))]


def test_the_command_finds_its_schemas_in_a_wheel(wheel, tmp_path, environment):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = "import modelpack, modelpack.schemas as s; print(modelpack.__file__, s.schema_path('cli/build'))"
    # -P and PYTHONPATH: the extracted package, not the checkout that the environment knows.
    process = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={**environment, "PYTHONPATH": os.fspath(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stdout.split() == [
        f"{tmp_path}/site/modelpack/__init__.py",
        f"{tmp_path}/site/modelpack/_schemas/cli/build.json",
    ]
