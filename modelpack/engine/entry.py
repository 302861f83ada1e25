"""What every child of the engine does first: read its orders, give up what it does not need, catch llama.cpp's log."""

import ctypes
import json
import os
import shutil
import sys
import threading
from pathlib import Path
from typing import Any, TextIO

from modelpack.isolation import leave_network, limit_resources

# enum ggml_log_level in ggml.h; the one in llama_cpp/_logger.py is out of date.
_GGML_LOG_LEVEL_DEBUG = 1
_GGML_LOG_LEVEL_CONT = 5
_LOG_BYTES = 256 * 1024

_log_callback: object = None
"""The log callback, kept so that it is not collected while llama.cpp holds it."""


def enter() -> tuple[dict[str, Any], TextIO, bool]:
    """The configuration (one line of JSON on stdin), the channel for events to the parent, and whether the network is
    out of reach.

    From here on the process ends as soon as stdin closes, which happens however the parent dies.
    """
    configuration: dict[str, Any] = json.loads(sys.stdin.buffer.readline())
    # Whatever llama.cpp prints to stdout belongs into the log; the channel to the parent gets a descriptor of its own.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    limit_resources(configuration["memory_limit"])
    isolated = leave_network()
    directory = Path(configuration["directory"])
    threading.Thread(target=_die_with_parent, args=(directory,), daemon=True).start()
    return configuration, channel, isolated


def _die_with_parent(directory: Path) -> None:
    while sys.stdin.buffer.read(4096):
        pass
    shutil.rmtree(directory, ignore_errors=True)
    os._exit(0)


def take_log(llama_cpp: Any) -> list[str]:
    """Write llama.cpp's log to stderr, without its debug lines, and into the list that is returned, up to 256 KiB.

    Text from the model appears in messages, and whole templates in what llama-cpp-python prints to stderr. The list
    has messages of llama.cpp alone, each kept on its line, so that no text from a model poses as a message.
    """
    messages: list[str] = []
    room = _LOG_BYTES
    last_level = 0

    def write(level: int, text: bytes, _: object) -> None:
        nonlocal last_level, room
        if level != _GGML_LOG_LEVEL_CONT:
            last_level = level
        if last_level != _GGML_LOG_LEVEL_DEBUG:
            body, end = (text[:-1], b"\n") if text.endswith(b"\n") else (text, b"")
            line = body.replace(b"\n", b"\\n").replace(b"\r", b"\\r") + end
            os.write(2, line)
            if room > 0:
                room -= len(line)
                messages.append(line.decode("utf-8", "replace"))

    global _log_callback  # noqa: PLW0603
    _log_callback = llama_cpp.llama_log_callback(write)
    llama_cpp.llama_log_set(_log_callback, ctypes.c_void_p(0))
    return messages
