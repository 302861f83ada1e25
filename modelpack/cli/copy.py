"""modelpack copy, bundle save, bundle load and tags: artifacts from one place to another, with all that is signed."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelpack.cli.app import App, command
from modelpack.cli.judging import Judge, keep_verdict
from modelpack.cli.progress import human_size
from modelpack.cli.transfers import jobs_option, limit_rate_option
from modelpack.errors import InvalidInputError, NotFoundError
from modelpack.oci.manifest import Descriptor
from modelpack.oci.reference import ArchiveReference, LayoutReference, Reference

if TYPE_CHECKING:
    from modelpack.oci.target import Source, Target
    from modelpack.policy import Policy
    from modelpack.store.index import Entry

PLAIN_HTTP = click.option("--plain-http", is_flag=True, help="Talk to the registry without TLS.")
KEYS = click.option(
    "--key", "keys", multiple=True, type=click.Path(path_type=Path), help="Trust this public key, and no other."
)
POLICY = click.option("--policy", type=click.Path(path_type=Path), help="The policy file.  [env: MODELPACK_POLICY]")
SKIP = click.option("--insecure-skip-verify", is_flag=True, help="Copy whatever it is, whoever made it.")
ROLLBACK = click.option("--allow-rollback", is_flag=True, help="Take something older than what was verified before.")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where something is copied from. ``reference`` is the name that its signatures are held against."""

    source: "Source"
    descriptor: Descriptor
    reference: Reference | None
    tag: str | None
    is_stored: bool = False
    """Whether it is in our store: then it was judged when it came in, and may have to be judged again."""


@dataclass(frozen=True, slots=True)
class Destination:
    """Where it is copied to. ``finish`` completes what the target could only begin."""

    target: "Target"
    tag: str | None
    reference: Reference | None = None
    is_store: bool = False
    finish: Callable[[], object] = lambda: None
    is_written_at_end: bool = False
    """Whether nothing can be looked at there before ``finish``."""


@command("copy")
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST")
@KEYS
@POLICY
@SKIP
@ROLLBACK
@PLAIN_HTTP
@jobs_option
@limit_rate_option
def copy(
    app: App,
    source: str,
    destination: str,
    keys: tuple[Path, ...],
    policy: Path | None,
    insecure_skip_verify: bool,
    allow_rollback: bool,
    plain_http: bool,
    jobs: int | None,
    limit_rate: int | None,
) -> None:
    """Copy an artifact with its signatures and all else that refers to it; the digest stays the same.

    SRC and DST are registry/repository:tag, store:NAME (or a name without a registry), oci-layout:DIR[:tag] or
    oci-archive:FILE.tar[:tag]. The policy judges it before anything large moves: under its own name, or, where a layout
    gives it none, under that of DST. What comes from the store was judged when it came in, and is judged again where
    the policy has changed, or where --key or --policy ask for it. An archive is written anew.

    \b
    modelpack copy ghcr.io/team/model:v1 registry.example.com/mirror/model:v1
    modelpack copy store:smollm2:1.0 oci-layout:./usb:v1
    """
    from modelpack.mirror import mirror

    origin = open_source(app, source, plain_http=plain_http, rate_limit=limit_rate)
    there = open_target(app, destination, origin, plain_http=plain_http, rate_limit=limit_rate)
    name = origin.reference or there.reference or Reference(None, "unnamed")
    judge = Judge.appoint(app, keys, policy, skip=insecure_skip_verify, allow_rollback=allow_rollback)
    if origin.is_stored:
        verdict = judge.judge_stored(app, origin.source, name, origin.descriptor)
    else:
        verdict = judge.judge(app, origin.source, name, origin.descriptor)
    result = mirror(
        origin.source,
        there.target,
        origin.descriptor,
        tag=there.tag,
        jobs=jobs,
        progress=app.progress,
        approve=None if origin.is_stored or there.is_written_at_end else judge.second_look(name, origin.descriptor),
    )
    there.finish()
    if there.is_store and verdict and not origin.is_stored:
        keep_verdict(app, name, origin.descriptor, verdict)
    document = {
        "source": source,
        "destination": destination,
        "digest": str(origin.descriptor.digest),
        "tag": there.tag,
        "blobs_copied": result.blobs_copied,
        "blobs_skipped": result.blobs_skipped,
        "bytes_copied": result.bytes_copied,
        "referrers_copied": result.referrers_copied,
        "trust": verdict.to_json() if verdict else None,
    }
    app.note(f"copied {human_size(result.bytes_copied)}, and {result.referrers_copied} that refer to it")
    app.answer(document, f"{destination}@{origin.descriptor.digest}")


def open_source(app: App, text: str, *, plain_http: bool, rate_limit: int | None = None) -> Origin:
    """What SRC names, resolved once. Raises NotFoundError, MalformedReferenceError."""
    from modelpack.archive import Archive
    from modelpack.cli.places import open_remote
    from modelpack.store import open_layout

    source: Source
    if text.startswith("oci-archive:"):
        archived = ArchiveReference.parse(text)
        archive = Archive.open(archived.path)
        entry = _entry(archive.index.entries, archived.tag, archived.path)
        return _origin_in_layout(archive.repository(_repository_of(entry)), entry)
    if text.startswith("oci-layout:"):
        place = LayoutReference.parse(text)
        entry = _entry(open_layout(place.path).index.entries, place.tag, place.path)
        return _origin_in_layout(open_layout(place.path, repository=_repository_of(entry)), entry)
    reference = Reference.parse(text.removeprefix("store:"))
    if text.startswith("store:") or reference.registry is None:
        stored = app.store.find(reference)
        source = app.store.repository(stored.reference.name)
        return Origin(source, stored.descriptor, stored.reference, _tag_of(stored.reference), is_stored=True)
    source = open_remote(app, reference, plain_http=plain_http, rate_limit=rate_limit)
    return Origin(source, source.resolve(reference.selector), reference, _tag_of(reference))


def open_target(app: App, text: str, origin: Origin, *, plain_http: bool, rate_limit: int | None = None) -> Destination:
    """What DST names; without a tag of its own, the source's. Raises MalformedReferenceError, InvalidInputError."""
    from modelpack.archive import ArchiveBuilder
    from modelpack.cli.places import open_remote
    from modelpack.store import create_layout

    if text.startswith("oci-archive:"):
        archived = ArchiveReference.parse(text)
        builder = ArchiveBuilder()
        return Destination(
            builder.repository(),
            archived.tag or origin.tag,
            finish=lambda: builder.write(archived.path, progress=app.progress),
            is_written_at_end=True,
        )
    if text.startswith("oci-layout:"):
        place = LayoutReference.parse(text)
        return Destination(create_layout(place.path), place.tag or origin.tag)
    reference = Reference.parse(text.removeprefix("store:"))
    if reference.digest:
        raise InvalidInputError(
            f"{reference} has a digest: a copy keeps that of its source, {origin.descriptor.digest}"
        )
    tag = reference.tag or origin.tag
    reference = reference.with_tag(tag) if tag else reference.with_digest(origin.descriptor.digest)
    if text.startswith("store:") or reference.registry is None:
        return Destination(app.store.repository(reference.name), tag, reference, is_store=True)
    remote = open_remote(app, reference, plain_http=plain_http, push=True, rate_limit=rate_limit)
    return Destination(remote, tag, reference)


def _entry(entries: "Iterable[Entry]", tag: str | None, path: Path) -> "Entry":
    """The entry of an index that is meant: by its bare tag, by the tag in its full reference, or the only one."""
    from modelpack.store.index import attached_to

    named = [entry for entry in entries if entry.name and not attached_to(_bare_tag(entry))]
    fitting = [entry for entry in named if tag is None or tag in (entry.name, _bare_tag(entry))]
    if not fitting and tag is None:
        fitting = [entry for entry in entries if not entry.name]
    if len({entry.descriptor.digest for entry in fitting}) != 1:
        names = ", ".join(entry.name for entry in named[:10])
        what = f"{path} has no artifact {tag or ''}".rstrip() if not fitting else f"{path} has several artifacts"
        raise (InvalidInputError if fitting else NotFoundError)(f"{what}; it has: {names or 'nothing with a name'}")
    return fitting[0]


def _bare_tag(entry: "Entry") -> str | None:
    return entry.tag if _repository_of(entry) else entry.name


def _repository_of(entry: "Entry") -> str | None:
    """The repository that a full reference names; None for a bare tag."""
    is_full = ":" in entry.name and entry.reference is not None
    return entry.reference.name if is_full and entry.reference else None


def _origin_in_layout(source: "Source", entry: "Entry") -> Origin:
    reference = entry.reference if _repository_of(entry) else None
    descriptor = replace(entry.descriptor, annotations={}, artifact_type=None)
    return Origin(source, descriptor, reference, _bare_tag(entry) or None)


def _tag_of(reference: Reference) -> str | None:
    return None if reference.digest else reference.selector


@click.group("bundle")
def bundle() -> None:
    """Artifacts in one file, for where no network goes."""


@command("save")
@click.argument("references", nargs=-1, required=True, metavar="REF...")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The file, replaced if it exists.")
def bundle_save(app: App, references: tuple[str, ...], output: Path) -> None:
    """Write models of the store into one file, with their signatures and all that refers to them.

    The file is an OCI image layout in an uncompressed tar; the same models give the same bytes. What the policy does
    not allow is not saved. The public keys that it trusts for the rest lie beside the layout under trust/, for a person
    to compare: load never believes them.

    \b
    modelpack bundle save registry.example.com/team/model:v1 -o model.tar
    """
    from modelpack.archive import ArchiveBuilder
    from modelpack.mirror import mirror

    builder = ArchiveBuilder()
    judge = Judge.appoint(app, (), None, skip=False, allow_rollback=False)
    saved = []
    for text in references:
        stored = app.store.find(Reference.parse(text))
        source = app.store.repository(stored.reference.name)
        judge.judge_stored(app, source, stored.reference, stored.descriptor)
        target = builder.repository(stored.reference.name)
        mirror(source, target, stored.descriptor, tag=_tag_of(stored.reference), jobs=1)
        saved.append(stored)
    if judge.rules:
        for name, content in _trust_files(judge.rules, [stored.reference for stored in saved]).items():
            builder.add_file(f"trust/{name}", content)
    size = builder.write(output, progress=app.progress)
    document = {
        "file": str(output),
        "bytes": size,
        "artifacts": [{"reference": str(one.reference), "digest": str(one.descriptor.digest)} for one in saved],
    }
    app.answer(document, "\n".join([str(output), *(f"{one.reference}@{one.descriptor.digest}" for one in saved)]))


def _trust_files(policy: "Policy", references: list[Reference]) -> dict[str, bytes]:
    """The rules that speak of these names, and the keys of their signers."""
    import json

    files: dict[str, bytes] = {}
    rules = {rule.match: rule for reference in references if (rule := policy.rule_for(reference))}
    lines = [
        "# What the maker of this bundle trusted for it. Compare it with what you know; nothing reads it.",
        "version = 1",
    ]
    keys = {key.name: key for rule in rules.values() for key in rule.keys}
    for position, (name, key) in enumerate(sorted(keys.items()), 1):
        files[f"{position}.pub"] = key.key.pem
        lines += ["", f"[keys.{json.dumps(name)}]", f'path = "{position}.pub"', f'id = "{key.key.id}"']
    for match, rule in sorted(rules.items()):
        signers = json.dumps([key.name for key in rule.keys])
        lines += [
            "",
            "[[rule]]",
            f"match = {json.dumps(match)}",
            f"signers = {signers}",
            f"threshold = {rule.threshold}",
        ]
    if rules:
        files["policy.toml"] = ("\n".join(lines) + "\n").encode()
    return files


@command("load")
@click.argument("file", type=click.Path(path_type=Path))
@KEYS
@POLICY
@SKIP
@ROLLBACK
def bundle_load(
    app: App,
    file: Path,
    keys: tuple[Path, ...],
    policy: Path | None,
    insecure_skip_verify: bool,
    allow_rollback: bool,
) -> None:
    """Bring all that a bundle holds into the store, judged by the policy of this machine.

    Signatures are checked before anything is stored, every byte while it is read. Keys that lie in the bundle count
    for nothing. An archive with bare tags, as skopeo's, comes in by modelpack copy oci-archive:FILE:TAG store:NAME.
    """
    from modelpack.archive import Archive
    from modelpack.mirror import mirror

    archive = Archive.open(file)
    if not archive.references:
        raise InvalidInputError(f"{file} names no artifact in full: modelpack copy oci-archive:{file}:TAG store:NAME")
    judge = Judge.appoint(app, keys, policy, skip=insecure_skip_verify, allow_rollback=allow_rollback)
    judged = []
    for reference in archive.references:
        source = archive.repository(reference.name)
        descriptor = source.resolve(reference.selector)
        judged.append((reference, source, descriptor, judge.judge(app, source, reference, descriptor)))
    for reference, source, descriptor, verdict in judged:
        target = app.store.repository(reference.name)
        mirror(source, target, descriptor, tag=_tag_of(reference), jobs=1, progress=app.progress)
        keep_verdict(app, reference, descriptor, verdict)
    document = {
        "file": str(file),
        "artifacts": [
            {"reference": str(reference), "digest": str(descriptor.digest), "trust": verdict.to_json()}
            for reference, _, descriptor, verdict in judged
        ],
    }
    app.answer(document, "\n".join(f"{reference}@{descriptor.digest}" for reference, _, descriptor, _ in judged))


bundle.add_command(bundle_save)
bundle.add_command(bundle_load)


@command("tags")
@click.argument("repository", metavar="REPO")
@click.option("--all", "show_all", is_flag=True, help="The tags of signatures and referrers lists, too.")
@PLAIN_HTTP
def tags(app: App, repository: str, show_all: bool, plain_http: bool) -> None:
    """List the tags of a repository in a registry; of a name without a registry, those in the store."""
    from modelpack.cli.places import open_remote
    from modelpack.store.index import attached_to

    reference = Reference.parse(repository)
    if reference.tag or reference.digest:
        raise InvalidInputError(f"{repository} names more than a repository")
    source: Source
    if reference.registry is None:
        source = app.store.repository(reference.name)
    else:
        source = open_remote(app, reference, plain_http=plain_http)
    found = [tag for tag in source.list_tags() if show_all or not attached_to(tag)]
    app.answer({"repository": reference.name, "tags": found}, "\n".join(found))
