"""modelpack keygen, sign and trust."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelpack.cli.app import App, command
from modelpack.cli.durations import parse_duration
from modelpack.cli.key import ask_password, load_private_key
from modelpack.cli.places import MAX_KEY_SIZE, editable_policy, load_policy, open_remote, policy_path
from modelpack.errors import InvalidInputError, NotFoundError
from modelpack.oci.reference import Reference
from modelpack.small_file import read_small_file

if TYPE_CHECKING:
    from modelpack.oci.manifest import Descriptor
    from modelpack.oci.target import Target
    from modelpack.signing.keyless import KeylessSigner

_MAX_TRUST_CONFIG = 4 << 20


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

    password = b"" if no_password else ask_password(app, password_file, confirm=True)
    key = PrivateKey.generate()
    private, public = write_key_pair(out, key, password)
    app.answer(
        {"private_key": str(private), "public_key": str(public), "id": key.public.id},
        f"{private}\n{public}\n{key.public.id}",
    )


@command("sign")
@click.argument("reference", metavar="REF")
@click.option("--key", help="The private key: a file, env:NAME, or a pkcs11: URI.")
@click.option("--keyless", is_flag=True, help="Sign as the CI job that this is, with a certificate instead of a key.")
@click.option("--trust-config", type=click.Path(path_type=Path), help="A private sigstore instance for --keyless.")
@click.option("--password-file", type=click.Path(path_type=Path), help="Holds the key's password.")
@click.option("-a", "--annotation", "annotations", multiple=True, metavar="KEY=VALUE", help="Signed along with it.")
@click.option("--expires", help="When the signature stops counting: 90d, 12h, 4w.")
@click.option("--no-legacy", is_flag=True, help="Only the sigstore bundle, not cosign's .sig tag as well.")
@click.option("--bundle", "bundle_file", type=click.Path(path_type=Path), help="Write the bundle into a file, too.")
@click.option("--no-upload", is_flag=True, help="Only the file of --bundle; nothing is written beside the model.")
@click.option("--local", is_flag=True, help="Sign in the store; push sends the signature along.")
@click.option("--plain-http", is_flag=True, help="Talk to the registry without TLS.")
def sign(
    app: App,
    reference: str,
    key: str | None,
    keyless: bool,
    trust_config: Path | None,
    password_file: Path | None,
    annotations: tuple[str, ...],
    expires: str | None,
    no_legacy: bool,
    bundle_file: Path | None,
    no_upload: bool,
    local: bool,
    plain_http: bool,
) -> None:
    """Sign what a reference names, in its registry; one without a registry, or with --local, in the store.

    Signs a digest, and binds the signature to the name: registry/repository:tag. Signing twice changes nothing. With
    a tag alone, the registry must still name by it what the store has: add @sha256:... to sign something else.
    What was built here also gets its provenance and its bill of materials attested.

    --keyless takes the OIDC token of a CI job to sigstore, whose logs are public: the job's identity and the digest
    stay there for everybody to read.

    \b
    modelpack sign registry.example.com/team/model:v1 --key team.key
    modelpack sign registry.example.com/team/model:v1 --key team.key --bundle model.sigstore.json --no-upload
    """
    from modelpack.atomic_file import write_atomically
    from modelpack.evidence.record import attest_build
    from modelpack.signing import signature
    from modelpack.signing.candidate import signed_reference

    check_signer("sign", key, keyless=keyless, trust_config=trust_config)
    if keyless and (bundle_file or password_file):
        raise InvalidInputError("--keyless has no key, and hangs its bundle on the artifact")
    if no_upload and not bundle_file:
        raise InvalidInputError("--no-upload without --bundle would sign for nobody: name the file with --bundle")
    wanted = Reference.parse(reference)
    pairs = dict(_pair(text) for text in annotations)
    now = datetime.now(UTC)
    until = now + parse_duration(expires) if expires else None
    if key is None:
        place = place_to_sign(app, wanted, local=local, plain_http=plain_http)
        _sign_keyless(app, *place, trust_config, signed_at=now, annotations=pairs, expires=until)
        return
    private = load_private_key(app, key, password_file)
    target, wanted, descriptor = place_to_sign(app, wanted, local=local, plain_http=plain_http, push=not no_upload)
    document: dict[str, object] = {
        "reference": signed_reference(wanted),
        "digest": str(descriptor.digest),
        "key_id": private.public.id,
        "written": [],
        "found": [],
        "attested": [],
    }
    if bundle_file:
        bundle = signature.make_bundle(wanted, descriptor, private, signed_at=now, annotations=pairs, expires=until)
        write_atomically(bundle_file, bundle)
        document["bundle"] = str(bundle_file)
    if not no_upload:
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
        attested = attest_build(app.store, target, wanted, descriptor, private, now=now)
        document |= {
            "written": list(signed.written),
            "found": list(signed.found),
            "attested": [one.predicate_type for one in attested],
        }
    app.answer(document, f"{document['reference']}@{descriptor.digest}")


def _sign_keyless(
    app: App,
    target: "Target",
    wanted: Reference,
    descriptor: "Descriptor",
    trust_config: Path | None,
    *,
    signed_at: datetime,
    annotations: dict[str, str],
    expires: datetime | None,
) -> None:
    signer = open_keyless(app, trust_config)
    signed = signer.sign(target, wanted, descriptor, signed_at=signed_at, annotations=annotations, expires=expires)
    document = {
        "reference": signed.reference,
        "digest": str(descriptor.digest),
        "key_id": str(signed.identity),
        "written": ["bundle"],
        "found": [],
        "attested": [],
        "log_index": signed.log_index,
    }
    app.answer(document, f"{signed.reference}@{descriptor.digest}")


def check_signer(verb: str, key: str | None, *, keyless: bool, trust_config: Path | None) -> None:
    """Raises InvalidInputError unless it is clear who signs."""
    if (key is None) is not keyless:
        raise InvalidInputError(f"{verb} with --key KEY, or with --keyless, one of the two")
    if trust_config and not keyless:
        raise InvalidInputError("--trust-config names the services of --keyless")


def open_keyless(app: App, trust_config: Path | None) -> "KeylessSigner":
    """The signer that the CI job is, after one line that says what becomes public."""
    from modelpack.signing.keyless import KeylessSigner, ambient_token

    config = read_small_file(trust_config, limit=_MAX_TRUST_CONFIG, pipe=True) if trust_config else None
    signer = KeylessSigner(ambient_token(), config)
    app.progress.warn(signer.disclosure)
    return signer


def place_to_sign(
    app: App, wanted: Reference, *, local: bool, plain_http: bool, push: bool = True
) -> "tuple[Target, Reference, Descriptor]":
    """Where to write what is signed, as what, and about what: in the registry that is named, else in the store."""
    if local or wanted.registry is None:
        stored = app.store.find(wanted)
        return app.store.repository(stored.reference.name), stored.reference, stored.descriptor
    remote = open_remote(app, wanted, plain_http=plain_http, push=push)
    descriptor = remote.resolve(wanted.selector)
    if wanted.digest is None:
        _require_same(app, wanted, str(descriptor.digest))
    return remote, wanted, descriptor


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

    pem = read_small_file(public_key, limit=MAX_KEY_SIZE, pipe=True)
    path = editable_policy(app.settings)
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
                "signers": [{"name": signer.name, "id": signer.id, "status": signer.status} for signer in rule.signers],
            }
            for rule in policy.rules
        ],
    }
    rows = [
        (rule.match, str(rule.threshold), signer.name, signer.status, signer.id)
        for rule in policy.rules
        for signer in rule.signers
    ]
    app.note(f"{path}; by default: {policy.default}")
    app.table(document, ("MATCH", "THRESHOLD", "SIGNER", "STATUS", "KEY"), rows)


@command("remove")
@click.argument("name")
def trust_remove(app: App, name: str) -> None:
    """Take a key or an identity out of the policy, and rules that name nobody else with it.

    For a key that is in wrong hands there is modelpack trust revoke, which remembers it.
    """
    from modelpack.policy import remove_signer

    path = editable_policy(app.settings)
    remove_signer(path, name)
    app.answer({"policy": str(path), "name": name}, name)


@command("revoke")
@click.argument("name")
def trust_revoke(app: App, name: str) -> None:
    """Mark a key as revoked: nothing that it signed counts any more. Says which stored models have its signature.

    They stay in the store, and run only if somebody else whom the policy asks for has signed them as well.
    """
    from modelpack.policy import revoke_key
    from modelpack.receipt import signed_by

    path = editable_policy(app.settings)
    key = revoke_key(path, name)
    models = signed_by(app.store, key.key)
    document = {
        "policy": str(path),
        "name": name,
        "id": key.id,
        "models": [{"reference": str(one.reference), "digest": str(one.descriptor.digest)} for one in models],
    }
    app.answer(document, "\n".join(f"{one.reference}@{one.descriptor.digest}" for one in models))
    app.note(f"{name} ({key.id}) is revoked in {path}; {len(models)} stored models have its signature")


trust.add_command(trust_add)
trust.add_command(trust_list)
trust.add_command(trust_remove)
trust.add_command(trust_revoke)
