"""Where the measured work happens: registries of a row, and files of random content."""

import contextlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests" / "data" / "tiny-llama"
MODELPACK = [sys.executable, "-m", "modelpack"]

MAKE_PAYLOAD = """
import sys
import gguf
import numpy
writer = gguf.GGUFWriter(sys.argv[1], "llama")
writer.add_name("bench")
writer.add_file_type(gguf.LlamaFileType.ALL_F32)
random = numpy.random.default_rng(0).integers(0, 2**31, int(sys.argv[2]) << 18, dtype=numpy.int32)
writer.add_tensor("token_embd.weight", random.view(numpy.float32).reshape(-1, 1024))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
"""

MAKE_CHECKPOINT = """
import json, shutil, struct, sys
from pathlib import Path
import numpy
tiny, path, size = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) << 20
shutil.copytree(tiny, path, ignore=lambda _, names: [name for name in names if name.endswith(".safetensors")])
config = json.loads((path / "config.json").read_text())
wide, high, heads, groups, words = 1024, 2816, 16, 4, int(sys.argv[4]) or config["vocab_size"]
head = wide // heads
layer = {
    "self_attn.q_proj": (wide, wide), "self_attn.k_proj": (head * groups, wide),
    "self_attn.v_proj": (head * groups, wide), "self_attn.o_proj": (wide, wide),
    "mlp.gate_proj": (high, wide), "mlp.up_proj": (high, wide), "mlp.down_proj": (wide, high),
    "input_layernorm": (wide,), "post_attention_layernorm": (wide,),
}
layers = max(1, round(size / 2 / sum(numpy.prod(shape) for shape in layer.values())))
config.update(hidden_size=wide, intermediate_size=high, num_attention_heads=heads, num_key_value_heads=groups,
              num_hidden_layers=layers, head_dim=head, vocab_size=words)
(path / "config.json").write_text(json.dumps(config))
tensors = {"model.embed_tokens.weight": (words, wide), "model.norm.weight": (wide,)}
if not config.get("tie_word_embeddings"):
    tensors["lm_head.weight"] = (words, wide)
for number in range(layers):
    tensors |= {f"model.layers.{number}.{name}.weight": shape for name, shape in layer.items()}
header, end = {}, 0
for name, shape in tensors.items():
    begin, end = end, end + 2 * int(numpy.prod(shape))
    header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
encoded = json.dumps(header).encode()
random = numpy.random.default_rng(0)
with (path / "model.safetensors").open("wb") as file:
    file.write(struct.pack("<Q", len(encoded)) + encoded)
    for shape in tensors.values():
        weights = random.standard_normal(shape, dtype=numpy.float32) * numpy.float32(0.02)
        file.write((weights.view(numpy.uint32) >> 16).astype(numpy.uint16).tobytes())
"""


def checkpoint(folder: Path, size: int, vocabulary: int | None) -> Path:
    """A Llama checkpoint of about ``size`` MiB, random BF16 weights under the tiny one's tokenizer.

    Beyond the words of that tokenizer, a ``vocabulary`` is filled with unused ones, as every converter does it.
    """
    path = folder / "checkpoint"
    _run([sys.executable, "-c", MAKE_CHECKPOINT, str(TINY), str(path), str(size), str(vocabulary or 0)])
    return path


def payload(folder: Path, size: int) -> Path:
    """A GGUF file of one tensor of ``size`` MiB that does not compress."""
    path = folder / f"payload-{size}.gguf"
    if not path.exists():
        # In a process of its own: what this one ever held would count as the peak of every child.
        _run([sys.executable, "-c", MAKE_PAYLOAD, str(path), str(size)])
    return path


@contextlib.contextmanager
def registry(folder: Path, program: str) -> Iterator[str]:
    """An empty registry on a free port, ours where ``program`` is not installed; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    if shutil.which(program):
        config = folder / "registry.yml"
        config.write_text(
            "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
            f"storage: {{filesystem: {{rootdirectory: {folder / 'registry'}}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n"
        )
        command = [program, "serve", str(config)]
    else:
        command = [*MODELPACK, "registry", "serve", "--port", str(port), "--store", str(folder / "registry")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    sys.exit(f"{command[0]} did not start")
                time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=10)


def _run(command: list[str]) -> None:
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
