"""Where the converter lives, and how it gets there: pinned releases, checked by their hashes."""

import json
import logging
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from modelpack.atomic_file import write_atomically
from modelpack.errors import ConversionError, UnavailableError
from modelpack.progress import SILENT, Progress

RELEASE = "0.3.36"
"""Of llama-cpp-python: its source distribution carries the converter of the llama.cpp that quantizes and runs here."""
_DATA = Path(__file__).parents[1] / "data"
SOURCE_REQUIREMENT = _DATA / "converter-source.txt"
REQUIREMENTS = _DATA / "converter-requirements.txt"

_PREFIX = f"llama_cpp_python-{RELEASE}/vendor/llama.cpp/"
_WANTED = ("convert_hf_to_gguf.py", "conversion/", "gguf-py/gguf/")
_MAX_FILES = 2000
_MAX_SOURCE = 256 << 20

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class UpstreamEnvironment:
    """A directory of the converter's own: ``venv`` and ``llama.cpp``, and ``installed.json`` when both are whole."""

    directory: Path

    @property
    def python(self) -> Path:
        return self.directory / "venv" / "bin" / "python"

    @property
    def source(self) -> Path:
        """Upstream's files: ``convert_hf_to_gguf.py``, ``conversion``, ``gguf-py``."""
        return self.directory / "llama.cpp"

    @property
    def is_installed(self) -> bool:
        return self._stamp.is_file() and self.python.exists()

    @property
    def release(self) -> str | None:
        """The release of llama-cpp-python that it came with; None where it is not installed."""
        if not self.is_installed:
            return None
        return str(json.loads(self._stamp.read_text(encoding="utf-8"))["llama_cpp_python"])

    @property
    def _stamp(self) -> Path:
        return self.directory / "installed.json"

    def install(self, *, progress: Progress = SILENT) -> None:
        """Make it anew. pip is used with the settings of this machine, so mirrors and proxies are as everywhere.

        Raises UnavailableError where pip cannot get what is wanted, ConversionError where it is not what it should be.
        """
        self.remove()
        self.directory.mkdir(parents=True)
        try:
            with progress.step("fetch llama.cpp's converter"):
                self._fetch_source()
            with progress.step("install torch and transformers"):
                _run(sys.executable, "-m", "venv", str(self.directory / "venv"))
                self._pip("install", "--require-hashes", "--no-deps", "--only-binary", ":all:", "-r", str(REQUIREMENTS))
            packages = self._pip("freeze")
        except BaseException:
            self.remove()
            raise
        stamp = {"llama_cpp_python": RELEASE, "packages": packages.splitlines()}
        write_atomically(self._stamp, json.dumps(stamp, indent=2).encode())

    def remove(self) -> None:
        if self.directory.exists():
            # The stamp first, so that what is left of an interrupted removal does not pass for whole.
            self._stamp.unlink(missing_ok=True)
            shutil.rmtree(self.directory)

    def size(self) -> int:
        """Bytes on the disk."""
        return sum(path.lstat().st_size for path in self.directory.rglob("*")) if self.directory.exists() else 0

    def _fetch_source(self) -> None:
        with tempfile.TemporaryDirectory(dir=self.directory) as name:
            pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", name)
            _run(*pip, "--no-binary", "llama-cpp-python", "--require-hashes", "-r", str(SOURCE_REQUIREMENT))
            archive = next(Path(name).glob("*.tar.gz"), None)
            if archive is None:
                raise ConversionError(f"pip fetched no source distribution of llama-cpp-python {RELEASE}")
            self._unpack(archive)

    def _unpack(self, archive: Path) -> None:
        wanted = tuple(_PREFIX + name for name in _WANTED)
        with tarfile.open(archive) as tar:
            members = [member for member in tar if member.isreg() and member.name.startswith(wanted)]
            if len(members) > _MAX_FILES or sum(member.size for member in members) > _MAX_SOURCE:
                raise ConversionError(f"{archive.name} holds far more than a converter")
            for member in members:
                member.name = member.name.removeprefix(_PREFIX)
            tar.extractall(self.source, members, filter="data")
        if not (self.source / "convert_hf_to_gguf.py").is_file():
            raise ConversionError(f"{archive.name} holds no converter")

    def _pip(self, *arguments: str) -> str:
        return _run(str(self.python), "-m", "pip", "--disable-pip-version-check", *arguments)


def _run(*command: str) -> str:
    logger.info("running %s", " ".join(command))
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        last = [line for line in result.stderr.splitlines() if line.strip()][-3:]
        raise UnavailableError(f"{' '.join(command[2:4])} failed: {' / '.join(last)[:600]}")
    return result.stdout
