import base64
import json
import stat
from pathlib import Path
from typing import Any

import pytest

from modelpack.errors import AccessDeniedError, InvalidInputError
from modelpack.registry.credentials import Credential, Credentials
from modelpack.registry.logins import erase_credential, store_credential


def auth(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def write(path: Path, document: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


def add_helper(folder: Path, name: str, script: str) -> None:
    """A credential helper on the PATH: a shell script that keeps what it is told beside itself."""
    folder.mkdir(exist_ok=True)
    program = folder / f"docker-credential-{name}"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path), "PATH": f"{tmp_path}/bin:/usr/bin:/bin"}


def lookup(environ: dict[str, str], registry: str, repository: str = "", **settings: Any) -> Credential | None:
    return Credentials.from_environment(environ, **settings).lookup(registry, repository)


def test_files_are_asked_in_order_and_the_first_that_knows_answers(tmp_path: Path, environ: dict[str, str]) -> None:
    places = {
        "authfile": tmp_path / "auth.json",
        "REGISTRY_AUTH_FILE": tmp_path / "env.json",
        "docker": tmp_path / ".docker/config.json",
        "runtime": tmp_path / "run/containers/auth.json",
        "config": tmp_path / ".config/containers/auth.json",
    }
    for name, path in places.items():
        write(path, {"auths": {"r.example": auth(name, "pw")}})
    environ |= {"REGISTRY_AUTH_FILE": str(places["REGISTRY_AUTH_FILE"]), "XDG_RUNTIME_DIR": str(tmp_path / "run")}

    asked = [lookup(environ, "r.example", authfile=places["authfile"])]
    for path in list(places.values())[:-1]:
        path.unlink()
        asked.append(lookup(environ, "r.example"))

    assert [one and one.username for one in asked] == list(places)


def test_docker_config_moves_the_folder(tmp_path: Path, environ: dict[str, str]) -> None:
    write(tmp_path / "elsewhere/config.json", {"auths": {"r.example": auth("u", "p")}})

    assert lookup({**environ, "DOCKER_CONFIG": str(tmp_path / "elsewhere")}, "r.example") == Credential("u", "p")


def test_docker_hub_is_found_under_its_key(tmp_path: Path, environ: dict[str, str]) -> None:
    write(tmp_path / ".docker/config.json", {"auths": {"https://index.docker.io/v1/": auth("hub", "pw")}})

    assert lookup(environ, "docker.io") == Credential("hub", "pw")
    assert lookup(environ, "quay.io") is None


def test_old_url_keys_are_understood(tmp_path: Path, environ: dict[str, str]) -> None:
    write(tmp_path / ".docker/config.json", {"auths": {"https://r.example/v1/": auth("u", "p")}})

    assert lookup(environ, "r.example") == Credential("u", "p")


def test_the_most_specific_namespace_wins(tmp_path: Path, environ: dict[str, str]) -> None:
    auths = {"r.example": auth("all", "p"), "r.example/team": auth("team", "p"), "r.example/team/x": auth("x", "p")}
    write(tmp_path / ".config/containers/auth.json", {"auths": auths})

    names = [lookup(environ, "r.example", name) for name in ("team/x", "team/y", "teamster", "")]

    assert [one and one.username for one in names] == ["x", "team", "all", "all"]


def test_an_identity_token_is_a_refresh_token(tmp_path: Path, environ: dict[str, str]) -> None:
    entry = {**auth("00000000-0000-0000-0000-000000000000", ""), "identitytoken": "refresh"}
    write(tmp_path / ".docker/config.json", {"auths": {"r.azurecr.io": entry}})

    assert lookup(environ, "r.azurecr.io") == Credential(
        "00000000-0000-0000-0000-000000000000", identity_token="refresh"
    )


def test_a_helper_answers_before_the_file(tmp_path: Path, environ: dict[str, str]) -> None:
    add_helper(
        tmp_path / "bin",
        "fake",
        'read server; test "$1 $server" = "get r.example" || exit 9; echo \'{"Username":"u","Secret":"s"}\'',
    )
    write(
        tmp_path / ".docker/config.json",
        {"credHelpers": {"r.example": "fake"}, "auths": {"r.example": auth("file", "p")}},
    )

    assert lookup(environ, "r.example") == Credential("u", "s")


def test_a_token_from_a_helper_is_an_identity_token(tmp_path: Path, environ: dict[str, str]) -> None:
    add_helper(tmp_path / "bin", "fake", 'cat >/dev/null; echo \'{"Username":"<token>","Secret":"s"}\'')
    write(tmp_path / ".docker/config.json", {"credsStore": "fake"})

    assert lookup(environ, "r.example") == Credential("<token>", identity_token="s")


def test_a_helper_that_knows_nothing_lets_the_file_answer(tmp_path: Path, environ: dict[str, str]) -> None:
    add_helper(tmp_path / "bin", "fake", "echo credentials not found in native keychain; exit 1")
    write(tmp_path / ".docker/config.json", {"credsStore": "fake", "auths": {"r.example": auth("file", "p")}})

    assert lookup(environ, "r.example") == Credential("file", "p")


def test_a_helper_that_fails_is_named(tmp_path: Path, environ: dict[str, str]) -> None:
    add_helper(tmp_path / "bin", "fake", "echo 'the keychain is \033[31mlocked'; exit 1")
    write(tmp_path / ".docker/config.json", {"credsStore": "fake"})

    with pytest.raises(AccessDeniedError, match=r"docker-credential-fake failed: the keychain is \[31mlocked"):
        lookup(environ, "r.example")


def test_a_missing_helper_matters_only_to_the_registry_it_is_for(tmp_path: Path, environ: dict[str, str]) -> None:
    config = {"credsStore": "gone", "credHelpers": {"r.example": "gone-too"}}
    write(tmp_path / ".docker/config.json", config)

    assert lookup(environ, "other.example") is None
    with pytest.raises(AccessDeniedError, match=r"docker-credential-gone-too.*not installed"):
        lookup(environ, "r.example")


def test_the_name_of_a_helper_is_no_path(tmp_path: Path, environ: dict[str, str]) -> None:
    write(tmp_path / ".docker/config.json", {"credsStore": "x/../../evil"})

    with pytest.raises(InvalidInputError, match="credential helper"):
        lookup(environ, "r.example")


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"auths": []}',
        '{"auths": {"r.example": 7}}',
        '{"auths": {"r.example": {"auth": "canary!"}}}',
        '{"auths": {"r.example": {"auth": "Y2FuYXJ5"}}}',
        '{"auths": {"r.example": {"password": 1}}}',
    ],
)
def test_a_malformed_file_is_named_and_not_quoted(tmp_path: Path, environ: dict[str, str], content: str) -> None:
    path = tmp_path / ".docker/config.json"
    path.parent.mkdir()
    path.write_text(content)

    with pytest.raises(InvalidInputError, match=r"config\.json") as caught:
        lookup(environ, "r.example")
    assert "canary" not in str(caught.value)


def test_an_authfile_that_is_not_there_is_an_error(tmp_path: Path, environ: dict[str, str]) -> None:
    with pytest.raises(InvalidInputError, match="no credential file"):
        lookup(environ, "r.example", authfile=tmp_path / "typo.json")


def test_login_keeps_what_else_is_in_the_file_and_closes_it_to_others(tmp_path: Path, environ: dict[str, str]) -> None:
    path = write(tmp_path / ".docker/config.json", {"currentContext": "x", "auths": {"other.example": auth("a", "b")}})

    place = store_credential("r.example", Credential("me", "pw:with:colons"), environ=environ)

    assert place == str(path)
    assert lookup(environ, "r.example") == Credential("me", "pw:with:colons")
    assert lookup(environ, "other.example") == Credential("a", "b")
    assert json.loads(path.read_text())["currentContext"] == "x"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["config.json"]


def test_login_goes_through_a_symbolic_link(tmp_path: Path, environ: dict[str, str]) -> None:
    real = write(tmp_path / "dotfiles/docker.json", {})
    link = tmp_path / ".docker/config.json"
    link.parent.mkdir()
    link.symlink_to(real)

    store_credential("r.example", Credential("me", "pw"), environ=environ)

    assert link.is_symlink()
    assert "r.example" in real.read_text()


def test_logout_removes_every_spelling(tmp_path: Path, environ: dict[str, str]) -> None:
    write(
        tmp_path / ".docker/config.json",
        {"auths": {"https://index.docker.io/v1/": auth("a", "b"), "docker.io": auth("a", "b"), "x": auth("a", "b")}},
    )

    assert erase_credential("docker.io", environ=environ) is True
    assert erase_credential("docker.io", environ=environ) is False
    assert lookup(environ, "docker.io") is None
    assert lookup(environ, "x") is not None


def test_login_and_logout_use_the_helper_that_is_configured(tmp_path: Path, environ: dict[str, str]) -> None:
    kept = tmp_path / "kept.json"
    add_helper(
        tmp_path / "bin",
        "fake",
        f"case $1 in store) cat >{kept};; erase) rm {kept};;"
        f" get) cat {kept} 2>/dev/null || {{ echo credentials not found; exit 1; }};; esac",
    )
    config = write(tmp_path / ".docker/config.json", {"credsStore": "fake"})

    assert store_credential("r.example", Credential("me", "canary"), environ=environ) == "docker-credential-fake"
    assert json.loads(kept.read_text()) == {"ServerURL": "r.example", "Username": "me", "Secret": "canary"}
    assert lookup(environ, "r.example") == Credential("me", "canary")
    assert "canary" not in config.read_text()
    assert erase_credential("r.example", environ=environ) is True
    assert not kept.exists()


def test_a_credential_shows_no_secret() -> None:
    assert "canary" not in repr(Credential("me", "canary", "canary"))
