"""Where user names and secrets for registries come from: Docker's and Podman's files, and credential helpers.

The file format is that of ``docker login`` (docker/cli, config.json) and containers-auth.json(5). Changing these
files is ``logins.py``.
"""

import base64
import binascii
import json
import logging
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from modelpack.errors import AccessDeniedError, InvalidInputError
from modelpack.oci import strict_json
from modelpack.registry.address import DOCKER_HUB, DOCKER_HUB_NAMES
from modelpack.registry.refusal import printable

logger = logging.getLogger(__name__)

DOCKER_HUB_KEY = "https://index.docker.io/v1/"
_HELPER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)
_HELPER_TIMEOUT = 10.0
_MAX_FILE = 4 << 20
# How docker-credential-* say that they know nothing (docker-credential-helpers, credentials/error.go).
_NOT_FOUND = "credentials not found"
_TOKEN_USER = "<token>"  # noqa: S105 - the user name by which a helper marks an identity token


@dataclass(frozen=True, slots=True)
class Credential:
    """A user name with a password, or with an OAuth2 refresh token (``identity_token``)."""

    username: str
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)


class CredentialSource(Protocol):
    def lookup(self, registry: str, repository: str = "") -> Credential | None:
        """The credential for a repository, None when there is none: then requests are anonymous."""


@dataclass(frozen=True, slots=True)
class FixedCredentials:
    """One credential for whatever registry it is handed to: what ``login`` was given; None for anonymous."""

    credential: Credential | None

    def lookup(self, registry: str, repository: str = "") -> Credential | None:  # noqa: ARG002
        return self.credential


ANONYMOUS = FixedCredentials(None)


@dataclass(frozen=True, slots=True)
class FoundCredential:
    """A credential and the rule that gave it, in words: a file and the entry or the helper that it names."""

    credential: Credential
    rule: str


@dataclass(frozen=True, slots=True)
class Credentials:
    """The credential files of a machine, in the order in which they are asked; the first that knows answers."""

    files: tuple[Path, ...]
    environ: Mapping[str, str] = field(repr=False)

    @classmethod
    def from_environment(
        cls, environ: Mapping[str, str], *, authfile: Path | None = None, home: Path | None = None
    ) -> "Credentials":
        """``authfile``, ``REGISTRY_AUTH_FILE``, Docker's config.json, then Podman's auth.json.

        Raises InvalidInputError when ``authfile`` does not exist.
        """
        if authfile and not authfile.is_file():
            raise InvalidInputError(f"there is no credential file {authfile}")
        return cls(tuple(_places(environ, authfile, home)), environ)

    def lookup(self, registry: str, repository: str = "") -> Credential | None:
        """Raises InvalidInputError for a malformed file, AccessDeniedError when a credential helper fails."""
        found = self.find(registry, repository)
        return found.credential if found else None

    def find(self, registry: str, repository: str = "") -> FoundCredential | None:
        """As ``lookup``, with where it was found."""
        for path in self.files:
            if path.is_file() and (found := _look_into(path, registry, repository, self.environ)):
                return found
        return None


def login_file(environ: Mapping[str, str], *, authfile: Path | None = None, home: Path | None = None) -> Path:
    """The file that ``login`` writes to: the first that would be read."""
    return next(_places(environ, authfile, home))


def _places(environ: Mapping[str, str], authfile: Path | None, home: Path | None) -> Iterator[Path]:
    home = home or Path(environ.get("HOME") or Path.home())
    if authfile:
        yield authfile
    if environ.get("REGISTRY_AUTH_FILE"):
        yield Path(environ["REGISTRY_AUTH_FILE"])
    yield Path(environ.get("DOCKER_CONFIG") or home / ".docker") / "config.json"
    if environ.get("XDG_RUNTIME_DIR"):
        yield Path(environ["XDG_RUNTIME_DIR"]) / "containers/auth.json"
    yield Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "containers/auth.json"


def read_config(path: Path) -> dict[str, Any]:
    """A credential file as JSON; empty when it is missing or empty. Raises InvalidInputError."""
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_FILE + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InvalidInputError(f"credential file {path} cannot be read: {error.strerror}") from error
    if len(raw) > _MAX_FILE:
        raise InvalidInputError(f"credential file {path} is larger than {_MAX_FILE} bytes")
    if not raw.strip():
        return {}
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        # The parser's own message would quote from the file.
        raise InvalidInputError(f"credential file {path} is not JSON") from error
    if not isinstance(document, dict):
        raise InvalidInputError(f"credential file {path} is not a JSON object")
    for key in ("auths", "credHelpers"):
        if not isinstance(document.get(key), dict | None):
            raise InvalidInputError(f"credential file {path}: {key} is not an object")
    return document


def _look_into(path: Path, registry: str, repository: str, environ: Mapping[str, str]) -> FoundCredential | None:
    config = read_config(path)
    helper, is_for_all = helper_for(config, registry)
    if helper:
        try:
            credential = _ask_helper(helper, registry, environ)
        except FileNotFoundError as error:
            # A config.json shared with Docker Desktop names a store that is missing inside WSL or a container.
            if not is_for_all:
                raise AccessDeniedError(f"docker-credential-{helper}, named in {path}, is not installed") from error
            logger.warning("docker-credential-%s, named in %s, is not installed", helper, path)
            credential = None
        if credential:
            kind = "credsStore" if is_for_all else "credHelpers"
            return FoundCredential(credential, f"docker-credential-{helper}, {kind} of {path}")
    auths = config.get("auths") or {}
    # containers-auth.json(5): the most specific namespace wins.
    names = [registry, *(f"{registry}/{part}" for part in _prefixes(repository))]
    for name in reversed(names):
        for key in matching_keys(auths, name):
            credential = _parse_entry(auths[key], path, key)
            if credential:
                return FoundCredential(credential, f"the entry {printable(key)} of {path}")
    return None


def helper_for(config: Mapping[str, Any], registry: str) -> tuple[str | None, bool]:
    """The credential helper for a registry, and whether it is the one for all. Raises InvalidInputError."""
    helpers = config.get("credHelpers") or {}
    specific = next((helpers[key] for key in matching_keys(helpers, registry)), None)
    name = specific or config.get("credsStore")
    if not name:
        return None, False
    if not isinstance(name, str) or not _HELPER_NAME.fullmatch(name):
        raise InvalidInputError(f"{printable(str(name))!r} is not the name of a credential helper")
    return name, specific is None


def matching_keys(entries: Mapping[str, Any], name: str) -> list[str]:
    """The keys that mean ``name``: as it stands, as a URL, and Docker Hub's by any of its names."""
    wanted = _plain(name)
    exact = [key for key in (name, credential_key(name)) if key in entries]
    return list(dict.fromkeys((*exact, *(key for key in entries if _plain(key) == wanted))))


def credential_key(registry: str) -> str:
    """How ``docker login`` spells a registry."""
    return DOCKER_HUB_KEY if registry in DOCKER_HUB_NAMES else registry


def _plain(key: str) -> str:
    # Old Docker versions wrote https://registry/v1/.
    name = key.removeprefix("https://").removeprefix("http://").removesuffix("/")
    name = name.removesuffix("/v1").removesuffix("/v2")
    host, slash, rest = name.partition("/")
    return (DOCKER_HUB if host in DOCKER_HUB_NAMES else host) + slash + rest


def _prefixes(repository: str) -> list[str]:
    parts = repository.split("/") if repository else []
    return ["/".join(parts[: count + 1]) for count in range(len(parts))]


def _parse_entry(entry: object, path: Path, key: str) -> Credential | None:
    if not isinstance(entry, dict):
        raise InvalidInputError(f"credential file {path}: the entry {printable(key)} is not an object")
    username, password = entry.get("username") or "", entry.get("password") or ""
    auth, token = entry.get("auth") or "", entry.get("identitytoken") or ""
    if not all(isinstance(text, str) for text in (username, password, auth, token)):
        raise InvalidInputError(f"credential file {path}: the entry {printable(key)} is malformed")
    if auth:
        try:
            username, colon, password = base64.b64decode(auth, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError) as error:
            raise InvalidInputError(f"credential file {path}: auth of {printable(key)} is not base64") from error
        if not colon:
            raise InvalidInputError(f"credential file {path}: auth of {printable(key)} is not user:password")
    # Docker pads what it decodes with NUL.
    password = password.rstrip("\0")
    if token:
        return Credential(username, identity_token=token)
    return Credential(username, password) if username and password else None


def run_helper(helper: str, action: str, text: str, environ: Mapping[str, str]) -> str:
    """Run ``docker-credential-<helper> get|store|erase``; returns what it printed, empty if it knows nothing.

    Raises FileNotFoundError when it is not installed, AccessDeniedError when it fails or takes longer than 10 s.
    """
    program = shutil.which(f"docker-credential-{helper}", path=environ.get("PATH"))
    if program is None:
        raise FileNotFoundError(f"docker-credential-{helper}")
    try:
        done = subprocess.run(
            [program, action],
            input=text.encode(),
            capture_output=True,
            timeout=_HELPER_TIMEOUT,
            env=dict(environ),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise AccessDeniedError(
            f"docker-credential-{helper} did not answer within {_HELPER_TIMEOUT:.0f} seconds"
        ) from error
    except OSError as error:
        raise AccessDeniedError(f"docker-credential-{helper} cannot be run: {error.strerror}") from error
    if done.returncode != 0:
        said = (done.stdout or done.stderr).decode(errors="replace")
        if _NOT_FOUND in said:
            return ""
        # What a failing helper prints is its complaint; what a working one prints is the secret.
        raise AccessDeniedError(f"docker-credential-{helper} failed: {printable(said) or done.returncode}")
    return done.stdout.decode(errors="replace")


def _ask_helper(helper: str, registry: str, environ: Mapping[str, str]) -> Credential | None:
    answer = run_helper(helper, "get", credential_key(registry), environ)
    if not answer:
        return None
    document = strict_json.parse_object(answer.encode(), what=f"the answer of docker-credential-{helper}")
    username, secret = document.get("Username"), document.get("Secret")
    if not isinstance(username, str) or not isinstance(secret, str):
        raise AccessDeniedError(f"docker-credential-{helper} answers without a Username and a Secret")
    if username == _TOKEN_USER:
        return Credential(username, identity_token=secret)
    return Credential(username, secret) if username and secret else None
