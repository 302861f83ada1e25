"""What ``login`` and ``logout`` change: one entry of a credential file, or of the helper that the file names."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelpack.atomic_file import write_atomically
from modelpack.errors import AccessDeniedError, InvalidInputError
from modelpack.registry.credentials import (
    Credential,
    credential_key,
    helper_for,
    login_file,
    matching_keys,
    read_config,
    run_helper,
)


def store_credential(
    registry: str,
    credential: Credential,
    *,
    environ: Mapping[str, str],
    authfile: Path | None = None,
    home: Path | None = None,
) -> str:
    """Keep a credential where ``Credentials`` finds it; returns the place, for a person.

    The file is replaced whole, mode 0600, and keeps whatever else it holds. Raises InvalidInputError,
    AccessDeniedError when a helper fails.
    """
    path = login_file(environ, authfile=authfile, home=home)
    config = read_config(path)
    helper, _ = helper_for(config, registry)
    if helper:
        entry = {
            "ServerURL": credential_key(registry),
            "Username": "<token>" if credential.identity_token else credential.username,
            "Secret": credential.identity_token or credential.password,
        }
        _run(helper, "store", json.dumps(entry), environ)
        return f"docker-credential-{helper}"
    user = f"{credential.username}:{credential.password}"
    auth = {"auth": base64.b64encode(user.encode()).decode()}
    if credential.identity_token:
        auth["identitytoken"] = credential.identity_token
    config.setdefault("auths", {})
    config["auths"] = {**(config["auths"] or {}), credential_key(registry): auth}
    _write(path, config)
    return str(path)


def erase_credential(
    registry: str, *, environ: Mapping[str, str], authfile: Path | None = None, home: Path | None = None
) -> bool:
    """Forget a credential; returns whether there was one. Raises InvalidInputError, AccessDeniedError."""
    path = login_file(environ, authfile=authfile, home=home)
    config = read_config(path)
    helper, _ = helper_for(config, registry)
    known = False
    if helper:
        known = bool(_run(helper, "get", credential_key(registry), environ))
        if known:
            _run(helper, "erase", credential_key(registry), environ)
    auths = config.get("auths") or {}
    keys = matching_keys(auths, registry)
    if keys:
        config["auths"] = {key: entry for key, entry in auths.items() if key not in keys}
        _write(path, config)
    return known or bool(keys)


def _run(helper: str, action: str, text: str, environ: Mapping[str, str]) -> str:
    try:
        return run_helper(helper, action, text, environ)
    except FileNotFoundError as error:
        raise AccessDeniedError(f"docker-credential-{helper} is not installed") from error


def _write(path: Path, config: dict[str, Any]) -> None:
    # Through a symbolic link, as people who keep their settings in a repository have them.
    path = path.resolve()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(path, json.dumps(config, indent="\t").encode() + b"\n", mode=0o600)
    except OSError as error:
        raise InvalidInputError(f"credential file {path} cannot be written: {error.strerror}") from error
