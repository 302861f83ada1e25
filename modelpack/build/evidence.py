"""What a build can say about itself: its inputs by their content, provenance and a bill of materials."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from modelpack import schemas
from modelpack.build.plan import BuildPlan
from modelpack.convert import Checkpoint
from modelpack.evidence.bom import bill_of_materials
from modelpack.evidence.predicates import CYCLONEDX, SLSA_PROVENANCE
from modelpack.evidence.provenance import Builder, BuildFacts, InputFile, provenance
from modelpack.evidence.toolchain import Toolchain
from modelpack.file_digest import sha256_of
from modelpack.gguf_shards import shard_paths
from modelpack.oci.digest import Digest
from modelpack.progress import Progress
from modelpack.upstream import UpstreamPlan

if TYPE_CHECKING:
    from modelpack.build.run import BuiltVariant

# Files beside the weights that conversion may read, by suffix.
_SMALL_INPUTS = (".json", ".jinja", ".model", ".txt", ".tiktoken")


def evidence_of(
    plan: BuildPlan, built: "BuiltVariant", builder: Builder, *, started: datetime, finished: datetime
) -> dict[str, dict[str, Any]]:
    """What a build can say about what it made, for somebody to sign: predicates by their type."""
    facts = BuildFacts(
        name=plan.origin.name,
        inputs=built.inputs,
        quantization=built.quantization,
        format=plan.codec.name,
        created=plan.origin.created,
        repository=plan.origin.source_url,
        commit=plan.origin.revision,
        intermediate=built.intermediate,
        fallbacks=built.fallbacks,
        imatrix=built.imatrix,
        recipe={name: value for name, value in asdict(plan.options.recipe).items() if value},
        findings={key: text for key, text in built.model.annotations.items() if key.startswith("dev.modelpack.")},
    )
    return {
        SLSA_PROVENANCE: provenance(
            facts, built.toolchain or Toolchain.installed(), builder, started=started, finished=finished
        ),
        CYCLONEDX: bill_of_materials(built.model, built.descriptor.digest),
    }


class InputReading:
    """Hashes what goes into a build while the build works on it, and looks at the tools that do; a context manager that
    ends with the build.
    """

    def __init__(self, plan: BuildPlan, progress: Progress) -> None:
        self._is_over = threading.Event()
        self._pool = ThreadPoolExecutor(2)
        self._toolchain = self._pool.submit(_look_at_tools)
        self._inputs = self._pool.submit(read_inputs, plan, (), progress, is_over=self._is_over.is_set)

    def inputs(self) -> tuple[InputFile, ...]:
        return self._inputs.result()

    def toolchain(self) -> Toolchain:
        return self._toolchain.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._pool.shutdown()


def _look_at_tools() -> Toolchain:
    schemas.prepare()
    return Toolchain.installed()


def read_inputs(
    plan: BuildPlan,
    built: "Sequence[BuiltVariant]",
    progress: Progress,
    *,
    is_over: Callable[[], bool] = lambda: False,
) -> tuple[InputFile, ...]:
    """Every file that the weights and documents may have come from, by its content.

    Once ``is_over``, nobody waits for the answer: raises CancelledError.
    """
    if plan.snapshot:
        known = {file.path: file.sha256 for file in plan.snapshot.files}
    elif plan.checkpoint:
        known = dict.fromkeys(_checkpoint_files(plan.checkpoint))
        if isinstance(plan.conversion, UpstreamPlan):
            known |= dict.fromkeys(plan.conversion.code)
    elif plan.gguf:
        # Packaged as it is, it has been hashed on its way into the store.
        names = [path.name for path in shard_paths(plan.gguf)]
        as_it_is = next((one.weights for one in built if one.quantization == plan.gguf_type), ())
        known = dict.fromkeys(names)
        if len(as_it_is) == len(names):
            known = {name: file.digest.hex for name, file in zip(names, as_it_is, strict=True)}
    else:
        raise AssertionError("a plan without a source")
    directory = plan.checkpoint.directory if plan.checkpoint else plan.gguf.parent if plan.gguf else Path()
    return tuple(
        InputFile(name, Digest.from_hex(known[name] or _sha256(directory / name, progress, is_over)))
        for name in sorted(known)
    )


def _checkpoint_files(checkpoint: Checkpoint) -> set[str]:
    """The shards, and the small files that conversion and packaging look at."""
    read = [*checkpoint.tokenizer_files, *(path for path in (checkpoint.license_file, checkpoint.card_file) if path)]
    # Pooling and further chat templates lie one folder down.
    below = [path for pattern in ("*", "[!.]*/*") for path in checkpoint.directory.glob(pattern)]
    read += [path for path in below if path.suffix in _SMALL_INPUTS and path.is_file()]
    names = {path.relative_to(checkpoint.directory).as_posix() for path in read}
    return names | {tensor.path.name for tensor in checkpoint.tensors.values()}


def _sha256(path: Path, progress: Progress, is_over: Callable[[], bool]) -> str:
    def hashed(count: int) -> None:
        step.advance(count)
        if is_over():
            raise CancelledError

    with path.open("rb") as file, progress.step(f"hash {path.name}", total=path.stat().st_size) as step:
        return sha256_of(file.fileno(), hashed)[0]
