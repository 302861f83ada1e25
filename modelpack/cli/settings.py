"""Where settings come from: flags, then MODELPACK_* in the environment, then config.toml, where a typo is an error."""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from modelpack.errors import InvalidInputError, NotFoundError
from modelpack.small_file import read_small_file

_MAX_SIZE = 1 << 20
_TEXT_KEYS = ("store", "policy", "work_dir", "authfile", "ca_file", "progress")
# Lists are only in the file: registries without TLS, and token servers that may get credentials of other sites.
_HOST_LISTS = ("plain_http", "trusted_realms")


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that a person can set once for all commands. Paths are absolute."""

    store: Path
    config_directory: Path
    policy: Path | None = None
    work_dir: Path | None = None
    authfile: Path | None = None
    ca_file: Path | None = None
    progress: str = "auto"
    plain_http: frozenset[str] = frozenset()
    trusted_realms: frozenset[str] = frozenset()
    environment: Mapping[str, str] = field(default_factory=dict)


def load_settings(environment: Mapping[str, str] | None = None, **flags: str | None) -> Settings:
    """Settings from ``flags`` over the environment over config.toml. Raises InvalidInputError."""
    environment = os.environ if environment is None else environment
    config_directory = _config_directory(environment)
    path = Path(environment.get("MODELPACK_CONFIG") or config_directory / "config.toml").expanduser()
    stored = _read(path)
    values: dict[str, str] = {}
    for key in _TEXT_KEYS:
        value = flags.get(key) or environment.get(f"MODELPACK_{key.upper()}") or stored.get(key)
        if value is None:
            continue
        if not isinstance(value, str):
            raise InvalidInputError(f"{path}: {key} is not a string")
        values[key] = value

    def hosts_of(key: str) -> frozenset[str]:
        hosts = stored.get(key, [])
        if not isinstance(hosts, list) or not all(isinstance(host, str) for host in hosts):
            raise InvalidInputError(f"{path}: {key} is not a list of hosts")
        return frozenset(hosts)

    def path_of(key: str) -> Path | None:
        return Path(values[key]).expanduser().absolute() if key in values else None

    return Settings(
        store=path_of("store") or _data_directory(environment),
        config_directory=config_directory,
        policy=path_of("policy"),
        work_dir=path_of("work_dir"),
        authfile=path_of("authfile"),
        ca_file=path_of("ca_file"),
        progress=values.get("progress", "auto"),
        plain_http=hosts_of("plain_http"),
        trusted_realms=hosts_of("trusted_realms"),
        environment=environment,
    )


def _read(path: Path) -> dict[str, object]:
    try:
        text = read_small_file(path, limit=_MAX_SIZE).decode("utf-8")
    except NotFoundError:
        return {}
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"cannot read {path}: {error}") from error
    try:
        document: dict[str, object] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInputError(f"{path} is not TOML: {error}") from error
    known = (*_TEXT_KEYS, *_HOST_LISTS)
    unknown = sorted(set(document) - set(known))
    if unknown:
        raise InvalidInputError(f"{path}: unknown setting {unknown[0]!r}; there are {', '.join(known)}")
    return document


def _data_directory(environment: Mapping[str, str]) -> Path:
    if environment.get("XDG_DATA_HOME"):
        return Path(environment["XDG_DATA_HOME"]) / "modelpack"
    from platformdirs import user_data_path

    return user_data_path("modelpack", appauthor=False)


def _config_directory(environment: Mapping[str, str]) -> Path:
    if environment.get("XDG_CONFIG_HOME"):
        return Path(environment["XDG_CONFIG_HOME"]) / "modelpack"
    # Like git and docker on every Unix, macOS included: a file that people edit and share.
    return Path(environment.get("HOME") or Path.home()) / ".config" / "modelpack"
