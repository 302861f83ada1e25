"""From references, flags and settings to the concrete places and policies that the library works with."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from modelpack.cli.app import App, read_file
from modelpack.cli.settings import Settings
from modelpack.errors import InvalidInputError
from modelpack.oci.manifest import Descriptor
from modelpack.oci.reference import Reference

if TYPE_CHECKING:
    from modelpack.policy import Policy
    from modelpack.receipt import Receipt
    from modelpack.registry.client import Registry, Repository
    from modelpack.registry.credentials import CredentialSource

SYSTEM_POLICY = Path("/etc/modelpack/policy.toml")
MAX_KEY_SIZE = 64 << 10


def connect_registry(
    app: App, registry: Reference | str, *, plain_http: bool = False, credentials: "CredentialSource | None" = None
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
        network=NetworkSettings.from_environment(settings.environment, ca_file=settings.ca_file),
    )


def open_remote(app: App, reference: Reference, *, plain_http: bool = False, push: bool = False) -> "Repository":
    return connect_registry(app, reference, plain_http=plain_http).repository(reference.repository, push=push)


def user_policy(settings: Settings) -> Path:
    """Where ``trust add`` writes."""
    return settings.policy or settings.config_directory / "policy.toml"


def policy_path(settings: Settings) -> Path | None:
    """The one policy file that counts: the one that is named, else the user's, else the system's; none is merged.

    A file in the working directory is never one of them: whoever gives us a folder must not give us its policy.
    """
    if settings.policy:
        return settings.policy
    return next((path for path in (user_policy(settings), SYSTEM_POLICY) if path.exists()), None)


def load_policy(app: App, keys: tuple[Path, ...] = (), policy: Path | None = None) -> "Policy | None":
    """The policy, or exactly the ``--key`` ones in its place; None where there is neither.

    Raises MalformedPolicyError, NotFoundError, InvalidKeyError.
    """
    from modelpack.policy import Policy
    from modelpack.signing.keys import PublicKey

    if keys:
        return Policy.of_keys(PublicKey.load(read_file(path, limit=MAX_KEY_SIZE)) for path in keys)
    path = policy or policy_path(app.settings)
    return Policy.load(path) if path else None


def require_trusted(app: App, reference: Reference, descriptor: Descriptor) -> "Receipt":
    """What everything that loads a model asks first. Raises UntrustedError."""
    from modelpack import receipt

    held = receipt.require_trusted(app.store, reference, descriptor, load_policy(app), now=datetime.now(UTC))
    if held.verdict and not held.verdict.is_verified:
        app.progress.warn(f"{reference} was not verified ({held.verdict.rule}): nobody knows who made it")
    return held
