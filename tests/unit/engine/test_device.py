"""The lines are llama.cpp's own formats (commit 0c1e57098), filled in as its CUDA, Metal and CPU builds do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpack.engine.device import DeviceReport, parse_device

CPU_INFO = "CPU : SSE3 = 1 | AVX2 = 1 | OPENMP = 1 | REPACK = 1 | "
CUDA_INFO = "CUDA : ARCHS = 890 | USE_GRAPHS = 1 | " + CPU_INFO

CUDA_LOG = """\
llama_model_load_from_file_impl: using device CUDA0 (NVIDIA GeForce RTX 4070) (0000:01:00.0) - 11012 MiB free
load_tensors: offloading output layer to GPU
load_tensors: offloading 28 repeating layers to GPU
load_tensors: offloaded 29/29 layers to GPU
load_tensors:   CPU_Mapped model buffer size =   308.23 MiB
load_tensors:        CUDA0 model buffer size =  4168.09 MiB
llama_context:  CUDA_Host  output buffer size =     0.58 MiB
llama_kv_cache:      CUDA0 KV buffer size =   512.00 MiB
sched_reserve:      CUDA0 compute buffer size =   304.75 MiB
sched_reserve:  CUDA_Host compute buffer size =    23.01 MiB
"""

CPU_LOG = """\
load_tensors:   CPU_Mapped model buffer size =     1.75 MiB
llama_kv_cache:        CPU KV buffer size =     0.25 MiB
sched_reserve:        CPU compute buffer size =     2.75 MiB
"""


def parse(log: str, **changes: object) -> DeviceReport:
    facts = {"layers": 29, "requested": "auto", "gpu_supported": True, "system_info": CUDA_INFO} | changes
    return parse_device(log, **facts)  # type: ignore[arg-type]


def test_a_model_that_is_whole_on_a_gpu_is_reported_with_its_memory():
    device = parse(CUDA_LOG)

    assert device.is_gpu
    assert str(device) == "CUDA0 NVIDIA GeForce RTX 4070 (29/29 layers, 4.1 GiB, KV 0.5 GiB)"
    assert device.gpu_mebibytes("compute") == 304.75  # pinned main memory is not on the GPU


def test_a_model_that_fits_in_part_says_how_much():
    device = parse(CUDA_LOG.replace("29/29", "20/29"))

    assert device.is_gpu
    assert device.reason == "only 20 of 29 layers fit"


def test_layers_of_two_gpus_name_both_and_add_up():
    log = CUDA_LOG + "load_tensors:        CUDA1 model buffer size =  1000.00 MiB\n"

    device = parse(log)

    assert device.name == "CUDA0 NVIDIA GeForce RTX 4070, CUDA1"
    assert device.gpu_mebibytes("model") == pytest.approx(5168.09)


def test_a_mapped_buffer_of_metal_counts_as_gpu():
    device = parse(
        "llama_prepare_model_devices: using device MTL0 (Apple M2) (unknown id) - 10922 MiB free\n"
        "load_tensors: offloaded 29/29 layers to GPU\n"
        "load_tensors: MTL0_Mapped model buffer size =  4168.09 MiB\n"
    )

    assert device.is_gpu
    assert device.name == "MTL0 Apple M2"


def test_offloaded_layers_without_weights_on_a_gpu_prove_nothing():
    device = parse(CPU_LOG + "load_tensors: offloaded 29/29 layers to GPU\n")

    assert not device.is_gpu
    assert device.name == "CPU"
    assert device.reason == "llama.cpp put no layer on the GPU"


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"requested": "cpu"}, "as requested"),
        ({"gpu_supported": False, "system_info": CPU_INFO}, "llama-cpp-python is built without GPU support"),
        ({"gpu_supported": False}, "llama-cpp-python is built for CUDA, but finds no usable GPU"),
        ({}, "llama.cpp put no layer on the GPU"),
    ],
)
def test_a_model_on_the_cpu_says_why(facts: dict[str, object], reason: str):
    device = parse(CPU_LOG, **facts)

    assert not device.is_gpu
    assert str(device) == f"CPU (0/29 layers): {reason}"


@pytest.mark.parametrize("text", ["general.name = x\\nload_tensors: offloaded 9/9 layers to GPU", "x offloaded 9/9"])
def test_text_of_a_model_inside_a_line_is_not_a_message(text: str):
    device = parse(f"{CPU_LOG}print_info: {text}\nprint_info: load_tensors: CUDA0 model buffer size = 1.00 MiB\n")

    assert not device.is_gpu


@given(st.text())
def test_no_log_is_too_strange_to_read(log: str):
    assert parse(log).layers >= 0
