"""From references, flags and settings to the concrete places and policies that the library works with."""

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from modelpack.cli.app import App
from modelpack.cli.settings import Settings
from modelpack.errors import InvalidInputError, PolicyRefusedError
from modelpack.oci.manifest import Descriptor
from modelpack.oci.reference import Reference
from modelpack.small_file import read_small_file

if TYPE_CHECKING:
    from modelpack.policy import Policy
    from modelpack.receipt import Receipt
    from modelpack.registry.client import Registry, Repository
    from modelpack.registry.credentials import CredentialSource

SYSTEM_POLICY = Path("/etc/modelpack/policy.toml")
MAX_KEY_SIZE = 64 << 10


def connect_registry(
    app: App,
    registry: Reference | str,
    *,
    plain_http: bool = False,
    credentials: "CredentialSource | None" = None,
    rate_limit: int | None = None,
) -> "Registry":
    """A registry with this person's certificates and proxies, and credentials unless others are given."""
    from modelpack.registry.client import connect
    from modelpack.registry.credentials import Credentials
    from modelpack.registry.network import NetworkSettings

    settings = app.settings
    name = registry.registry if isinstance(registry, Reference) else registry
    if not name:
        raise InvalidInputError(f"{registry} names no registry: write registry.example.com/{registry}")
    return connect(
        name,
        credentials=credentials or Credentials.from_environment(settings.environment, authfile=settings.authfile),
        plain_http=plain_http or name in settings.plain_http,
        network=NetworkSettings.from_environment(
            settings.environment,
            ca_file=settings.ca_file,
            trusted_realms=settings.trusted_realms,
            rate_limit=rate_limit,
        ),
    )


def open_remote(
    app: App, reference: Reference, *, plain_http: bool = False, push: bool = False, rate_limit: int | None = None
) -> "Repository":
    """The repository of a reference. With ``push``, blobs that the registry has elsewhere are mounted from there, and
    an upload that was killed goes on.
    """
    from modelpack.transfer import mount_candidates

    registry = connect_registry(app, reference, plain_http=plain_http, rate_limit=rate_limit)
    if not push:
        return registry.repository(reference.repository)
    return registry.repository(
        reference.repository,
        push=True,
        mount_from=mount_candidates(app.store, reference),
        remember=app.store.push_note,
    )


def user_policy(settings: Settings) -> Path:
    return settings.policy or settings.config_directory / "policy.toml"


def editable_policy(settings: Settings) -> Path:
    """Where ``trust add`` and its like write. Raises PolicyRefusedError where what they write would not count."""
    from modelpack.policy import locked_policy

    path = user_policy(settings)
    with _pointing_to_the_administrator():
        locked_policy(SYSTEM_POLICY, overridden_by=() if path == SYSTEM_POLICY else (str(path),))
    return path


@contextlib.contextmanager
def _pointing_to_the_administrator() -> Iterator[None]:
    """Around what only a locked policy refuses."""
    try:
        yield
    except PolicyRefusedError as error:
        error.add_note("ask whoever looks after this machine; modelpack policy explain REF shows what its policy wants")
        raise


def policy_path(settings: Settings) -> Path | None:
    """The one policy file that counts: a locked system's, else the named one, the user's, the system's; none is merged.

    A file in the working directory is never one of them: whoever gives us a folder must not give us its policy.
    """
    from modelpack.policy import locked_policy

    if locked_policy(SYSTEM_POLICY):
        return SYSTEM_POLICY
    if settings.policy:
        return settings.policy
    return next((path for path in (user_policy(settings), SYSTEM_POLICY) if path.exists()), None)


def load_policy(
    app: App, keys: tuple[Path, ...] = (), policy: Path | None = None, *, skip: bool = False
) -> "Policy | None":
    """The policy, or exactly the ``--key`` ones in its place; None where there is neither.

    ``skip``: somebody wants no verification at all. Raises PolicyRefusedError where the system's policy is locked and
    any of these would be in its place, MalformedPolicyError, NotFoundError, InvalidKeyError.
    """
    from modelpack.policy import choose_policy
    from modelpack.signing.keys import PublicKey

    settings = app.settings
    named = policy or settings.policy
    is_in_environment = bool(settings.environment.get("MODELPACK_POLICY"))
    said = {
        "--key": bool(keys),
        "--policy": policy is not None,
        "MODELPACK_POLICY": policy is None and is_in_environment,
        "policy in config.toml": policy is None and not is_in_environment and named is not None,
        "--insecure-skip-verify": skip,
    }
    if named == SYSTEM_POLICY:
        said = {"--key": bool(keys), "--insecure-skip-verify": skip}
    with _pointing_to_the_administrator():
        return choose_policy(
            SYSTEM_POLICY,
            settings.config_directory / "policy.toml",
            named=named,
            keys=[PublicKey.load(read_small_file(path, limit=MAX_KEY_SIZE, pipe=True)) for path in keys],
            overridden_by=[what for what, is_said in said.items() if is_said],
        )


def require_trusted(app: App, reference: Reference, descriptor: Descriptor) -> "Receipt":
    """What everything that loads a model asks first. Raises UntrustedError."""
    from modelpack import receipt, rollback
    from modelpack.cli.refusal import refusing_use
    from modelpack.policy import Policy

    rules = load_policy(app)
    with refusing_use(reference, rules or Policy.empty()):
        held = receipt.require_trusted(app.store, reference, descriptor, rules, now=datetime.now(UTC))
        if held.verdict and not held.is_locked and not held.is_built:
            # The tag may have been moved here, too: whoever may push to a store that is served can do it.
            rollback.require_no_rollback(app.store, reference, held.verdict)
    if held.verdict and not held.verdict.is_verified:
        app.progress.warn(f"{reference} was not verified ({held.verdict.rule}): nobody knows who made it")
    return held
