"""Where the command line's tests find what they need."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
GGUF_HOSTILE = REPOSITORY / "tests/data/gguf-hostile"
TINY_LLAMA = REPOSITORY / "tests/data/tiny-llama"
