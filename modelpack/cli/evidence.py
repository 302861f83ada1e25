"""modelpack attest, tree and why."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelpack.cli.app import App, command
from modelpack.cli.places import MAX_KEY_SIZE, load_policy
from modelpack.errors import InvalidContentError, InvalidInputError
from modelpack.oci.reference import FileReference, HubReference, Reference, parse_location
from modelpack.small_file import read_small_file

if TYPE_CHECKING:
    from modelpack.evidence.tree import Attachment, Tree
    from modelpack.signing.keys import PublicKey

_SURE = {"signed": "signed by", "recorded": "recorded by", "said": "said by", "unknown": ""}


@command("attest")
@click.argument("reference", metavar="REF")
@click.option(
    "--type", "kind", required=True, metavar="TYPE", help="slsa, test-result, cyclonedx, or the URI of another type."
)
@click.option("--predicate", required=True, type=click.Path(path_type=Path), help="The JSON file that says it.")
@click.option("--key", help="The private key: a file, env:NAME, or a pkcs11: URI.")
@click.option("--keyless", is_flag=True, help="Sign as the CI job that this is, with a certificate instead of a key.")
@click.option("--trust-config", type=click.Path(path_type=Path), help="A private sigstore instance for --keyless.")
@click.option("--password-file", type=click.Path(path_type=Path), help="Holds the key's password.")
@click.option("--local", is_flag=True, help="Attest in the store; push sends the attestation along.")
@click.option("--legacy-attestations", is_flag=True, help="Under cosign's .att tag as well, for policy-controller.")
@click.option("--plain-http", is_flag=True, help="Talk to the registry without TLS.")
def attest(
    app: App,
    reference: str,
    kind: str,
    predicate: Path,
    key: str | None,
    keyless: bool,
    trust_config: Path | None,
    password_file: Path | None,
    local: bool,
    legacy_attestations: bool,
    plain_http: bool,
) -> None:
    """Sign a statement about what a reference names: how it was built, how it was tested, what is in it.

    Where it is written, and what a tag alone may name, is as with sign. Predicates of the types that modelpack knows
    are checked. Attesting the same twice changes nothing. An attestation is no signature: a policy asks for either.

    --keyless is as with sign: it takes the OIDC token of a CI job to sigstore, whose logs are public.

    \b
    modelpack attest registry.example.com/team/model:v1 --type test-result --predicate eval.json --key team.key
    """
    from modelpack.cli.key import load_private_key
    from modelpack.cli.trust import check_signer, open_keyless, place_to_sign
    from modelpack.evidence.predicates import check_predicate, predicate_type
    from modelpack.evidence.record import weights_of
    from modelpack.oci import strict_json
    from modelpack.signing import attestation

    check_signer("attest", key, keyless=keyless, trust_config=trust_config)
    if keyless and (legacy_attestations or password_file):
        raise InvalidInputError("--keyless has no key, and makes bundles alone")
    wanted = Reference.parse(reference)
    uri = predicate_type(kind)
    try:
        said = strict_json.parse_object(
            read_small_file(predicate, limit=attestation.MAX_PREDICATE_SIZE, pipe=True), what=str(predicate)
        )
    except InvalidContentError as error:
        raise InvalidInputError(str(error)) from error
    check_predicate(uri, said)
    if key is None:
        target, wanted, descriptor = place_to_sign(app, wanted, local=local, plain_http=plain_http)
        signed = open_keyless(app, trust_config).attest(
            target,
            wanted,
            descriptor,
            predicate_type=uri,
            predicate=said,
            created=datetime.now(UTC),
            files=weights_of(target, descriptor),
        )
        document: dict[str, object] = {
            "reference": signed.reference,
            "digest": str(descriptor.digest),
            "predicate_type": uri,
            "key_id": str(signed.identity),
            "written": ["bundle"],
            "found": [],
            "log_index": signed.log_index,
        }
        app.answer(document, f"{signed.reference}@{descriptor.digest}")
        return
    private = load_private_key(app, key, password_file)
    target, wanted, descriptor = place_to_sign(app, wanted, local=local, plain_http=plain_http)
    attested = attestation.attest(
        target,
        wanted,
        descriptor,
        private,
        predicate_type=uri,
        predicate=said,
        created=datetime.now(UTC),
        files=weights_of(target, descriptor),
        legacy=legacy_attestations,
    )
    if not attested.written:
        app.note("it was attested so already; nothing was changed")
    document = {
        "reference": attested.reference,
        "digest": str(attested.digest),
        "predicate_type": attested.predicate_type,
        "key_id": attested.key_id,
        "written": list(attested.written),
        "found": list(attested.found),
    }
    app.answer(document, f"{attested.reference}@{attested.digest}")


def known_signers(app: App, keys: tuple[Path, ...]) -> "dict[str, PublicKey]":
    """The keys that have a name here: those of ``--key``, else those of the policy that are not revoked."""
    from modelpack.signing.keys import PublicKey

    if keys:
        return {str(path): PublicKey.load(read_small_file(path, limit=MAX_KEY_SIZE, pipe=True)) for path in keys}
    policy = load_policy(app)
    return {name: one.key for name, one in policy.keys.items() if one.status != "revoked"} if policy else {}


@command("tree")
@click.argument("location", metavar="REF")
@click.option("--key", "keys", multiple=True, type=click.Path(path_type=Path), help="Say what this public key signed.")
@click.option("--remote", is_flag=True, help="Look into the registry even if the store has it.")
@click.option("--plain-http", is_flag=True, help="Talk to the registry without TLS.")
def tree(app: App, location: str, keys: tuple[Path, ...], remote: bool, plain_http: bool) -> None:
    """Show all that hangs on an artifact: signatures, attestations, what else refers to it.

    Says who signed what as far as --key or the policy know the key; trusts nothing and decides nothing.

    \b
    modelpack tree registry.example.com/team/model:v1 --key team.pub
    """
    from modelpack.cli.store import locate
    from modelpack.evidence.tree import build_tree

    place = parse_location(location)
    if isinstance(place, FileReference | HubReference):
        raise InvalidInputError(f"nothing can hang on {location}: only on an artifact in the store or a registry")
    source, descriptor, where = locate(app, place, remote=remote, plain_http=plain_http)
    app.answer(*_tree_answer(where, build_tree(source, descriptor, known_signers(app, keys))))


def _tree_answer(where: str, found: "Tree") -> tuple[dict[str, object], str]:
    manifest = found.manifest
    document: dict[str, object] = {
        "reference": where,
        "digest": str(manifest.digest),
        "artifact_type": manifest.descriptor.artifact_type,
        "attached": [attachment.to_json() for attachment in found.attachments],
    }
    lines = [f"{where}  {manifest.digest}", f"  {manifest.descriptor.artifact_type or manifest.media_type}"]
    last = len(found.attachments) - 1
    for position, attachment in enumerate(found.attachments):
        edge, below = ("└── ", "    ") if position == last else ("├── ", "│   ")
        lines += [f"{edge}{_summary(attachment)}", f"{below}{attachment.where}"]
    return document, "\n".join(lines)


def _summary(attachment: "Attachment") -> str:
    from modelpack.evidence.predicates import short_name

    if attachment.kind in ("unreadable", "tag"):
        return f"{attachment.kind}: {attachment.problem}"
    what = attachment.kind + (f" {short_name(attachment.type)}" if attachment.type else "")
    if attachment.kind == "referrer":
        return what
    if attachment.signer:
        by = f"by {attachment.signer}"
    else:
        by = f"by a key that nobody here knows ({attachment.key_hint or 'unnamed'})"
    when = f", {attachment.signed_at}" if attachment.signed_at else ""
    return f"{what} {by}{when}  [{attachment.format}]"


@command("why")
@click.argument("reference", metavar="REF")
@click.option("--key", "keys", multiple=True, type=click.Path(path_type=Path), help="Count this public key as known.")
def why(app: App, reference: str, keys: tuple[Path, ...]) -> None:
    """Say where a stored model came from, and who says so.

    From the model back: the receipt of its pull, its signers and registry, the build, the checkpoint and its commit,
    the licence, the base model, and how it behaved. Each line ends with how sure that is: signed by a key that the
    policy or --key knows, recorded by this store, said by the artifact or by somebody unknown, or not known at all.
    """
    from modelpack.evidence import why as library

    stored = app.store.find(Reference.parse(reference))
    facts = library.why(app.store, stored.reference, stored.descriptor, known_signers(app, keys))
    document = {
        "reference": str(stored.reference),
        "digest": str(stored.descriptor.digest),
        "facts": [fact.to_json() for fact in facts],
    }
    lines = [stored.reference.pinned(stored.descriptor.digest)]
    for fact in facts:
        sure = f"{_SURE[fact.voice.certainty]} {fact.voice.by}" if fact.value else ""
        lines.append(f"{fact.about:12}{fact.value or 'unknown'}" + (f"  [{sure}]" if sure else ""))
    app.answer(document, "\n".join(lines))
