"""What the machine says about reaching registries: certificates, proxies, patience. Values only, no connection."""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from modelpack.registry.address import Origin


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM files: authorities to trust besides the usual ones, and our own certificate for mutual TLS."""

    authorities: tuple[Path, ...] = ()
    client_certificate: Path | None = None
    client_key: Path | None = None


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    """How to reach registries. Times in seconds."""

    ca_file: Path | None = None  # trusted besides the usual authorities
    ca_bundle: Path | None = None  # trusted instead of them: a file, or a directory as OpenSSL hashes it
    certificate_directories: tuple[Path, ...] = ()  # certs.d
    http_proxy: str | None = None
    https_proxy: str | None = None
    no_proxy: tuple[str, ...] = ()
    trusted_realms: frozenset[str] = frozenset()  # hosts that may receive credentials of registries at other sites
    connect_timeout: float = 10.0
    # While a body goes out a registry may pause longer than a connection may take to open: it syncs its disk.
    send_timeout: float = 60.0
    read_timeout: float = 60.0  # until the head of an answer is there
    whole_timeout: float = 600.0  # for a body that is read as a whole: mostly a few KiB, and a few MiB at most
    stall_timeout: float = 30.0  # less than 1 KiB in this time is a broken transfer
    rate_limit: int | None = None  # bytes a second, over all connections and both ways

    @classmethod
    def from_environment(
        cls,
        environ: Mapping[str, str],
        *,
        ca_file: Path | None = None,
        home: Path | None = None,
        trusted_realms: frozenset[str] = frozenset(),
        rate_limit: int | None = None,
    ) -> "NetworkSettings":
        """Read what Docker, curl and Go tools read: ``SSL_CERT_FILE``, ``HTTPS_PROXY``, ``NO_PROXY``, ``certs.d``."""

        def first(*names: str) -> str | None:
            return next((environ[name] for name in names if environ.get(name)), None)

        home = home or Path(environ.get("HOME") or Path.home())
        bundle = first("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
        folders = (home / ".config/docker", home / ".docker", Path("/etc/docker"), Path("/etc/containers"))
        # Upper-case HTTP_PROXY is what a CGI client may set through a "Proxy:" header; curl ignores it too.
        http_proxy = first("http_proxy") if environ.get("REQUEST_METHOD") else first("http_proxy", "HTTP_PROXY")
        return cls(
            ca_file=ca_file,
            ca_bundle=Path(bundle) if bundle else None,
            certificate_directories=tuple(folder / "certs.d" for folder in folders),
            http_proxy=http_proxy,
            https_proxy=first("https_proxy", "HTTPS_PROXY"),
            no_proxy=tuple(
                entry for entry in (first("no_proxy", "NO_PROXY") or "").replace(" ", ",").split(",") if entry
            ),
            trusted_realms=trusted_realms,
            rate_limit=rate_limit,
        )

    def certificates(self, registry: str) -> Certificates:
        """What ``--ca-file`` and ``certs.d/HOST[:PORT]`` hold for a registry, as Docker lays it out."""
        authorities = [self.ca_file] if self.ca_file else []
        place = self._place(registry)
        if place is None:
            return Certificates(tuple(authorities))
        authorities += sorted(place.glob("*.crt"))
        ours = next(iter(sorted(place.glob("*.cert"))), None)
        return Certificates(tuple(authorities), ours, ours.with_suffix(".key") if ours else None)

    def has_certificates(self, registry: str) -> bool:
        """Whether ``certs.d`` speaks of this registry: then it speaks TLS, on the loopback interface too."""
        return self._place(registry) is not None

    def _place(self, registry: str) -> Path | None:
        places = (folder / registry for folder in self.certificate_directories)
        return next((place for place in places if place.is_dir()), None)

    def proxy_for(self, origin: Origin) -> str | None:
        """The proxy's URL, None for a direct connection. The loopback interface is never behind a proxy."""
        proxy = self.https_proxy if origin.is_encrypted else self.http_proxy
        if not proxy or origin.is_loopback or any(_names(entry, origin) for entry in self.no_proxy):
            return None
        return proxy if "://" in proxy else f"http://{proxy}"


def _names(entry: str, origin: Origin) -> bool:
    # As Go and curl read NO_PROXY: *, host, .suffix, host:port, address, network.
    if entry == "*":
        return True
    try:
        return ipaddress.ip_address(origin.host) in ipaddress.ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        pass
    host, colon, port = entry.rpartition(":")
    if colon and port.isascii() and port.isdigit():
        if int(port) != origin.port:
            return False
        entry = host
    suffix = entry.lower().removeprefix("*").lstrip(".")
    return bool(suffix) and (origin.host == suffix or origin.host.endswith(f".{suffix}"))
