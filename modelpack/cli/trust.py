"""modelpack keygen, sign and trust."""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelpack.cli.app import App, command, read_file
from modelpack.cli.places import MAX_KEY_SIZE, load_policy, open_remote, policy_path, user_policy
from modelpack.errors import InvalidInputError, InvalidKeyError, NotFoundError
from modelpack.oci.reference import Reference

if TYPE_CHECKING:
    from modelpack.signing.keys import PrivateKey


@command("keygen")
@click.option(
    "--out", default="modelpack", show_default=True, type=click.Path(path_type=Path), help="OUT.key, OUT.pub."
)
@click.option("--password-file", type=click.Path(path_type=Path), help="Holds the password for the key.")
@click.option("--no-password", is_flag=True, help="Seal the key with the empty password.")
def keygen(app: App, out: Path, password_file: Path | None, no_password: bool) -> None:
    """Make an ECDSA P-256 signing key in cosign's encrypted file format.

    The password comes from --password-file, MODELPACK_PASSWORD, COSIGN_PASSWORD or a prompt.
    """
    from modelpack.signing.keys import PrivateKey, write_key_pair

    password = b"" if no_password else _password(app, password_file, confirm=True)
    key = PrivateKey.generate()
    private, public = write_key_pair(out, key, password)
    app.answer(
        {"private_key": str(private), "public_key": str(public), "id": key.public.id},
        f"{private}\n{public}\n{key.public.id}",
    )


def load_private_key(app: App, place: str, password_file: Path | None) -> "PrivateKey":
    """A key from a file or from ``env:NAME``. Raises NotFoundError, InvalidKeyError."""
    from modelpack.signing.keys import PrivateKey, is_encrypted

    if place.startswith("env:"):
        name = place.removeprefix("env:").removeprefix("//")
        pem = app.settings.environment.get(name, "").encode()
        if not pem:
            raise NotFoundError(f"there is no key in the environment variable {name}")
    else:
        pem = read_file(Path(place), limit=MAX_KEY_SIZE)
    password = _password(app, password_file, confirm=False) if is_encrypted(pem) else None
    return PrivateKey.load(pem, password)


def _password(app: App, file: Path | None, *, confirm: bool) -> bytes:
    """Never from an argument: those show in process lists and shell histories."""
    if file:
        return read_file(file, limit=4096).rstrip(b"\r\n")
    for name in ("MODELPACK_PASSWORD", "COSIGN_PASSWORD"):
        if name in app.settings.environment:
            return app.settings.environment[name].encode()
    if not sys.stdin.isatty():
        raise InvalidKeyError("the key needs a password, and there is no terminal to ask at")
    return str(click.prompt("Password for the key", hide_input=True, confirmation_prompt=confirm, err=True)).encode()


@command("sign")
@click.argument("reference", metavar="REF")
@click.option("--key", required=True, help="The private key: a file, or env:NAME.")
@click.option("--password-file", type=click.Path(path_type=Path), help="Holds the key's password.")
@click.option("-a", "--annotation", "annotations", multiple=True, metavar="KEY=VALUE", help="Signed along with it.")
@click.option("--expires", help="When the signature stops counting: 90d, 12h, 4w.")
@click.option("--no-legacy", is_flag=True, help="Only the sigstore bundle, not cosign's .sig tag as well.")
@click.option("--local", is_flag=True, help="Sign in the store; push sends the signature along.")
@click.option("--plain-http", is_flag=True, help="Talk to the registry without TLS.")
def sign(
    app: App,
    reference: str,
    key: str,
    password_file: Path | None,
    annotations: tuple[str, ...],
    expires: str | None,
    no_legacy: bool,
    local: bool,
    plain_http: bool,
) -> None:
    """Sign what a reference names, in its registry; one without a registry, or with --local, in the store.

    Signs a digest, and binds the signature to the name: registry/repository:tag. Signing twice changes nothing. With
    a tag alone, the registry must still name by it what the store has: add @sha256:... to sign something else.

    \b
    modelpack sign registry.example.com/team/model:v1 --key team.key
    """
    from modelpack.oci.target import Target
    from modelpack.signing import signature

    wanted = Reference.parse(reference)
    pairs = dict(_pair(text) for text in annotations)
    now = datetime.now(UTC)
    until = now + _duration(expires) if expires else None
    private = load_private_key(app, key, password_file)
    target: Target
    if local or wanted.registry is None:
        stored = app.store.find(wanted)
        wanted, descriptor, target = stored.reference, stored.descriptor, app.store.repository(stored.reference.name)
    else:
        target = open_remote(app, wanted, plain_http=plain_http, push=True)
        descriptor = target.resolve(wanted.selector)
        if wanted.digest is None:
            _require_same(app, wanted, str(descriptor.digest))
    signed = signature.sign(
        target,
        wanted,
        descriptor,
        private,
        signed_at=now,
        annotations=pairs,
        expires=until,
        legacy=not no_legacy,
    )
    if not signed.written:
        app.note("it was signed so already; nothing was changed")
    document = {
        "reference": signed.reference,
        "digest": str(signed.digest),
        "key_id": signed.key_id,
        "written": list(signed.written),
        "found": list(signed.found),
    }
    app.answer(document, f"{signed.reference}@{signed.digest}")


def _require_same(app: App, wanted: Reference, digest: str) -> None:
    """A tag is whatever the registry says it is now: sign it blindly, and the registry chooses what is signed."""
    try:
        known = str(app.store.find(wanted).descriptor.digest)
    except NotFoundError:
        known = None
    if known != digest:
        raise InvalidInputError(
            f"{wanted} names {digest} in the registry and {known or 'nothing'} in the store; "
            f"to sign the registry's: {wanted.tagged}@{digest}"
        )


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise InvalidInputError(f"not KEY=VALUE: {text!r}")
    return key, value


def _duration(text: str) -> timedelta:
    hours = {"h": 1, "d": 24, "w": 7 * 24}.get(text[-1:], 0)
    if not hours or not text[:-1].isascii() or not text[:-1].isdigit() or not 0 < int(text[:-1]) < 100_000:
        raise InvalidInputError(f"not a duration: {text!r} (90d, 12h, 4w)")
    return timedelta(hours=hours * int(text[:-1]))


@click.group("trust")
def trust() -> None:
    """Say whose signatures count."""


@command("add")
@click.argument("name")
@click.argument("public_key", type=click.Path(path_type=Path))
@click.option("--match", required=True, help="The repositories: registry.example.com/team/**")
def trust_add(app: App, name: str, public_key: Path, match: str) -> None:
    """Trust a key, by a NAME of your choice, for the repositories that --match names.

    \b
    modelpack trust add team team.pub --match 'registry.example.com/team/**'
    """
    from modelpack.policy import add_key_rule
    from modelpack.signing.keys import PublicKey

    pem = read_file(public_key, limit=MAX_KEY_SIZE)
    path = user_policy(app.settings)
    add_key_rule(path, name, pem, match)
    identity = PublicKey.load(pem).id
    app.answer({"policy": str(path), "name": name, "match": match, "id": identity}, f"{name} {identity} {match}")


@command("list")
def trust_list(app: App) -> None:
    """List the rules of the policy."""
    path = policy_path(app.settings)
    policy = load_policy(app)
    if policy is None or path is None:
        app.answer({"policy": None, "default": "deny", "rules": []}, "")
        app.note("there is no policy: pull asks for --key, and modelpack trust add makes one")
        return
    document = {
        "policy": str(path),
        "default": policy.default,
        "rules": [
            {
                "match": rule.match,
                "threshold": rule.threshold,
                "signers": [
                    {"name": signer.name, "id": signer.key.id, "status": signer.status} for signer in rule.signers
                ],
            }
            for rule in policy.rules
        ],
    }
    rows = [
        (rule.match, str(rule.threshold), signer.name, signer.status, signer.key.id)
        for rule in policy.rules
        for signer in rule.signers
    ]
    app.note(f"{path}; by default: {policy.default}")
    app.table(document, ("MATCH", "THRESHOLD", "SIGNER", "STATUS", "KEY"), rows)


trust.add_command(trust_add)
trust.add_command(trust_list)
