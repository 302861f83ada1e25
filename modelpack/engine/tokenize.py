"""What token ids llama.cpp makes of texts, by a GGUF file's vocabulary alone, asked in a child process."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from modelpack.engine.process import clean_environment
from modelpack.errors import WorkerCrashedError, WorkerTimeoutError

_TIMEOUT = 120.0
_LOG_ERROR = 4  # GGML_LOG_LEVEL_ERROR of ggml.h


def tokenize(path: Path, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each text, special tokens not added, but taken for such where the text has them; no weights are read.

    Raises WorkerCrashedError, also when llama.cpp does not load the vocabulary, and WorkerTimeoutError.
    """
    job = json.dumps({"path": str(path), "texts": list(texts)}).encode("ascii")
    try:
        result = subprocess.run(
            [sys.executable, "-P", "-m", __name__],
            input=job,
            env=clean_environment(),
            capture_output=True,
            timeout=_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise WorkerTimeoutError(f"llama.cpp did not tokenize with {path} within {_TIMEOUT:.0f} s") from error
    if result.returncode:
        last = result.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        reason = last[:500] or f"exit {result.returncode}"
        raise WorkerCrashedError(f"llama.cpp cannot tokenize with {path}: {reason}")
    answer: list[list[int]] = json.loads(result.stdout.decode("ascii").rpartition("\n")[2])
    return answer


def main() -> None:
    import ctypes

    from modelpack.llama_library import load_llama

    llama_cpp = load_llama()
    job = json.load(sys.stdin)
    settings = llama_cpp.llama_model_default_params()
    settings.vocab_only = True
    errors: list[str] = []

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]  # llama_cpp has no types
    def remember(level: int, text: bytes, _data: object) -> None:
        if level >= _LOG_ERROR:
            errors.append(text.decode("utf-8", "replace").strip())

    llama_cpp.llama_log_set(remember, None)
    model = llama_cpp.llama_model_load_from_file(job["path"].encode(), settings)
    if not model:
        sys.exit(errors[0] if errors else "the vocabulary is not loaded")
    vocabulary = llama_cpp.llama_model_get_vocab(model)
    answer = []
    for text in job["texts"]:
        content = text.encode("utf-8")
        size = len(content) + 16
        ids = (ctypes.c_int32 * size)()
        count = llama_cpp.llama_tokenize(vocabulary, content, len(content), ids, size, False, True)
        if count < 0:
            sys.exit(f"{-count} tokens for a text of {len(content)} bytes")
        answer.append(list(ids[:count]))
    sys.stdout.write("\n" + json.dumps(answer))


if __name__ == "__main__":
    main()
