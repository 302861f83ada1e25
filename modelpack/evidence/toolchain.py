"""What built and ran a model: releases, and the very libraries of llama.cpp, since each machine compiles its own."""

import hashlib
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from modelpack import __version__

_LIBRARY = re.compile(r"(?:lib)?(?:llama|ggml[a-z-]*)\.(?:so|dylib|dll)")

# ggml says which commit it was made from; asked in a child, where all of llama.cpp runs.
_ASK_COMMIT = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
library.ggml_commit.restype = ctypes.c_char_p
print(library.ggml_commit().decode())
"""


@dataclass(frozen=True, slots=True)
class Library:
    """A shared library of llama.cpp. ``sha256`` is hexadecimal."""

    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Toolchain:
    """``llama_cpp_commit`` is what ggml was told when it was compiled; None where it was told nothing."""

    modelpack: str
    gguf: str
    llama_cpp_python: str
    llama_cpp_commit: str | None
    libraries: tuple[Library, ...]

    @classmethod
    def installed(cls) -> "Toolchain":
        files = metadata.files("llama-cpp-python") or []
        # The wheel has each of them twice: for linking against, and in lib, where they are loaded from.
        paths = sorted(
            Path(str(file.locate())) for file in files if file.parent.name == "lib" and _LIBRARY.fullmatch(file.name)
        )
        paths = [path for path in paths if path.is_file() and path.parent.parent.name == "llama_cpp"]
        return cls(
            modelpack=__version__,
            gguf=metadata.version("gguf"),
            llama_cpp_python=metadata.version("llama-cpp-python"),
            llama_cpp_commit=next(
                (commit for path in paths if "base" in path.name and (commit := _commit(path))), None
            ),
            libraries=tuple(Library(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths),
        )

    @property
    def converter(self) -> list[dict[str, Any]]:
        """What turns a checkpoint into GGUF, as in-toto resource descriptors."""
        return [
            {"name": "modelpack", "uri": f"pkg:pypi/modelpack-oci@{self.modelpack}"},
            {"name": "gguf", "uri": f"pkg:pypi/gguf@{self.gguf}"},
        ]

    @property
    def runtime(self) -> list[dict[str, Any]]:
        """What quantizes and runs GGUF, as in-toto resource descriptors."""
        package = f"pkg:pypi/llama-cpp-python@{self.llama_cpp_python}"
        descriptors: list[dict[str, Any]] = [{"name": "llama-cpp-python", "uri": package}]
        if self.llama_cpp_commit:
            # As it was told: an abbreviated commit, perhaps "-dirty", is no digest.
            descriptors.append({"name": "llama.cpp", "uri": f"pkg:github/ggml-org/llama.cpp@{self.llama_cpp_commit}"})
        descriptors += [
            {"name": library.name, "uri": f"{package}#{library.name}", "digest": {"sha256": library.sha256}}
            for library in self.libraries
        ]
        return descriptors


def _commit(library: Path) -> str | None:
    try:
        answer = subprocess.run(
            [sys.executable, "-I", "-c", _ASK_COMMIT, str(library)], capture_output=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    commit = answer.stdout.decode("ascii", "replace").strip()
    return commit if re.fullmatch(r"[0-9a-f]{7,40}(-dirty)?", commit) else None
