"""modelpack verify."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from modelpack.cli import failures
from modelpack.cli.app import App, command
from modelpack.cli.progress import human_size
from modelpack.errors import NotFoundError
from modelpack.oci.reference import Reference
from modelpack.small_file import read_small_file

if TYPE_CHECKING:
    from modelpack.oci.manifest import Descriptor
    from modelpack.oci.target import Source
    from modelpack.policy import Policy
    from modelpack.signing.keys import PrivateKey
    from modelpack.smoke.report import SmokeReport
    from modelpack.verify import VerifyReport

_MAX_SUITE_SIZE = 1 << 20
_MARKS = {"PASS": "✓", "WARN": "!", "FAIL": "✗", "SKIP": "-"}


@command("verify")
@click.argument("reference", metavar="REF")
@click.option(
    "--key", "keys", multiple=True, type=click.Path(path_type=Path), help="Trust this public key, and no other."
)
@click.option("--policy", type=click.Path(path_type=Path), help="The policy file.  [env: MODELPACK_POLICY]")
@click.option("--trust-only", is_flag=True, help="Signatures alone, of any OCI artifact; nothing else is fetched.")
@click.option(
    "--bundle",
    "bundles",
    multiple=True,
    type=click.Path(path_type=Path),
    help="With --trust-only: a signature in a file.",
)
@click.option("--local", is_flag=True, help="Only what is in the store; no registry is asked for anything.")
@click.option("--smoke", "smoke_file", type=click.Path(path_type=Path), help="A suite of prompts in TOML.")
@click.option("--no-smoke", is_flag=True, help="Do not load the model.")
@click.option("--device", type=click.Choice(["auto", "gpu", "cpu"]), default="auto", show_default=True, help="Where.")
@click.option("--context", type=click.IntRange(min=16), help="Tokens of context.  [default: the model's, up to 8192]")
@click.option("--threads", type=click.IntRange(min=1), help="Processor threads.")
@click.option("--memory-limit", type=click.IntRange(min=1), help="MiB that llama.cpp may take besides the weights.")
@click.option("--timeout", type=click.FloatRange(min=1), default=600, show_default=True, help="Seconds to load it.")
@click.option("--attest", "attest_key", metavar="KEY", help="Sign the smoke report with this private key.")
@click.option("--password-file", type=click.Path(path_type=Path), help="Holds the key's password.")
@click.option("--plain-http", is_flag=True, help="Talk to the registry without TLS.")
def verify(
    app: App,
    reference: str,
    keys: tuple[Path, ...],
    policy: Path | None,
    trust_only: bool,
    bundles: tuple[Path, ...],
    local: bool,
    smoke_file: Path | None,
    no_smoke: bool,
    device: Literal["auto", "gpu", "cpu"],
    context: int | None,
    threads: int | None,
    memory_limit: int | None,
    timeout: float,
    attest_key: str | None,
    password_file: Path | None,
    plain_http: bool,
) -> None:
    """Check who signed a model, every byte, and how it behaves.

    First the signatures, against the policy or --key; then every byte is read and hashed again; then llama.cpp, in a
    process of its own, answers smoke prompts. Ends with 6 if it is not to be trusted, 7 if a prompt failed, 9 if
    llama.cpp crashed.

    --attest signs the smoke report, good or bad, as an in-toto test result, keeps it in the store beside the model,
    and sends it to the registry where that has the model.

    \b
    modelpack verify registry.example.com/team/model:v1
    modelpack verify registry.example.com/any/artifact:v1 --trust-only --key cosign.pub
    """
    from modelpack import verify as library
    from modelpack.cli.key import load_private_key
    from modelpack.cli.places import load_policy, open_remote
    from modelpack.errors import InvalidInputError
    from modelpack.policy import Policy
    from modelpack.receipt import verify_again

    if trust_only and smoke_file:
        raise InvalidInputError("--trust-only loads no model, so it has no use for --smoke")
    if bundles and not trust_only:
        raise InvalidInputError("--bundle goes with --trust-only: a signature in a file stays no part of the model")
    if local and attest_key:
        raise InvalidInputError("--attest sends the report to the registry, which --local does not ask")
    if attest_key and (trust_only or no_smoke):
        raise InvalidInputError("--attest signs the smoke report, so the model has to be loaded")
    private = load_private_key(app, attest_key, password_file) if attest_key else None
    wanted = Reference.parse(reference)
    rules = load_policy(app, keys, policy) or Policy.empty()
    now = datetime.now(UTC)
    try:
        stored = app.store.find(wanted)
    except NotFoundError as error:
        if not trust_only or local or wanted.registry is None:
            error.add_note(f"modelpack pull {wanted} fetches it; --trust-only checks signatures in the registry")
            raise
        remote = open_remote(app, wanted, plain_http=plain_http)
        descriptor = remote.resolve(wanted.selector)
        _answer_trust(app, remote, wanted, descriptor, rules, bundles, now=now)
        return
    if bundles:
        held = app.store.repository(stored.reference.name)
        _answer_trust(app, held, stored.reference, stored.descriptor, rules, bundles, now=now)
        return
    renewed = verify_again(app.store, stored.reference, stored.descriptor, rules, now=now)
    report = library.VerifyReport(stored.reference, stored.descriptor, renewed.verdict)
    if not trust_only:
        content = library.rehash(app.store, stored.reference, stored.descriptor, progress=app.progress)
        smoke = None
        if not no_smoke:
            from modelpack.engine.worker import WorkerOptions
            from modelpack.smoke import suite

            smoke = library.run_smoke(
                app.store,
                stored.reference,
                stored.descriptor,
                suite.load(smoke_file) if smoke_file else suite.default_suite(),
                WorkerOptions(
                    device=device,
                    context=context,
                    threads=threads,
                    memory_limit=memory_limit << 20 if memory_limit else None,
                    load_timeout=timeout,
                ),
                progress=app.progress,
            )
        report = library.VerifyReport(stored.reference, stored.descriptor, renewed.verdict, content, smoke)
    attested = _attest(app, report, private, smoke_file, device, plain_http=plain_http) if private else None
    _answer(app, report, attested)
    if report.smoke:
        _require(app, report.smoke, device)


def _attest(
    app: App, report: "VerifyReport", key: "PrivateKey", smoke_file: Path | None, device: str, *, plain_http: bool
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

    if report.smoke is None:
        raise AssertionError("nothing was tested")
    asked = Digest.of(read_small_file(smoke_file, limit=_MAX_SUITE_SIZE)) if smoke_file else digest_of(default_suite())
    predicate = smoke_result(
        report.smoke,
        Toolchain.installed(),
        suite_name=smoke_file.name if smoke_file else "modelpack's built-in suite",
        suite_digest=asked,
        failed_assertions=("device: gpu",) if _is_missing_gpu(report.smoke, device) else (),
    )
    local = app.store.repository(report.reference.name)
    attested = attest(
        local,
        report.reference,
        report.descriptor,
        key,
        predicate_type=TEST_RESULT,
        predicate=predicate,
        created=datetime.now(UTC),
        files=weights_of(local, report.descriptor),
    )
    is_sent = False
    if report.reference.registry:
        remote = open_remote(app, report.reference, plain_http=plain_http, push=True)
        try:
            remote.resolve(str(report.descriptor.digest))
        except NotFoundError:
            app.note(f"{report.reference.registry} does not have the model yet: push sends the report along")
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


def _answer_trust(
    app: App,
    source: "Source",
    reference: Reference,
    descriptor: "Descriptor",
    rules: "Policy",
    bundles: tuple[Path, ...],
    *,
    now: datetime,
) -> None:
    """The signatures alone, those in files as well."""
    from modelpack.signing.carried import with_bundles
    from modelpack.signing.envelope import MAX_BUNDLE_SIZE
    from modelpack.trust import check_trust
    from modelpack.verify import VerifyReport

    carried = [read_small_file(path, limit=MAX_BUNDLE_SIZE) for path in bundles]
    verdict = check_trust(with_bundles(source, descriptor, carried), reference, descriptor, rules, now=now)
    _answer(app, VerifyReport(reference, descriptor, verdict))


def _answer(app: App, report: "VerifyReport", attested: dict[str, object] | None = None) -> None:
    document = report.to_json() | {"attested": attested}
    signers = ", ".join(signer["name"] for signer in document["trust"]["signers"]) or "nobody"
    lines = [f"trust    ✓ signed by {signers}; rule {document['trust']['rule']}"]
    if report.content:
        lines.append(f"content  ✓ {report.content.blobs} blobs, {human_size(report.content.size)}")
    if report.smoke:
        lines += _smoke_lines(report.smoke)
    if attested:
        lines.append(f"attest   ✓ {attested['result']}, signed{' and sent' if attested['sent'] else ''}")
    lines.append(f"{'verified' if report.passed else 'FAILED'}  {report.reference.tagged}@{report.descriptor.digest}")
    app.answer(document, "\n".join(lines))


def _smoke_lines(smoke: "SmokeReport") -> list[str]:
    lines = []
    if smoke.device and smoke.load_seconds is not None:
        lines.append(f"load     ✓ {smoke.load_seconds:.1f}s on {smoke.device}")
    elif smoke.error:
        lines.append(f"load     ✗ {smoke.error.splitlines()[0]}")
    for case in smoke.cases:
        speed = f"  {case.tokens_per_second:.0f} tokens/s" if case.tokens_per_second else ""
        why = f"  {'; '.join(case.why)}" if case.why else ""
        lines.append(f"smoke    {_MARKS[case.verdict]} {case.name}{speed}{why}")
    return lines


def _is_missing_gpu(smoke: "SmokeReport", device: str) -> bool:
    return device == "gpu" and not (smoke.device and smoke.device.is_gpu)


def _require(app: App, smoke: "SmokeReport", device: str) -> None:
    """The exit code of what the report found: a report informs, and here is who decides."""
    problem: Any = None
    if smoke.outcome in ("crashed", "timed-out"):
        problem = (failures.WORKER_FAILED, smoke.error or "llama.cpp ended")
    elif _is_missing_gpu(smoke, device):
        problem = (failures.CHECK_FAILED, f"a GPU was asked for, but the model ran on {smoke.device}")
    elif smoke.outcome in ("failed", "skipped"):
        failed = [case.name for case in smoke.cases if case.verdict in ("FAIL", "SKIP")]
        problem = (failures.CHECK_FAILED, smoke.error or f"smoke {smoke.outcome}: {', '.join(failed)}")
    if problem:
        code, message = problem
        app.progress.warn(message)
        raise click.exceptions.Exit(code)
