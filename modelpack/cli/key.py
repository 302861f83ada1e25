"""modelpack key, and where commands get a private key from."""

import contextlib
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelpack.cli.app import App, command
from modelpack.cli.places import MAX_KEY_SIZE
from modelpack.errors import InvalidInputError, InvalidKeyError, NotFoundError
from modelpack.small_file import read_small_file

if TYPE_CHECKING:
    from modelpack.signing.keys import PrivateKey

_TOKEN = "pkcs11:"  # noqa: S105
_PASSWORDS = ("MODELPACK_PASSWORD", "COSIGN_PASSWORD")


def load_private_key(app: App, place: str, password_file: Path | None) -> "PrivateKey":
    """A key from a file, from ``env:NAME``, or on the token that a ``pkcs11:`` URI names.

    A file that others may read, or whose key is not encrypted, is used with a warning.
    Raises NotFoundError, InvalidKeyError, UnsupportedError.
    """
    from modelpack.signing.keys import PrivateKey, is_encrypted

    if place.startswith(_TOKEN):
        return _open_token(app, place, password_file)
    pem, mode = _read_key(app, place)
    encrypted = is_encrypted(pem)
    if mode is not None and _is_loose(mode):
        app.progress.warn(f"others may read the private key {place}: chmod 600 {place}")
    if mode is not None and not encrypted:
        app.progress.warn(f"the private key {place} is not encrypted")
    if not encrypted:
        return PrivateKey.load(pem)
    if _known_password(app, password_file) is None:
        # keygen --no-password: nothing has to be asked for that opens without.
        with contextlib.suppress(InvalidKeyError):
            return PrivateKey.load(pem, b"")
    return PrivateKey.load(pem, ask_password(app, password_file))


def ask_password(app: App, file: Path | None, *, confirm: bool = False) -> bytes:
    """Never from an argument: those show in process lists and shell histories. Raises InvalidKeyError."""
    known = _known_password(app, file)
    if known is not None:
        return known
    if not sys.stdin.isatty():
        raise InvalidKeyError("the key needs a password, and there is no terminal to ask at")
    return str(click.prompt("Password for the key", hide_input=True, confirmation_prompt=confirm, err=True)).encode()


@click.group("key")
def key() -> None:
    """Look at keys."""


@command("info")
@click.argument("place", metavar="KEY")
@click.option("--password-file", type=click.Path(path_type=Path), help="Holds the key's password.")
def key_info(app: App, place: str, password_file: Path | None) -> None:
    """Show what a key is: its kind, its id, and whether it lies safely.

    KEY is a file, env:NAME, or a pkcs11: URI. An encrypted key shows its id only where its password is at hand:
    --password-file, MODELPACK_PASSWORD, COSIGN_PASSWORD. Nobody is asked for it.

    \b
    modelpack key info team.pub
    modelpack key info team.key --password-file team.password
    """
    from modelpack.signing.keys import PrivateKey, PublicKey, file_format, is_encrypted, is_private

    public: PublicKey | None
    if place.startswith(_TOKEN):
        half, form, encrypted, mode = "private", "PKCS#11", True, None
        public = _open_token(app, place, password_file).public
    else:
        pem, mode = _read_key(app, place)
        half, form = "private" if is_private(pem) else "public", file_format(pem)
        encrypted = half == "private" and is_encrypted(pem)
        password = _known_password(app, password_file) if encrypted else None
        if half == "public":
            public = PublicKey.load(pem)
        elif encrypted and password is None:
            public = None
            app.note("it is encrypted: give its password to see which key it is")
        else:
            public = PrivateKey.load(pem, password).public
    loose = half == "private" and mode is not None and _is_loose(mode)
    if loose:
        app.progress.warn(f"others may read the private key {place}: chmod 600 {place}")
    shown_mode = None if mode is None else f"0{mode:03o}"
    document = {
        "place": place,
        "half": half,
        "format": form,
        "encrypted": encrypted,
        "kind": public.kind if public else None,
        "id": public.id if public else None,
        "mode": shown_mode,
        "is_loose": loose,
    }
    facts = (
        ("key", f"{half}, {form}{', encrypted' if encrypted else ''}"),
        ("kind", document["kind"]),
        ("id", document["id"]),
        ("mode", shown_mode),
    )
    app.answer(document, "\n".join(f"{name:6}{value}" for name, value in facts if value))


key.add_command(key_info)


def _open_token(app: App, uri: str, password_file: Path | None) -> "PrivateKey":
    from modelpack.signing import pkcs11

    address = pkcs11.KeyAddress.parse(uri, module=app.settings.environment.get("MODELPACK_PKCS11_MODULE"))
    return pkcs11.open_key(address, ask_password(app, password_file))


def _known_password(app: App, file: Path | None) -> bytes | None:
    if file:
        return read_small_file(file, limit=4096, pipe=True).rstrip(b"\r\n")
    environment = app.settings.environment
    return next(
        (environment[name].encode("utf-8", "surrogateescape") for name in _PASSWORDS if name in environment), None
    )


def _read_key(app: App, place: str) -> tuple[bytes, int | None]:
    """The key's PEM, and the permissions of the file that it lies in."""
    if not place:
        # An unset variable in a script must not turn signing off.
        raise InvalidInputError("the name of the key is empty")
    if place.startswith("env:"):
        name = place.removeprefix("env:").removeprefix("//")
        pem = app.settings.environment.get(name, "").encode("utf-8", "surrogateescape")
        if not pem:
            raise NotFoundError(f"there is no key in the environment variable {name}")
        return pem, None
    path = Path(place)
    pem = read_small_file(path, limit=MAX_KEY_SIZE, pipe=True)
    status = path.stat()
    return pem, stat.S_IMODE(status.st_mode) if stat.S_ISREG(status.st_mode) else None


def _is_loose(mode: int) -> bool:
    return bool(mode & 0o077)
