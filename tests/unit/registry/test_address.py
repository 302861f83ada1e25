import base64
import socket
from pathlib import Path

import pytest
from fakes.registry import FakeRegistry

from modelpack.errors import InvalidContentError, MalformedReferenceError, RegistryUnavailableError
from modelpack.oci.reference import Reference
from modelpack.registry.address import Origin, locate, stay_at, without_query
from modelpack.registry.client import connect
from modelpack.registry.http import Transport
from modelpack.registry.network import NetworkSettings
from modelpack.registry.retry import Retries


@pytest.mark.parametrize(
    ("registry", "origin"),
    [
        ("registry.example", "https://registry.example"),
        ("registry.example:8443", "https://registry.example:8443"),
        ("docker.io", "https://registry-1.docker.io"),
        ("localhost:5000", "http://localhost:5000"),
        ("127.0.0.1", "http://127.0.0.1"),
        ("[::1]:5000", "http://[::1]:5000"),
        ("10.0.0.1:5000", "https://10.0.0.1:5000"),
        ("localhost.evil.example", "https://localhost.evil.example"),
    ],
)
def test_only_the_loopback_interface_is_spoken_to_in_plain_http(registry: str, origin: str) -> None:
    assert str(locate(registry)) == origin


def test_plain_http_is_spoken_when_asked_for() -> None:
    assert str(locate("10.0.0.1:5000", plain_http=True)) == "http://10.0.0.1:5000"


def test_a_loopback_registry_that_speaks_tls_is_spoken_to_in_tls() -> None:
    assert str(locate("localhost:5000", encrypted_loopback=True)) == "https://localhost:5000"


@pytest.mark.parametrize("registry", ["a/b", "user@host", "host:port", ""])
def test_what_is_no_registry_is_refused(registry: str) -> None:
    with pytest.raises(MalformedReferenceError):
        connect(registry)


def test_a_short_name_goes_to_no_registry() -> None:
    with pytest.raises(MalformedReferenceError, match="names no registry"):
        connect(Reference.parse("tiny:v1"))


HERE = Origin.of("https://registry.example")


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("/v2/a/blobs/uploads/1?state=a%2Fb", "https://registry.example/v2/a/blobs/uploads/1?state=a%2Fb"),
        ("https://registry.example:443/v2/x", "https://registry.example:443/v2/x"),
        # A proxy that ends TLS: the registry believes it speaks http.
        ("http://registry.example/v2/x?_state=1", "https://registry.example/v2/x?_state=1"),
        ("http://registry.example:80/v2/x", "https://registry.example/v2/x"),
        ("HTTP://Registry.Example/v2/x", "https://registry.example/v2/x"),
        ("https://other.example/v2/x", None),
        ("http://registry.example:8080/v2/x", None),
        ("//other.example/x", None),
        ("https://registry.example@other.example/x", None),
        ("https://user@registry.example/x", "https://user@registry.example/x"),
    ],
)
def test_a_location_stays_at_the_registry_or_is_none_of_ours(location: str, url: str | None) -> None:
    assert stay_at(HERE, "https://registry.example/v2/a/blobs/uploads/", location) == url


@pytest.mark.parametrize("host", ["h", "http", "https", "[::1]"])
def test_a_registry_whose_name_lies_in_its_scheme_is_still_itself(host: str) -> None:
    here = f"https://{host}"

    assert stay_at(Origin.of(here), f"{here}/v2/", f"http://{host}/x?y=1") == f"{here}/x?y=1"


def test_a_location_with_tabs_in_its_host_leads_to_no_other_host() -> None:
    base = "https://registry.example/v2/"

    assert stay_at(HERE, base, "http://\t\t\tregistry.example/v2/x") == "https://registry.example/v2/x"


def test_a_registry_on_a_port_that_believes_it_speaks_http_is_still_itself() -> None:
    here = Origin.of("https://registry.example:5443")
    base = "https://registry.example:5443/v2/"

    assert stay_at(here, base, "http://registry.example:5443/v2/x?y=http://z") == (
        "https://registry.example:5443/v2/x?y=http://z"
    )
    assert stay_at(here, base, "http://registry.example:5000/v2/x") is None
    assert stay_at(here, base, "http://registry.example/v2/x") is None


@pytest.mark.parametrize(
    "url",
    [
        "ftp://x/y",
        "https://",
        "https://x:99999/",
        "javascript:alert(1)",
        "https://[::/",
        # What one reader takes for a user name, another takes for the host.
        "https://other.example\\@registry.example/v2/",
        "https://other.example:443\\@registry.example/v2/",
        "https://registry.example\\.other.example/",
        "https://regi stry.example/",
        "https://registry.example%2f@other.example%00/",
        "https://r\u00e9gistry.example/",
    ],
)
def test_what_is_no_web_address_is_refused(url: str) -> None:
    with pytest.raises(InvalidContentError):
        Origin.of(url)


def test_messages_show_no_signed_query_and_no_user() -> None:
    assert without_query("https://user:pw@cdn.example/blob?X-Signature=canary") == "https://cdn.example/blob"


@pytest.mark.parametrize(
    ("no_proxy", "url", "is_direct"),
    [
        ("", "https://registry.example", False),
        ("registry.example", "https://registry.example", True),
        (".example", "https://registry.example", True),
        ("example", "https://registry.example", True),
        ("other, gistry.example", "https://registry.example", False),
        ("registry.example:8443", "https://registry.example", False),
        ("10.0.0.0/8", "https://10.1.2.3", True),
        ("*", "https://registry.example", True),
        ("", "https://localhost:5000", True),
    ],
)
def test_no_proxy_is_read_as_curl_and_go_read_it(no_proxy: str, url: str, is_direct: bool) -> None:
    network = NetworkSettings.from_environment({"HTTPS_PROXY": "proxy:3128", "NO_PROXY": no_proxy, "HOME": "/nowhere"})

    assert network.proxy_for(Origin.of(url)) == (None if is_direct else "http://proxy:3128")


def test_certs_d_names_authorities_and_a_client_certificate(tmp_path: Path) -> None:
    place = tmp_path / ".docker/certs.d/registry.example:5000"
    place.mkdir(parents=True)
    for name in ("ca.crt", "client.cert", "client.key"):
        (place / name).touch()
    network = NetworkSettings.from_environment({"HOME": str(tmp_path)}, ca_file=Path("extra.pem"))

    certificates = network.certificates("registry.example:5000")

    assert certificates.authorities == (Path("extra.pem"), place / "ca.crt")
    assert (certificates.client_certificate, certificates.client_key) == (place / "client.cert", place / "client.key")
    assert network.certificates("other.example").authorities == (Path("extra.pem"),)


def test_a_proxy_is_asked_with_its_own_password() -> None:
    with FakeRegistry() as proxy:
        network = NetworkSettings(http_proxy=f"http://me:canary%21@{proxy.address}")

        connect("registry.test", plain_http=True, network=network).ping()

        (request,) = proxy.requests
        assert request.path == "http://registry.test/v2/"
        assert request.headers["proxy-authorization"] == "Basic " + base64.b64encode(b"me:canary!").decode()


def test_a_proxy_that_is_down_is_named_without_its_password() -> None:
    with FakeRegistry() as gone:
        proxy = f"http://me:canary@{gone.address}"
    network = NetworkSettings(http_proxy=proxy, https_proxy=proxy)

    for plain_http in (True, False):
        registry = connect("registry.test", plain_http=plain_http, network=network, retries=Retries(attempts=1))
        with pytest.raises(RegistryUnavailableError, match=r"the proxy for https?://registry\.test") as caught:
            registry.ping()
        assert "canary" not in str(caught.value)


def test_nobody_behind_a_proxy_is_asked_for_tls_past_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def refuse(address: tuple[str, int], timeout: float) -> socket.socket:
        asked.append(address[0])
        raise OSError

    monkeypatch.setattr(socket, "create_connection", refuse)
    transport = Transport(NetworkSettings(http_proxy="http://proxy:3128", no_proxy=("direct.test",)), "registry.test")

    for host in ("registry.test", "direct.test"):
        assert not transport.speaks_tls(Origin.of(f"http://{host}"))
    assert asked == ["direct.test"]


@pytest.mark.parametrize(
    "location", ["http://[x", "//[", "https://registry.example\u2100/", "//registry.example:99999/"]
)
def test_a_location_that_is_none_is_told(location):
    with pytest.raises(InvalidContentError, match="not a"):
        stay_at(HERE, "https://registry.example/v2/", location)
