"""What a registry answers, and what is known of it: for people who wonder why a transfer does not work."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata

from modelpack.errors import ModelpackError
from modelpack.oci.manifest import Descriptor
from modelpack.oci.target import RangesIgnoredError
from modelpack.registry.challenges import parse_challenges
from modelpack.registry.client import Registry, Repository
from modelpack.registry.profiles import Profile
from modelpack.registry.referrers import has_api


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """``None`` is what could not be found out. ``login`` is the error of a request with credentials, None if it passed.

    ``schemes`` are the ways to log in that the registry offers, with the hosts of token servers.
    """

    url: str
    status: int | None
    api_version: str | None
    schemes: tuple[str, ...]
    problem: str | None
    login: str | None
    referrers_api: bool | None
    ranges: bool | None
    profile: Profile


def diagnose(registry: Registry, repository: Repository | None = None, selector: str | None = None) -> Diagnosis:
    """Ask a registry about itself. ``repository`` and ``selector`` name an artifact to try things with."""
    status, headers, schemes, problem = _greet(registry)
    login = problem or _attempt(registry.ping)
    referrers, ranges = None, None
    if repository is not None and selector is not None and login is None:
        try:
            descriptor = repository.resolve(selector)
            referrers = has_api(repository.endpoint, descriptor.digest)
            ranges = _sends_parts(repository, descriptor)
        except ModelpackError as error:
            problem = str(error)
    return Diagnosis(
        url=str(registry.session.origin),
        status=status,
        api_version=headers.get("Docker-Distribution-API-Version"),
        schemes=schemes,
        problem=problem,
        login=login,
        referrers_api=referrers,
        ranges=ranges,
        profile=registry.session.profile,
    )


def impostor() -> str | None:
    """The version of ``urllib3-future``, which takes the place of urllib3 in an environment; None where it is not."""
    try:
        return metadata.version("urllib3-future")
    except metadata.PackageNotFoundError:
        return None


def _greet(registry: Registry) -> tuple[int | None, Mapping[str, str], tuple[str, ...], str | None]:
    """What anybody is told."""
    try:
        with registry.session.greet() as response:
            challenges = parse_challenges(response.header_lines("WWW-Authenticate"))
            schemes = tuple(
                f"{one.scheme} ({one.parameters['realm']})" if one.scheme == "bearer" else one.scheme
                for one in challenges
                if one.scheme != "bearer" or "realm" in one.parameters
            )
            return response.status, response.headers, schemes, None
    except ModelpackError as error:
        return None, {}, (), str(error)


def _attempt(action: Callable[[], None]) -> str | None:
    try:
        action()
    except ModelpackError as error:
        return str(error)
    return None


def _sends_parts(repository: Repository, descriptor: Descriptor) -> bool | None:
    """Whether one byte of a blob can be had alone; None for an artifact without one that has two."""
    manifest = repository.fetch_manifest(descriptor)
    blob = max(manifest.blobs, key=lambda one: one.size, default=None)
    if blob is None or blob.size < 2:
        return None
    try:
        with repository.open_range(blob, 0, 1) as chunks:
            return b"".join(chunks) != b""
    except RangesIgnoredError:
        return False
