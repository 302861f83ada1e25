"""Where a registry lives: the name that people type, and the origin that requests go to."""

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

from modelpack.errors import InvalidContentError, MalformedReferenceError

_DEFAULT_PORTS = {"http": 80, "https": 443}
# RFC 3986, section 3.2, without percent-encoded hosts.
_AUTHORITY = re.compile(r"(?:[\w.~!$&'()*+,;=:%-]*@)?(?:[\w.-]+|\[[0-9A-Fa-f:.]+\])(?::\d*)?", re.ASCII)

# Docker Hub answers under another name than the one in its references.
DOCKER_HUB = "docker.io"
_DOCKER_HUB_API = "registry-1.docker.io"
DOCKER_HUB_NAMES = frozenset({DOCKER_HUB, "index.docker.io", _DOCKER_HUB_API})


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, host and port: what decides whether a secret or a body may go somewhere."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> "Origin":
        """Raises InvalidContentError when ``url`` is not an http or https URL."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise InvalidContentError(f"not a URL: {_printable(url)}") from error
        # Other readers of URLs end the host at a backslash, and this one the user name before it: what both read alike.
        if parts.scheme not in _DEFAULT_PORTS or not parts.hostname or not _AUTHORITY.fullmatch(parts.netloc):
            raise InvalidContentError(f"not an http or https URL: {_printable(url)}")
        return cls(parts.scheme, parts.hostname.lower(), port or _DEFAULT_PORTS[parts.scheme])

    @property
    def is_encrypted(self) -> bool:
        return self.scheme == "https"

    @property
    def is_loopback(self) -> bool:
        if self.host == "localhost" or self.host.endswith(".localhost"):
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def has_default_port(self) -> bool:
        return self.port == _DEFAULT_PORTS[self.scheme]

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}" + ("" if self.has_default_port else f":{self.port}")


def locate(registry: str, *, plain_http: bool = False, encrypted_loopback: bool = False) -> Origin:
    """The origin of a registry as a reference names it.

    Plain http is for ``plain_http`` and for the loopback interface; ``encrypted_loopback`` says that the registry
    speaks TLS even there. Raises MalformedReferenceError.
    """
    host = _DOCKER_HUB_API if registry in DOCKER_HUB_NAMES else registry
    try:
        origin = Origin.of(f"https://{host}")
        if plain_http or (origin.is_loopback and not encrypted_loopback):
            origin = Origin.of(f"http://{host}")
    except InvalidContentError as error:
        raise MalformedReferenceError(f"{registry!r} is not a registry") from error
    if "/" in registry or "@" in registry:
        raise MalformedReferenceError(f"{registry!r} is not a registry")
    return origin


def stay_at(origin: Origin, base: str, location: str) -> str | None:
    """``location`` resolved against ``base``, with its query as it stands, if it is at ``origin``; None if not.

    Proxies that end TLS often let a registry answer ``http://`` for itself: such a location is read as ours. Raises
    InvalidContentError for a location that is none.
    """
    try:
        url = urljoin(base, location)
    except ValueError as error:
        raise InvalidContentError(f"not a URL: {_printable(location)}") from error
    there = Origin.of(url)
    if there == origin:
        return url
    is_same_port = there.port == origin.port or (there.has_default_port and origin.has_default_port)
    if there.host == origin.host and is_same_port:
        return urlsplit(url)._replace(scheme=origin.scheme, netloc=str(origin).partition("://")[2]).geturl()
    return None


def without_query(url: str) -> str:
    """A URL for a message: signed queries and user names are secrets."""
    parts = urlsplit(url)
    return _printable(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}")


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text[:200])
