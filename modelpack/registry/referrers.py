"""Which manifests refer to another (distribution specification 1.1: "Listing Referrers", "Referrers Tag Schema").

Registries before distribution 4, Docker Hub and GHCR lack the API; there an index under the tag ``sha256-<hex>``
is the list, kept by whoever pushes. No registry offers a compare-and-swap on tags, so concurrent writers can lose
each other's entries: after writing we look again, and write again until our entry stays.
"""

import logging
import re
from collections.abc import Callable

from modelpack.errors import InvalidContentError, NotFoundError, RegistryUnavailableError
from modelpack.oci import strict_json
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import IMAGE_INDEX, MAX_MANIFEST_SIZE, Descriptor, Manifest, image_index
from modelpack.registry import manifests
from modelpack.registry.endpoint import Endpoint

logger = logging.getLogger(__name__)

_MAX_REFERRERS = 10_000
_ROUNDS = 12
# Image specification 1.1, descriptor.md, "Digests".
_DIGEST = re.compile(r"[a-z0-9]+(?:[+._-][a-z0-9]+)*:[a-zA-Z0-9=_-]+", re.ASCII)
_NO_API = (301, 302, 303, 307, 308, 400, 401, 403, 404, 405, 406, 410, 415, 501)


def fallback_tag(subject: Digest) -> str:
    return f"sha256-{subject.hex}"


def list_referrers(endpoint: Endpoint, subject: Digest) -> list[Descriptor]:
    """What the API and the fallback tag list, each digest once. Claims: look at each manifest's own subject."""
    listed = [*(_from_api(endpoint, subject) or []), *_entries(_fallback_index(endpoint, subject))]
    unique: dict[Digest, Descriptor] = {}
    for descriptor in listed:
        unique.setdefault(descriptor.digest, descriptor)
    return list(unique.values())


def has_api(endpoint: Endpoint, subject: Digest) -> bool:
    """Whether the registry keeps lists of referrers itself."""
    return _from_api(endpoint, subject) is not None


def announce(endpoint: Endpoint, referrer: Manifest, *, acknowledged: str | None) -> None:
    """See to it that ``referrer``, just stored, is listed under its subject.

    ``acknowledged`` is the registry's ``OCI-Subject`` header: where it names the subject, the registry did it.
    """
    subject = referrer.subject
    if subject is None:
        return
    if acknowledged == str(subject.digest) and not endpoint.profile.doubt_subject_header:
        return
    # Some registries list referrers and forget the header.
    if _from_api(endpoint, subject.digest) is not None:
        return
    entry = referrer.descriptor
    _keep(
        endpoint,
        subject.digest,
        is_done=lambda entries: any(known.digest == entry.digest for known in entries),
        change=lambda entries: [*entries, entry],
    )


def withdraw(endpoint: Endpoint, referrer: Manifest) -> None:
    """Take a deleted manifest out of its subject's fallback index, if it has one."""
    subject = referrer.subject
    if subject is None or _fallback_index(endpoint, subject.digest) is None:
        return
    try:
        _keep(
            endpoint,
            subject.digest,
            is_done=lambda entries: all(known.digest != referrer.digest for known in entries),
            change=lambda entries: [known for known in entries if known.digest != referrer.digest],
        )
    except InvalidContentError as error:
        # What is gone is ignored by whoever reads the list.
        logger.warning("%s is deleted, and stays listed: %s", referrer.digest, error)


def _keep(
    endpoint: Endpoint,
    subject: Digest,
    *,
    is_done: Callable[[list[Descriptor]], bool],
    change: Callable[[list[Descriptor]], list[Descriptor]],
) -> None:
    """Raises InvalidContentError where the tag holds something else than a list, or one that we cannot write again."""
    retries = endpoint.session.retries
    stayed = 0
    for count in range(_ROUNDS):
        index = _writable_index(endpoint, subject)
        entries = _entries(index)
        if is_done(entries):
            # Seen once may be seen by a writer who read before us and writes after: look twice after a write.
            stayed += 1
            if count == 0 or stayed == 2:
                return
        elif count and _is_shadowed(endpoint, subject):
            logger.warning(
                "%s lists no referrers, and its tag %s is the artifact itself: nothing attached is found there",
                endpoint.session.registry,
                fallback_tag(subject),
            )
            return
        else:
            stayed = 0
            annotations = index.annotations if index else None
            manifests.put(endpoint, image_index(change(entries), annotations=annotations), fallback_tag(subject))
        retries.sleep(retries.jitter() * 0.05 * (count + 1))
    raise RegistryUnavailableError(
        f"others keep changing the referrers of {endpoint.full_name}@{subject}, and the entry does not stay"
    )


def _is_shadowed(endpoint: Endpoint, subject: Digest) -> bool:
    """Whether a registry reads the fallback tag as a digest, as GitLab does (oras-go#1396)."""
    try:
        return manifests.resolve(endpoint, fallback_tag(subject)).digest == subject
    except NotFoundError:
        return False


def _from_api(endpoint: Endpoint, subject: Digest) -> list[Descriptor] | None:
    """What the API lists; None where there is none."""
    place = f"referrers/{subject}"
    what = f"referrers of {endpoint.full_name}@{subject}"
    found: list[Descriptor] = []
    # GHCR sends this request to a web page on another host: not followed, and not an API.
    answers = manifests.pages(
        endpoint, place, what=what, headers={"Accept": IMAGE_INDEX}, expect=(200, *_NO_API), follow_origins=False
    )
    for response in answers:
        if response.status != 200 or response.content_type != IMAGE_INDEX:
            return None
        found += _read_index(response.read(MAX_MANIFEST_SIZE)).manifests
        if len(found) > _MAX_REFERRERS:
            raise InvalidContentError(f"{what} are more than {_MAX_REFERRERS}")
    return found


def _writable_index(endpoint: Endpoint, subject: Digest) -> Manifest | None:
    """The index under the fallback tag, every entry of which we read, so that none is lost when it is written again.

    Raises InvalidContentError for anything else, as the specification has it ("Pushing Manifests with Subject"), but
    for the subject itself, which GitLab answers with there.
    """
    tag = fallback_tag(subject)
    try:
        found = manifests.fetch_if_present(endpoint, tag)
    except InvalidContentError as error:
        raise InvalidContentError(f"the tag {tag} of {endpoint.full_name} cannot be added to: {error}") from error
    if found is None or found.digest == subject:
        return None
    if found.media_type != IMAGE_INDEX:
        raise InvalidContentError(
            f"the tag {tag} of {endpoint.full_name} is an artifact, where the list of those"
            " that refer to another is wanted"
        )
    return found


def _fallback_index(endpoint: Endpoint, subject: Digest) -> Manifest | None:
    """What can be read of the index under the fallback tag; None when there is none."""
    try:
        descriptor = manifests.resolve(endpoint, fallback_tag(subject))
        if descriptor.media_type != IMAGE_INDEX or descriptor.digest == subject:
            return None
        return _read_index(manifests.fetch_raw(endpoint, descriptor))
    except NotFoundError:
        return None
    except InvalidContentError as error:
        logger.warning("the referrers tag of %s@%s is not an index: %s", endpoint.full_name, subject, error)
        return None


def _read_index(raw: bytes) -> Manifest:
    """An index without its entries under digests of other algorithms than ours, which others may list beside ours."""
    document = strict_json.parse_object(raw, what="a list of referrers")
    entries = document.get("manifests")
    if isinstance(entries, list):
        document["manifests"] = [entry for entry in entries if not _is_foreign(entry)]
    return Manifest.parse(strict_json.canonical(document), media_type=IMAGE_INDEX)


def _is_foreign(entry: object) -> bool:
    digest = entry.get("digest") if isinstance(entry, dict) else None
    return isinstance(digest, str) and not digest.startswith("sha256:") and _DIGEST.fullmatch(digest) is not None


def _entries(index: Manifest | None) -> list[Descriptor]:
    return list(index.manifests) if index else []
