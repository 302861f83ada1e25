"""llama.h without what surrounds it in llama-cpp-python: half of what that takes are chat formats, Jinja and numpy.

Only for a child process that llama.cpp is let into: whoever imports ``llama_cpp`` after this finds a package without
its contents.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from modelpack.errors import ConversionError


def load_llama() -> Any:
    """The functions of llama.h. Raises ConversionError where llama-cpp-python is missing."""
    spec = find_spec("llama_cpp")
    if spec is None or spec.submodule_search_locations is None:
        raise ConversionError("llama-cpp-python is not installed")
    package = ModuleType("llama_cpp")
    package.__path__ = spec.submodule_search_locations
    sys.modules["llama_cpp"] = package
    return import_module("llama_cpp.llama_cpp")
