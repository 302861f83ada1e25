"""Rows for what makes a model: conversion and quantization."""

import argparse
import shutil
from collections.abc import Iterator
from pathlib import Path

from measure import Command, Work, run
from places import MODELPACK


def convert(options: argparse.Namespace, _folder: Path) -> Iterator[Work]:
    """Checkpoint to GGUF; ours also compares tokenizers, hashes and packages the result."""
    for type_ in options.convert_to or ["BF16", "F16", "Q8_0"]:
        ours = ["--quant", type_]
        commands = [Command("modelpack", lambda at, _, ours=ours: [*build(at, options.checkpoint, "bench:v1"), *ours])]
        skipped = {}
        if options.upstream_converter:
            script = [str(options.upstream_python), str(options.upstream_converter), str(options.checkpoint)]
            script += ["--outtype", type_.lower()]
            commands.append(
                Command(
                    "convert_hf_to_gguf", lambda at, _, script=script: [*script, "--outfile", str(at / "upstream.gguf")]
                )
            )
        else:
            skipped["convert_hf_to_gguf"] = "--upstream-converter is not given"
        yield Work(f"convert {type_}", commands, skipped)


def quantize(options: argparse.Namespace, folder: Path) -> Iterator[Work]:
    """GGUF to a quantized GGUF; ours also hashes and packages the result."""
    source = folder / "unquantized.gguf"
    run(build(folder / "convert", options.checkpoint, "bench:v1"))
    weights = max((folder / "convert" / "store" / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    shutil.copyfile(weights, source)
    for type_ in options.quant or ["Q4_K_M", "IQ4_XS"]:
        commands = [Command("modelpack", lambda at, _, type_=type_: [*build(at, source, "bench:v1"), "--quant", type_])]
        skipped = {}
        if options.llama_quantize:
            tool = str(options.llama_quantize)
            commands.append(
                Command(
                    "llama-quantize",
                    lambda at, _, tool=tool, type_=type_: [tool, str(source), str(at / "upstream.gguf"), type_],
                )
            )
        else:
            skipped["llama-quantize"] = "--llama-quantize is not given"
        yield Work(f"quantize {type_}", commands, skipped)


def build(at: Path, source: Path, reference: str) -> list[str]:
    return [*MODELPACK, "build", *in_store(at), str(source), "-t", reference]


def in_store(at: Path) -> list[str]:
    return ["--store", str(at / "store"), "--progress", "none", "--quiet"]
