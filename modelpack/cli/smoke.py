"""modelpack smoke, and what verify shares with it: how a model is loaded, asked, reported on and attested."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from modelpack.cli import failures
from modelpack.cli.app import App, command
from modelpack.errors import InvalidInputError, NotFoundError
from modelpack.oci.reference import FileReference, Reference, parse_location
from modelpack.small_file import read_small_file

if TYPE_CHECKING:
    from modelpack.engine.worker import WorkerOptions
    from modelpack.oci.manifest import Descriptor
    from modelpack.signing.keys import PrivateKey
    from modelpack.smoke.report import SmokeReport
    from modelpack.smoke.suite import Suite

_MAX_SUITE_SIZE = 1 << 20
_MARKS = {"PASS": "✓", "WARN": "!", "FAIL": "✗", "SKIP": "-"}

_OPTIONS = (
    click.option("--smoke", "smoke_file", type=click.Path(path_type=Path), help="A suite of prompts in TOML."),
    click.option(
        "--device", type=click.Choice(["auto", "gpu", "cpu"]), default="auto", show_default=True, help="Where."
    ),
    click.option(
        "--context", type=click.IntRange(min=16), help="Tokens of context.  [default: the model's, up to 8192]"
    ),
    click.option("--threads", type=click.IntRange(min=1), help="Processor threads."),
    click.option("--memory-limit", type=click.IntRange(min=1), help="MiB that llama.cpp may take besides the weights."),
    click.option("--timeout", type=click.FloatRange(min=1), default=600, show_default=True, help="Seconds to load it."),
    click.option("--attest", "attest_key", metavar="KEY", help="Sign the smoke report with this private key."),
    click.option("--password-file", type=click.Path(path_type=Path), help="Holds the key's password."),
    click.option("--plain-http", is_flag=True, help="Talk to the registry without TLS."),
)


def smoke_options(function: Callable[..., None]) -> Callable[..., None]:
    """Adds the options of a smoke run; all but the last three go into a SmokeRequest."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@dataclass(frozen=True, slots=True)
class SmokeRequest:
    """What a person wants of a smoke run."""

    smoke_file: Path | None
    device: Literal["auto", "gpu", "cpu"]
    context: int | None
    threads: int | None
    memory_limit: int | None
    """MiB."""
    timeout: float

    def suite(self) -> "Suite":
        from modelpack.smoke import suite

        return suite.load(self.smoke_file) if self.smoke_file else suite.default_suite()

    def worker(self) -> "WorkerOptions":
        from modelpack.engine.worker import WorkerOptions

        return WorkerOptions(
            device=self.device,
            context=self.context,
            threads=self.threads,
            memory_limit=self.memory_limit << 20 if self.memory_limit else None,
            load_timeout=self.timeout,
        )

    def is_missing_gpu(self, report: "SmokeReport") -> bool:
        return self.device == "gpu" and not (report.device and report.device.is_gpu)


@command("smoke")
@click.argument("model", metavar="REF|FILE.gguf")
@smoke_options
@click.option("--report", type=click.Path(path_type=Path), help="Write the report here, as JSON.")
@click.option("--junit", type=click.Path(path_type=Path), help="Write it here for a CI server, as JUnit's XML.")
def smoke(
    app: App,
    model: str,
    attest_key: str | None,
    password_file: Path | None,
    plain_http: bool,
    report: Path | None,
    junit: Path | None,
    **wanted: Any,
) -> None:
    """See how a model behaves: llama.cpp, in a process of its own, answers prompts.

    The third step of verify alone, for a model of the store that may be used, or for a GGUF file of whatever origin.
    Ends with 7 if a prompt failed, 9 if llama.cpp crashed.

    \b
    modelpack smoke registry.example.com/team/model:v1 --smoke suite.toml --junit smoke.xml
    modelpack smoke ./model-Q4_K_M.gguf
    """
    from modelpack.atomic_file import write_atomically
    from modelpack.cli.key import load_private_key
    from modelpack.cli.places import require_trusted
    from modelpack.smoke.junit import to_junit
    from modelpack.smoke.run import smoke as smoke_file
    from modelpack.verify import run_smoke

    request = SmokeRequest(**wanted)
    path = _file_of(model)
    attested = None
    if path:
        if attest_key:
            raise InvalidInputError("--attest speaks of an artifact, and a file is none: build or pull it first")
        reference, digest = str(path), None
        found = smoke_file(path, request.suite(), request.worker(), name=path.name, progress=app.progress)
    else:
        private = load_private_key(app, attest_key, password_file) if attest_key is not None else None
        stored = app.store.find(Reference.parse(model))
        require_trusted(app, stored.reference, stored.descriptor)
        reference, digest = str(stored.reference), str(stored.descriptor.digest)
        place = (stored.reference, stored.descriptor)
        found = run_smoke(app.store, *place, request.suite(), request.worker(), progress=app.progress)
        if private:
            attested = attest_smoke(app, *place, found, private, request, plain_http=plain_http)
    document = found.to_json()
    if report:
        write_atomically(report, (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode())
    if junit:
        write_atomically(junit, to_junit(found, name=reference))
    lines = [*smoke_lines(found), *attested_lines(attested), f"{found.outcome}  {reference}"]
    app.answer({"reference": reference, "digest": digest, "smoke": document, "attested": attested}, "\n".join(lines))
    require_passed(app, found, request)


def _file_of(model: str) -> Path | None:
    """A GGUF file; None for the name of a model."""
    if model.startswith("file:"):
        place = parse_location(model)
        return place.path if isinstance(place, FileReference) else None
    return Path(model) if model.lower().endswith(".gguf") else None


def attest_smoke(
    app: App,
    reference: Reference,
    descriptor: "Descriptor",
    report: "SmokeReport",
    key: "PrivateKey",
    request: SmokeRequest,
    *,
    plain_http: bool,
) -> dict[str, object]:
    """Sign the smoke report, keep it beside the model, and send it to where the model is from."""
    from modelpack import transfer
    from modelpack.cli.places import open_remote
    from modelpack.evidence.predicates import TEST_RESULT
    from modelpack.evidence.record import weights_of
    from modelpack.evidence.smoke_result import digest_of, smoke_result
    from modelpack.evidence.toolchain import Toolchain
    from modelpack.oci.digest import Digest
    from modelpack.signing.attestation import attest
    from modelpack.smoke.suite import default_suite

    file = request.smoke_file
    predicate = smoke_result(
        report,
        Toolchain.installed(),
        suite_name=file.name if file else "modelpack's built-in suite",
        suite_digest=Digest.of(read_small_file(file, limit=_MAX_SUITE_SIZE)) if file else digest_of(default_suite()),
        failed_assertions=("device: gpu",) if request.is_missing_gpu(report) else (),
    )
    local = app.store.repository(reference.name)
    attested = attest(
        local,
        reference,
        descriptor,
        key,
        predicate_type=TEST_RESULT,
        predicate=predicate,
        created=datetime.now(UTC),
        files=weights_of(local, descriptor),
    )
    is_sent = False
    if reference.registry:
        remote = open_remote(app, reference, plain_http=plain_http, push=True)
        try:
            remote.resolve(str(descriptor.digest))
        except NotFoundError:
            app.note(f"{reference.registry} does not have the model yet: push sends the report along")
        else:
            for referrer in attested.referrers:
                transfer.copy(local, remote, local.resolve(str(referrer)), tag=None, referrers=False)
            is_sent = True
    return {
        "predicate_type": TEST_RESULT,
        "result": predicate["result"],
        "key_id": attested.key_id,
        "sent": is_sent,
    }


def smoke_lines(report: "SmokeReport") -> list[str]:
    lines = []
    if report.device and report.load_seconds is not None:
        lines.append(f"load     ✓ {report.load_seconds:.1f}s on {report.device}")
    elif report.error:
        lines.append(f"load     ✗ {report.error.splitlines()[0]}")
    for case in report.cases:
        speed = f"  {case.tokens_per_second:.0f} tokens/s" if case.tokens_per_second else ""
        why = f"  {'; '.join(case.why)}" if case.why else ""
        lines.append(f"smoke    {_MARKS[case.verdict]} {case.name}{speed}{why}")
    return lines


def attested_lines(attested: dict[str, object] | None) -> list[str]:
    if attested is None:
        return []
    return [f"attest   ✓ {attested['result']}, signed{' and sent' if attested['sent'] else ''}"]


def require_passed(app: App, report: "SmokeReport", request: SmokeRequest) -> None:
    """The exit code of what the report found: a report informs, and here is who decides."""
    problem: tuple[int, str] | None = None
    if report.outcome in ("crashed", "timed-out"):
        problem = (failures.WORKER_FAILED, report.error or "llama.cpp ended")
    elif request.is_missing_gpu(report):
        problem = (failures.CHECK_FAILED, f"a GPU was asked for, but the model ran on {report.device}")
    elif report.outcome in ("failed", "skipped"):
        failed = [case.name for case in report.cases if case.verdict in ("FAIL", "SKIP")]
        problem = (failures.CHECK_FAILED, report.error or f"smoke {report.outcome}: {', '.join(failed)}")
    if problem:
        code, message = problem
        app.progress.warn(message)
        raise click.exceptions.Exit(code)
