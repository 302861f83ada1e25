"""modelpack verify."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modelpack.cli.app import App, command
from modelpack.cli.progress import human_size
from modelpack.cli.smoke import SmokeRequest, attest_smoke, attested_lines, require_passed, smoke_lines, smoke_options
from modelpack.errors import NotFoundError
from modelpack.oci.reference import Reference
from modelpack.small_file import read_small_file

if TYPE_CHECKING:
    from modelpack.oci.target import Source
    from modelpack.policy import Policy
    from modelpack.rehash import BytesReport
    from modelpack.signing.keys import PrivateKey
    from modelpack.store import StoredTag
    from modelpack.trust import Verdict
    from modelpack.verify import VerifyReport


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
@click.option("--no-smoke", is_flag=True, help="Do not load the model.")
@smoke_options
def verify(
    app: App,
    reference: str,
    keys: tuple[Path, ...],
    policy: Path | None,
    trust_only: bool,
    bundles: tuple[Path, ...],
    local: bool,
    no_smoke: bool,
    attest_key: str | None,
    password_file: Path | None,
    plain_http: bool,
    **wanted_of_smoke: Any,
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
    from modelpack.errors import InvalidInputError
    from modelpack.rehash import Rehash

    request = SmokeRequest(**wanted_of_smoke)
    if trust_only and request.smoke_file:
        raise InvalidInputError("--trust-only loads no model, so it has no use for --smoke")
    if bundles and not trust_only:
        raise InvalidInputError("--bundle goes with --trust-only: a signature in a file stays no part of the model")
    if local and attest_key:
        raise InvalidInputError("--attest sends the report to the registry, which --local does not ask")
    if attest_key and (trust_only or no_smoke):
        raise InvalidInputError("--attest signs the smoke report, so the model has to be loaded")
    wanted = Reference.parse(reference)
    if trust_only:
        _verify_trust(app, wanted, keys, policy, bundles, local=local, plain_http=plain_http)
        return
    private = _private_key(app, attest_key, password_file) if attest_key is not None else None
    try:
        stored = app.store.find(wanted)
    except NotFoundError as error:
        _load_rules(app, keys, policy)  # a policy that has something against this has its say first
        _advise_pull(error, wanted)
        raise
    with Rehash(app.store, stored.reference, stored.descriptor, progress=app.progress) as rehash:
        # Everything else is imported and the signatures are judged meanwhile; a refusal waits for no hash.
        verdict = _judge_stored(app, stored, _load_rules(app, keys, policy))
        content = rehash.report()
    report = _complete(app, stored, verdict, content, None if no_smoke else request)
    attested = None
    if private and report.smoke:
        place = (stored.reference, stored.descriptor)
        attested = attest_smoke(app, *place, report.smoke, private, request, plain_http=plain_http)
    _answer(app, report, attested)
    if report.smoke:
        require_passed(app, report.smoke, request)


def _private_key(app: App, place: str, password_file: Path | None) -> "PrivateKey":
    from modelpack.cli.key import load_private_key

    return load_private_key(app, place, password_file)


def _load_rules(app: App, keys: tuple[Path, ...], policy: Path | None) -> "Policy":
    from modelpack.cli.places import load_policy
    from modelpack.policy import Policy

    return load_policy(app, keys, policy) or Policy.empty()


def _advise_pull(error: NotFoundError, wanted: Reference) -> None:
    error.add_note(f"modelpack pull {wanted} fetches it; --trust-only checks signatures in the registry")


def _judge_stored(app: App, stored: "StoredTag", rules: "Policy") -> "Verdict | None":
    from modelpack.cli.refusal import refusing_use
    from modelpack.receipt import verify_again

    with refusing_use(stored.reference, rules):
        return verify_again(app.store, stored.reference, stored.descriptor, rules, now=datetime.now(UTC)).verdict


def _complete(
    app: App, stored: "StoredTag", verdict: "Verdict | None", content: "BytesReport", request: SmokeRequest | None
) -> "VerifyReport":
    """The whole report, after a smoke run where one is wanted."""
    from modelpack.verify import VerifyReport, run_smoke

    if request is None:
        return VerifyReport(stored.reference, stored.descriptor, verdict, content)
    smoke = run_smoke(
        app.store, stored.reference, stored.descriptor, request.suite(), request.worker(), progress=app.progress
    )
    missed_gpu = request.is_missing_gpu(smoke)
    return VerifyReport(stored.reference, stored.descriptor, verdict, content, smoke, missed_gpu=missed_gpu)


def _verify_trust(
    app: App,
    wanted: Reference,
    keys: tuple[Path, ...],
    policy: Path | None,
    bundles: tuple[Path, ...],
    *,
    local: bool,
    plain_http: bool,
) -> None:
    """The signatures alone: in the store, else in the registry, and in files as well."""
    from modelpack.cli.places import open_remote
    from modelpack.cli.refusal import refusing_download
    from modelpack.signing.carried import with_bundles
    from modelpack.signing.envelope import MAX_BUNDLE_SIZE
    from modelpack.trust import check_trust
    from modelpack.verify import VerifyReport

    rules = _load_rules(app, keys, policy)
    source: Source
    try:
        stored = app.store.find(wanted)
    except NotFoundError as error:
        if local or wanted.registry is None:
            _advise_pull(error, wanted)
            raise
        reference = wanted
        source = open_remote(app, wanted, plain_http=plain_http)
        descriptor = source.resolve(wanted.selector)
    else:
        reference, descriptor = stored.reference, stored.descriptor
        source = app.store.repository(reference.name)
        if not bundles:
            _answer(app, VerifyReport(reference, descriptor, _judge_stored(app, stored, rules)))
            return
    carried = [read_small_file(path, limit=MAX_BUNDLE_SIZE, pipe=True) for path in bundles]
    with refusing_download(reference, rules):
        verdict = check_trust(
            with_bundles(source, descriptor, carried), reference, descriptor, rules, now=datetime.now(UTC)
        )
    _answer(app, VerifyReport(reference, descriptor, verdict))


def _answer(app: App, report: "VerifyReport", attested: dict[str, object] | None = None) -> None:
    document = report.to_json() | {"attested": attested}
    verdict = report.verdict
    if verdict and verdict.is_verified:
        outcome = "verified"
        lines = [f"trust    ✓ signed by {', '.join(one.name for one in verdict.signers)}; rule {verdict.rule}"]
    else:
        outcome = "not verified, and allowed"
        lines = [f"trust    ! signed by nobody; {verdict.rule if verdict else 'made here'}"]
    if report.content:
        lines.append(f"content  ✓ {report.content.blobs} blobs, {human_size(report.content.size)}")
    if report.smoke:
        lines += smoke_lines(report.smoke)
    lines += attested_lines(attested)
    lines.append(f"{outcome if report.passed else 'FAILED'}  {report.reference.pinned(report.descriptor.digest)}")
    app.answer(document, "\n".join(lines))
