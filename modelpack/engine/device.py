"""Which device llama.cpp really uses, read from what it logs while it loads a model.

The log lines are not an interface of llama.cpp; they hold for the release that is pinned (0c1e57098):
``offloaded %d/%d layers to GPU`` and ``%s model buffer size`` (llama-model.cpp), ``%s KV buffer size``
(llama-kv-cache.cpp), ``using device %s`` (llama.cpp). The child prints each message on one line, so a model
whose name contains a line break cannot forge one.
"""

import re
from dataclasses import dataclass
from typing import Literal

DeviceChoice = Literal["auto", "gpu", "cpu"]
"""What the user asked for: ``auto`` takes a GPU where there is one, ``gpu`` wants a proof, ``cpu`` uses none."""

_OFFLOADED = re.compile(r"^load_tensors: offloaded (\d+)/(\d+) layers to GPU", re.MULTILINE)
_DEVICE = re.compile(r"^llama_\w+: using device (\S+) \((.+?)\)(?: \([^()]*\))? - \d+ MiB free", re.MULTILINE)
_BUFFER = re.compile(r"^\w+: +(\S+) +(model|KV|RS|compute|output) buffer size = +(\d+\.\d+) MiB", re.MULTILINE)
_BACKEND = re.compile(r"(?:^|\| )(\w+) : ")


@dataclass(frozen=True, slots=True)
class Buffer:
    """Memory that llama.cpp took on one device for one purpose."""

    device: str
    purpose: str
    """``model`` (weights), ``KV``, ``RS`` (recurrent state), ``compute`` or ``output``."""
    mebibytes: float

    @property
    def is_on_gpu(self) -> bool:
        # CUDA_Host and its like are main memory that the GPU can read.
        return not self.device.startswith(("CPU", "BLAS")) and not self.device.endswith("_Host")


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """Where a model runs, and why not on a GPU if it does not. ``str()`` gives one line for a person."""

    name: str
    """``CPU``, or the devices that hold layers, such as ``CUDA0 NVIDIA RTX 4070``."""
    offloaded_layers: int
    layers: int
    """Layers of the model, the output layer included, as llama.cpp counts them."""
    buffers: tuple[Buffer, ...]
    reason: str | None
    """Why no layer is on a GPU; None when all of them are."""

    @property
    def is_gpu(self) -> bool:
        """True only with both proofs: layers offloaded, and weights in a buffer of a GPU."""
        return self.offloaded_layers > 0 and self.gpu_mebibytes("model") > 0

    def gpu_mebibytes(self, purpose: str) -> float:
        return sum(buffer.mebibytes for buffer in self.buffers if buffer.is_on_gpu and buffer.purpose == purpose)

    def __str__(self) -> str:
        text = f"{self.name} ({self.offloaded_layers}/{self.layers} layers"
        if self.is_gpu:
            text += f", {self.gpu_mebibytes('model') / 1024:.1f} GiB, KV {self.gpu_mebibytes('KV') / 1024:.1f} GiB"
        return f"{text})" + (f": {self.reason}" if self.reason else "")


def parse_device(
    log: str, *, layers: int, requested: DeviceChoice, gpu_supported: bool, system_info: str
) -> DeviceReport:
    """Read the device out of a log of llama.cpp.

    ``layers`` counts the output layer; ``gpu_supported`` is ``llama_supports_gpu_offload()`` and ``system_info``
    ``llama_print_system_info()``, both of the process that wrote the log.
    """
    offloaded = 0
    if found := _OFFLOADED.search(log):
        offloaded, layers = int(found[1]), int(found[2])
    buffers = tuple(_sum_buffers(log))
    on_gpu = [buffer.device for buffer in buffers if buffer.is_on_gpu and buffer.purpose == "model"]
    if offloaded and on_gpu:
        names = dict(_DEVICE.findall(log))
        # A mapped file is a buffer of its own: MTL0_Mapped belongs to MTL0.
        devices = list(dict.fromkeys(device.removesuffix("_Mapped") for device in on_gpu))
        name = ", ".join(f"{device} {names[device]}" if device in names else device for device in devices)
        reason = None if offloaded == layers else f"only {offloaded} of {layers} layers fit"
        return DeviceReport(name, offloaded, layers, buffers, reason)
    return DeviceReport("CPU", 0, layers, buffers, _why_cpu(requested, gpu_supported, system_info))


def _sum_buffers(log: str) -> list[Buffer]:
    sizes: dict[tuple[str, str], float] = {}
    for device, purpose, size in _BUFFER.findall(log):
        sizes[device, purpose] = sizes.get((device, purpose), 0.0) + float(size)
    return [Buffer(device, purpose, round(size, 2)) for (device, purpose), size in sizes.items()]


def _why_cpu(requested: DeviceChoice, gpu_supported: bool, system_info: str) -> str:
    if requested == "cpu":
        return "as requested"
    if gpu_supported:
        return "llama.cpp put no layer on the GPU"
    backends = [backend for backend in _BACKEND.findall(system_info) if backend != "CPU"]
    if backends:
        return f"llama-cpp-python is built for {', '.join(backends)}, but finds no usable GPU"
    return "llama-cpp-python is built without GPU support"
