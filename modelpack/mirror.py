"""Copying with nothing left behind: an artifact and all that refers to it, looked for again where it went.

Copy tools that drop signatures say nothing, and it shows when somebody verifies (chainguard-dev/edu#3957,
hauler-dev/hauler#667).
"""

from collections.abc import Callable, Iterator, Set

from modelpack import transfer
from modelpack.errors import CheckFailedError, NotFoundError
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import Descriptor, Manifest
from modelpack.oci.target import Source, Target
from modelpack.progress import SILENT, Progress
from modelpack.signing import tagged
from modelpack.transfer import CopyResult

_LEGACY_SUFFIXES = ("sig", "att")
_MAX_DEPTH = 6


def mirror(
    source: Source,
    target: Target,
    descriptor: Descriptor,
    *,
    tag: str | None,
    jobs: int | None = None,
    progress: Progress = SILENT,
    approve: Callable[[Source], None] | None = None,
) -> CopyResult:
    """``transfer.copy`` with its referrers, then a look at the destination.

    ``approve`` looks at the destination, where every byte has been hashed by then, before the tag is set; what it
    raises leaves the artifact there without one. Raises CheckFailedError, naming them, when the destination does not
    list what the source does; besides that, what ``transfer.copy`` raises.
    """
    result = transfer.copy(source, target, descriptor, tag=None if approve else tag, jobs=jobs, progress=progress)
    if approve:
        approve(target)
        if tag:
            target.put_manifest(source.fetch_manifest(descriptor), tag=tag)
    missing = list(missing_referrers(source, target, descriptor, left=result.referrers_left))
    if missing:
        raise CheckFailedError(
            f"{descriptor.digest} was copied, but the destination lacks {len(missing)} that refer to it: "
            + ", ".join(missing[:5])
        )
    return result


def missing_referrers(
    source: Source, target: Source, descriptor: Descriptor, *, left: Set[Digest] = frozenset()
) -> Iterator[str]:
    """The referrers and the legacy signature tags, of an artifact and all below it, that only the source has.

    What the source lists but no longer has, or lists under a wrong subject, was nobody's to copy, nor was what holds no
    signatures under one of their tags; ``left`` was left behind on purpose.
    """
    rest = [(descriptor, 0)]
    seen: set[Digest] = set()
    while rest:
        subject, depth = rest.pop()
        if subject.digest in seen or depth > _MAX_DEPTH:
            continue
        seen.add(subject.digest)
        rest += [(child, depth + 1) for child in source.fetch_manifest(subject).manifests]
        there = {one.digest for one in target.list_referrers(subject.digest)}
        for referrer in source.list_referrers(subject.digest):
            if referrer.digest in there:
                rest.append((referrer, depth + 1))
            elif referrer.digest not in left and _refers(source, referrer, subject.digest):
                yield str(referrer.digest)
        for suffix in _LEGACY_SUFFIXES:
            tag = f"sha256-{subject.digest.hex}.{suffix}"
            wanted = tagged.mergeable_manifest(source, tag)
            if wanted and wanted.digest not in left and _lacks(tagged.mergeable_manifest(target, tag), wanted):
                yield tag


def _refers(source: Source, referrer: Descriptor, subject: Digest) -> bool:
    try:
        manifest = source.fetch_manifest(referrer)
    except NotFoundError:
        return False
    return manifest.subject is not None and manifest.subject.digest == subject


def _lacks(present: Manifest | None, wanted: Manifest) -> bool:
    """Whether a tag says less than another, unless it says as much as anybody reads."""
    if present is None:
        return True
    return len(present.layers) < tagged.MAX_TAG_LAYERS and bool(tagged.missing_layers(wanted, present))
