"""modelpack push, pull, login, logout and registry serve."""

import contextlib
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelpack.cli.app import App, command
from modelpack.cli.transfers import Stopwatch, jobs_option, limit_rate_option
from modelpack.errors import InvalidInputError
from modelpack.oci.reference import Reference
from modelpack.small_file import read_small_file

if TYPE_CHECKING:
    from modelpack.cli.judging import Judge
    from modelpack.oci.digest import Digest
    from modelpack.oci.manifest import Descriptor
    from modelpack.oci.target import Source
    from modelpack.signing.keys import PrivateKey
    from modelpack.store import StoredTag


@command("push")
@click.argument("reference", metavar="REF")
@click.option("--sign", "key", metavar="KEY", help="Sign with this private key (a file, or env:NAME) on the way.")
@click.option("--password-file", type=click.Path(path_type=Path), help="Holds the key's password.")
@click.option("--all-variants", is_flag=True, help="Also what build put beside it: REF-q8_0 and the like.")
@click.option("--plain-http", is_flag=True, help="Talk to the registry without TLS.")
@jobs_option
@limit_rate_option
def push(
    app: App,
    reference: str,
    key: str | None,
    password_file: Path | None,
    all_variants: bool,
    plain_http: bool,
    jobs: int | None,
    limit_rate: int | None,
) -> None:
    """Send a model from the store to the registry that its name says, with all its signatures; the tag moves last.

    --sign also attests the provenance and the bill of materials of what was built here. An interrupted push sends no
    file again that arrived, and of the one on its way only what the registry lacks, if it can tell.
    """
    from modelpack.cli.key import load_private_key
    from modelpack.variants import stored_variants

    private = load_private_key(app, key, password_file) if key is not None else None
    stored = app.store.find(Reference.parse(reference))
    if stored.reference.registry is None:
        raise InvalidInputError(
            f"{stored.reference} names no registry: modelpack tag it registry.example.com/... first"
        )
    if all_variants and stored.reference.digest:
        raise InvalidInputError("--all-variants goes by tags: name one, not a digest")
    chosen = [*(stored_variants(app.store, stored) if all_variants else ()), stored]
    # The tag that was named moves last.
    *variants, document = [
        _push(app, one, private, plain_http=plain_http, jobs=jobs, rate_limit=limit_rate) for one in chosen
    ]
    if all_variants:
        document["variants"] = variants
    app.answer(document, "\n".join(one.reference.pinned(one.descriptor.digest) for one in chosen))


def _push(
    app: App,
    stored: "StoredTag",
    private: "PrivateKey | None",
    *,
    plain_http: bool,
    jobs: int | None,
    rate_limit: int | None,
) -> dict[str, object]:
    """One artifact into its registry; what there is to say of it."""
    from modelpack import transfer
    from modelpack.cli.places import open_remote
    from modelpack.evidence.record import attest_build
    from modelpack.signing import signature

    local = app.store.repository(stored.reference.name)
    remote = open_remote(app, stored.reference, plain_http=plain_http, push=True, rate_limit=rate_limit)
    stopwatch = Stopwatch(remote.traffic)
    attested = []
    if private:
        # In the store first, so that the tag of the registry never names anything unsigned.
        now = datetime.now(UTC)
        signature.sign(local, stored.reference, stored.descriptor, private, signed_at=now)
        attested = attest_build(app.store, local, stored.reference, stored.descriptor, private, now=now)
    tag = None if stored.reference.digest else stored.reference.tagged.rpartition(":")[2]
    result = transfer.copy(local, remote, stored.descriptor, tag=tag, jobs=jobs, progress=app.progress)
    app.note(stopwatch.sentence("sent", result))
    return {
        "reference": str(stored.reference),
        "digest": str(result.descriptor.digest),
        "blobs_copied": result.blobs_copied,
        "blobs_skipped": result.blobs_skipped,
        "bytes_copied": result.bytes_copied,
        "referrers_copied": result.referrers_copied,
        "transfer": stopwatch.report(result),
        "signed_by": private.public.id if private else None,
        "attested": [one.predicate_type for one in attested],
    }


@command("pull")
@click.argument("reference", metavar="REF")
@click.option(
    "--key", "keys", multiple=True, type=click.Path(path_type=Path), help="Trust this public key, and no other."
)
@click.option("--policy", type=click.Path(path_type=Path), help="The policy file.  [env: MODELPACK_POLICY]")
@click.option("--insecure-skip-verify", is_flag=True, help="Fetch whatever it is, whoever made it.")
@click.option("--variant", metavar="TYPE", help="The variant of that quantization: by the index REF, or REF-q8_0.")
@click.option("--frozen", is_flag=True, help="Fetch the digest that the lock file has, and nothing else.")
@click.option("--lock", type=click.Path(path_type=Path), help="The lock file for --frozen.  [default: modelpack.lock]")
@click.option("--allow-rollback", is_flag=True, help="Take what is older than what this tag was before.")
@click.option("--plain-http", is_flag=True, help="Talk to the registry without TLS.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Also put its files into this folder, where the disk allows as read-only links into the store: copy to edit.",
)
@click.option("--include", multiple=True, metavar="GLOB", help="Only files of such names, into --output; repeatable.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="No files of such names; repeatable.")
@jobs_option
@limit_rate_option
def pull(
    app: App,
    reference: str,
    keys: tuple[Path, ...],
    policy: Path | None,
    insecure_skip_verify: bool,
    variant: str | None,
    frozen: bool,
    lock: Path | None,
    allow_rollback: bool,
    plain_http: bool,
    output: Path | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    jobs: int | None,
    limit_rate: int | None,
) -> None:
    """Fetch a model whose signature the policy, or --key, allows.

    The signature is checked before anything large is fetched, every byte while it arrives. An interrupted pull goes on
    where it was. What was signed earlier than what this tag was before is refused.

    With --frozen the lock file says which digest the reference stands for, wherever the tag points by now, and keys
    that were retired since it was locked still count.

    With --include and --exclude only some of its files are fetched, judged and verified as all are, and put into the
    folder of --output. The store does not have the model then: no tag is set, and prune takes what was fetched.

    \b
    modelpack pull registry.example.com/team/model:v1
    modelpack pull registry.example.com/team/model:v1 --output DIR --include '*.gguf' --exclude 'mmproj*'
    """
    from modelpack import catalog, partial, transfer
    from modelpack.cli.judging import Judge
    from modelpack.cli.places import open_remote
    from modelpack.cli.refusal import refusing_download
    from modelpack.lockfile import DEFAULT_LOCK, Lock
    from modelpack.policy import Policy
    from modelpack.receipt import Receipt, write_receipt
    from modelpack.rollback import remember
    from modelpack.store.export import check_export
    from modelpack.variants import find_variant, require_variant

    is_partial = bool(include or exclude)
    contradictions = (
        (insecure_skip_verify and frozen, "--frozen and --insecure-skip-verify contradict each other"),
        (lock and not frozen, "--lock names the lock file of --frozen"),
        (is_partial and not output, "--include and --exclude put files into a folder: name it with --output"),
    )
    for is_so, message in contradictions:
        if is_so:
            raise InvalidInputError(message)
    wanted = Reference.parse(reference)
    judge = Judge.appoint(app, keys, policy, skip=insecure_skip_verify, allow_rollback=allow_rollback)
    if variant:
        wanted = find_variant(open_remote(app, wanted, plain_http=plain_http), wanted, variant)
    with refusing_download(wanted, judge.rules or Policy.empty()):
        locked = Lock.load(lock or DEFAULT_LOCK).find(wanted) if frozen else None
    remote = open_remote(app, wanted, plain_http=plain_http, rate_limit=limit_rate)
    stopwatch = Stopwatch(remote.traffic)
    descriptor = remote.resolve(str(locked.digest) if locked else wanted.selector)
    verdict = judge.judge(app, remote, wanted, descriptor, locked)
    manifest, model = catalog.read_model(remote, descriptor)  # a few KiB; what is no model is not worth its gigabytes
    if variant:
        require_variant(model, wanted, variant)
    selection = partial.select(model, include=include, exclude=exclude) if output else None
    if selection and output:
        # What lies in the way is known before anything is fetched.
        check_export(app.store.blobs, selection.digests, output)
    local = app.store.repository(wanted.name)
    tag = None if wanted.digest else wanted.selector
    if is_partial and selection:
        result = partial.fetch_files(remote, local, manifest, selection.chosen, jobs=jobs, progress=app.progress)
    else:
        result = transfer.copy(remote, local, descriptor, tag=tag, jobs=jobs, progress=app.progress)
        write_receipt(app.store, descriptor, Receipt(wanted, verdict, is_locked=frozen))
    if not frozen:
        remember(app.store, wanted, verdict)
    written = []
    if selection and output:
        written = _export(app, judge, partial.Arrived(local, remote), wanted, descriptor, selection.digests, output)
    document = {
        "reference": str(wanted),
        "digest": str(descriptor.digest),
        "blobs_copied": result.blobs_copied,
        "blobs_skipped": result.blobs_skipped,
        "bytes_copied": result.bytes_copied,
        "transfer": stopwatch.report(result),
        "files": written,
        "partial": is_partial,
        "left_out": [file.name for file in selection.left] if selection else [],
        "trust": verdict.to_json(),
    }
    app.note(stopwatch.sentence("received", result))
    if is_partial:
        app.note(f"{len(written)} of {len(model.files)} files; no tag was set")
    app.answer(document, f"{wanted.tagged if tag else wanted.name}@{descriptor.digest}")
    app.hint(f"all of it: modelpack pull {wanted}" if is_partial else f"next: modelpack run {wanted} 'Hello!'")


def _export(
    app: App,
    judge: "Judge",
    source: "Source",
    wanted: Reference,
    descriptor: "Descriptor",
    files: "dict[str, Digest]",
    output: Path,
) -> list[str]:
    """Put files that have come into a folder; returns their paths. Raises UntrustedError, InvalidInputError.

    What leaves the store is not judged again when it is loaded, so what only hashed bytes can tell is asked first.
    """
    from modelpack.cli.refusal import refusing_export
    from modelpack.policy import Policy
    from modelpack.store.export import export_files

    if look := judge.second_look(wanted, descriptor):
        with refusing_export(wanted, judge.rules or Policy.empty()):
            look(source)
    return [str(path) for path in export_files(app.store.blobs, files, output)]


@command("login")
@click.argument("registry")
@click.option("-u", "--username", help="User name.")
@click.option("--password-stdin", is_flag=True, help="Read the password, or a token, from standard input.")
@click.option("--plain-http", is_flag=True, help="Talk to the registry without TLS.")
def login(app: App, registry: str, username: str | None, password_stdin: bool, plain_http: bool) -> None:
    """Check credentials with a registry, and keep them where docker and podman keep theirs."""
    from modelpack.cli.places import connect_registry
    from modelpack.registry.credentials import Credential, FixedCredentials
    from modelpack.registry.logins import store_credential

    username = username or _ask("Username")
    password = sys.stdin.readline().rstrip("\r\n") if password_stdin else _ask("Password", hide=True)
    if not password:
        raise InvalidInputError("the password is empty")
    credential = Credential(username, password)
    accepted = connect_registry(
        app, registry, plain_http=plain_http, credentials=FixedCredentials(credential)
    ).check_login()
    if not accepted:
        app.progress.warn(f"{registry} asks for no credentials; they are kept all the same")
    settings = app.settings
    place = store_credential(registry, credential, environ=settings.environment, authfile=settings.authfile)
    app.answer(
        {"registry": registry, "username": username, "stored_in": place}, f"logged in to {registry} as {username}"
    )


def _ask(what: str, *, hide: bool = False) -> str:
    if not sys.stdin.isatty():
        raise InvalidInputError("there is no terminal to ask at: give --username and --password-stdin")
    return str(click.prompt(what, hide_input=hide, err=True))


@command("logout")
@click.argument("registry")
def logout(app: App, registry: str) -> None:
    """Forget a registry's credentials."""
    from modelpack.registry.logins import erase_credential

    settings = app.settings
    known = erase_credential(registry, environ=settings.environment, authfile=settings.authfile)
    if not known:
        app.note(f"there were no credentials for {registry}")
    app.answer({"registry": registry, "removed": known}, f"logged out of {registry}")


@click.group("registry")
def registry() -> None:
    """The registry that comes with modelpack."""


@command("serve")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=5000, show_default=True, help="0 takes a free one.")
@click.option("--read-only", is_flag=True, help="Refuse pushes and deletes.")
@click.option("--proxy", metavar="REGISTRY", help="Fetch what is not here from this registry, and keep it; read-only.")
@click.option("--user", help="Ask for this user, and the password of --password-file.")
@click.option("--password-file", type=click.Path(path_type=Path), help="Holds the password of --user.")
@click.option("--tls-cert", type=click.Path(path_type=Path), help="Speak TLS with this certificate chain (PEM).")
@click.option("--tls-key", type=click.Path(path_type=Path), help="Its private key (PEM, not encrypted).")
def serve(
    app: App,
    host: str,
    port: int,
    read_only: bool,
    proxy: str | None,
    user: str | None,
    password_file: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
) -> None:
    """Serve the store over the OCI distribution API, for this machine or, with --host, for a LAN.

    Without --user it asks nobody who they are: on a LAN everybody may pull, and push unless --read-only. Without
    --tls-cert it speaks plain HTTP, in which a password can be read on the way.

    With --proxy it stands before another registry, asked with your credentials for it: whoever may pull here may pull
    all that you may pull there. Each blob is fetched once, however many ask for it, and is verified before it is kept.
    A tag is looked up there each time; when nobody answers there, what it was is served, and the log says so.
    modelpack prune --cached 30d frees what nobody has asked for in that time.

    \b
    modelpack registry serve --port 5000
    modelpack push localhost:5000/team/model:v1
    modelpack registry serve --port 5001 --proxy ghcr.io
    modelpack registry serve --host 0.0.0.0 --read-only --user team --password-file pw --tls-cert c.pem --tls-key k.pem
    """
    from modelpack import embedded_registry
    from modelpack.cli.places import connect_registry

    if (user is None) != (password_file is None):
        raise InvalidInputError("--user and --password-file belong together")
    if (tls_cert is None) != (tls_key is None):
        raise InvalidInputError("--tls-cert and --tls-key belong together")
    account = embedded_registry.Account(user, _read_password(password_file)) if user and password_file else None
    certificate = (tls_cert, tls_key) if tls_cert and tls_key else None

    def ready(port: int) -> None:
        address = f"http{'s' if certificate else ''}://{f'[{host}]' if ':' in host else host}:{port}"
        app.answer({"url": address}, address)
        sys.stdout.flush()
        if host in ("127.0.0.1", "localhost", "::1"):
            return
        if account is None:
            may_push = not (read_only or proxy)
            app.progress.warn(f"everybody who reaches {host} may pull{' and push' if may_push else ''}")
        elif certificate is None:
            app.progress.warn("without --tls-cert the password can be read on the way")

    # Being told to stop is how a server ends well.
    with contextlib.suppress(KeyboardInterrupt):
        embedded_registry.serve(
            app.store,
            host=host,
            port=port,
            read_only=read_only,
            account=account,
            certificate=certificate,
            upstream=connect_registry(app, proxy) if proxy else None,
            on_ready=ready,
        )


_MAX_PASSWORD = 4096


def _read_password(path: Path) -> str:
    try:
        return read_small_file(path, limit=_MAX_PASSWORD, pipe=True).decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{path} is not UTF-8 text") from error


registry.add_command(serve)
