"""The cage: gives up memory and network, then becomes upstream's converter.

Started as ``python -m modelpack.upstream.child MEMORY PYTHON SOURCE ARGUMENT...`` by ``upstream.conversion`` alone.
What it gives up stays given up across the exec.
"""

import os
import sys

from modelpack.isolation import die_with_parent, leave_network, limit_resources

# In isolated mode Python adds neither the script's directory nor the user's packages: upstream's files come in by name.
_DRIVER = """
import sys
source, *arguments = sys.argv[1:]
sys.path[:0] = [source, source + "/gguf-py"]
sys.argv = ["convert_hf_to_gguf.py", *arguments]
import convert_hf_to_gguf
convert_hf_to_gguf.main()
"""


def main(arguments: list[str]) -> None:
    memory, python, *rest = arguments
    die_with_parent()
    limit_resources(int(memory))
    leave_network()
    os.execv(python, [python, "-I", "-c", _DRIVER, *rest])  # noqa: S606  # no shell is wanted


if __name__ == "__main__":
    main(sys.argv[1:])
