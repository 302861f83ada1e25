"""modelpack promote."""

from datetime import UTC, datetime
from pathlib import Path

import click

from modelpack.cli.app import App, command
from modelpack.cli.copy import KEYS, PLAIN_HTTP, POLICY
from modelpack.cli.progress import human_size
from modelpack.cli.transfers import jobs_option, limit_rate_option
from modelpack.errors import InvalidInputError, UntrustedError
from modelpack.oci.reference import Reference


@command("promote")
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST")
@KEYS
@POLICY
@click.option(
    "--require", "required", multiple=True, metavar="TYPE", help="Signed evidence: smoke:PASSED, slsa, cyclonedx, URI."
)
@click.option("--dry-run", is_flag=True, help="Judge, and move nothing.")
@PLAIN_HTTP
@jobs_option
@limit_rate_option
def promote(
    app: App,
    source: str,
    destination: str,
    keys: tuple[Path, ...],
    policy: Path | None,
    required: tuple[str, ...],
    dry_run: bool,
    plain_http: bool,
    jobs: int | None,
    limit_rate: int | None,
) -> None:
    """Move an approved model on to another repository: by digest, with all that refers to it, the tag last.

    The policy judges it as SRC before anything moves, and as DST by what arrived there. Where the rule of DST asks for
    a signature under that name and there is none, it lies there without a tag: sign it there and promote it again.

    \b
    modelpack promote registry.example.com/staging/model:v1 registry.example.com/prod/model:v1 --require smoke:PASSED
    """
    from modelpack import promote as library
    from modelpack.cli.places import load_policy, open_remote
    from modelpack.policy import Policy

    origin = Reference.parse(source)
    there = Reference.parse(destination)
    if there.digest:
        raise InvalidInputError(f"{there} has a digest: a promotion keeps that of its source")
    if not there.tag and origin.tag is None and origin.digest:
        raise InvalidInputError(f"{there} needs a tag: {origin} has none to hand on")
    there = there.with_tag(there.tag or origin.selector)
    wanted = [library.Wanted.parse(text) for text in required]
    rules = load_policy(app, keys, policy) or Policy.empty()
    near = open_remote(app, origin, plain_http=plain_http, rate_limit=limit_rate)
    far = open_remote(app, there, plain_http=plain_http, push=True, rate_limit=limit_rate)
    descriptor = near.resolve(origin.selector)
    try:
        result = library.promote(
            near,
            far,
            descriptor,
            origin=origin,
            destination=there,
            policy=rules,
            store=app.store,
            now=datetime.now(UTC),
            wanted=wanted,
            dry_run=dry_run,
            jobs=jobs,
            progress=app.progress,
        )
    except UntrustedError as error:
        error.add_note(
            f"{there.tagged} was not touched; modelpack policy explain {origin} and {there} show what is needed, and "
            f"for the new name: modelpack sign {there.tagged}@{descriptor.digest} --key KEY"
        )
        raise
    copied = result.copied
    document = {
        "source": str(origin),
        "destination": there.tagged,
        "digest": str(descriptor.digest),
        "dry_run": dry_run,
        "blobs_copied": copied.blobs_copied if copied else 0,
        "blobs_skipped": copied.blobs_skipped if copied else 0,
        "bytes_copied": copied.bytes_copied if copied else 0,
        "referrers_copied": copied.referrers_copied if copied else 0,
        "source_trust": result.before.to_json(),
        "destination_trust": result.after.to_json(),
    }
    for name, verdict in ((origin, result.before), (there, result.after)):
        if not verdict.is_verified:
            app.progress.warn(f"{name} is not verified ({verdict.rule})")
    if copied:
        app.note(f"copied {human_size(copied.bytes_copied)}, and {copied.referrers_copied} that refer to it")
    else:
        app.note("nothing was moved: it would be let in")
    app.answer(document, f"{there.tagged}@{descriptor.digest}")
