"""modelpack lock."""

from datetime import UTC, datetime
from pathlib import Path

import click

from modelpack.cli.app import App, command
from modelpack.oci.reference import Reference


@command("lock")
@click.argument("references", nargs=-1, required=True, metavar="REF...")
@click.option("--lock", type=click.Path(path_type=Path), help="The lock file.  [default: modelpack.lock]")
@click.option(
    "--key", "keys", multiple=True, type=click.Path(path_type=Path), help="Trust this public key, and no other."
)
@click.option("--policy", type=click.Path(path_type=Path), help="The policy file.  [env: MODELPACK_POLICY]")
@click.option("--plain-http", is_flag=True, help="Talk to the registry without TLS.")
def lock(
    app: App,
    references: tuple[str, ...],
    lock: Path | None,
    keys: tuple[Path, ...],
    policy: Path | None,
    plain_http: bool,
) -> None:
    """Write down which digest every reference stands for now, if it is trusted: pull --frozen fetches that one.

    Fetches signatures and no model. What the file says about other references stays.

    \b
    modelpack lock registry.example.com/team/model:v1
    modelpack pull --frozen registry.example.com/team/model:v1
    """
    from modelpack.cli.places import load_policy, open_remote
    from modelpack.cli.refusal import refusing_download
    from modelpack.lockfile import DEFAULT_LOCK, Lock, Locked
    from modelpack.policy import Policy
    from modelpack.rollback import require_no_rollback
    from modelpack.trust import check_trust

    path = lock or DEFAULT_LOCK
    before = Lock.load(path) if path.exists() else Lock.empty()
    rules = load_policy(app, keys, policy) or Policy.empty()
    now = datetime.now(UTC)
    locked = []
    for wanted in map(Reference.parse, references):
        remote = open_remote(app, wanted, plain_http=plain_http)
        descriptor = remote.resolve(wanted.selector)
        with refusing_download(wanted, rules):
            verdict = check_trust(remote, wanted, descriptor, rules, now=now)
            require_no_rollback(app.store, wanted, verdict)
        if not verdict.is_verified:
            app.progress.warn(f"{wanted} is not verified ({verdict.rule})")
        locked.append(Locked.of(wanted, descriptor, verdict))
    before.with_entries(locked).save(path)
    document = {"lock": str(path), "artifacts": [entry.to_json() for entry in locked]}
    app.answer(document, "\n".join(f"{entry.reference}@{entry.digest}" for entry in locked))
