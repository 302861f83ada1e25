"""One target under atheris: ``python tests/fuzz/run.py TARGET [libFuzzer options]``. Started by scripts/fuzz."""

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))

with atheris.instrument_imports(include=["modelpack", "jinja2", "yaml"]):
    import jinja2.ext  # noqa: F401  the lint imports it lazily, too late to be instrumented
    from fuzz.targets import run


def main() -> None:
    name = sys.argv.pop(1)
    atheris.Setup(sys.argv, lambda data: run(name, data) and None)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
