import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from modelpack.errors import InvalidInputError
from modelpack.server.app import ServerOptions
from modelpack.server.guard import Guard


def client(*, host: str | None = "127.0.0.1", api_key: str | None = None) -> TestClient:
    app = Starlette(routes=[Route(path, lambda _: PlainTextResponse("ok")) for path in ("/health", "/v1/models")])
    return TestClient(Guard(app, host=host, api_key=api_key), base_url="http://localhost:8080")


@pytest.mark.parametrize("host", ["localhost:8080", "127.0.0.1", "127.0.0.1:1", "[::1]:8080", "LOCALHOST"])
def test_loopback_is_served_by_its_own_names(host: str):
    assert client().get("/v1/models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.nip.io", "", "["]
)
def test_a_name_that_was_rebound_to_loopback_is_refused(host: str):
    response = client().get("/v1/models", headers={"host": host})

    assert response.status_code == 403
    assert response.json()["error"]["code"] == "host_refused"


def test_beyond_loopback_and_on_a_unix_socket_any_name_may_lead_here():
    for host in ("10.0.0.5", None):
        response = client(host=host, api_key="key").get(
            "/v1/models", headers={"host": "models.corp.example", "authorization": "Bearer key"}
        )
        assert response.status_code == 200


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "http://localhost.evil.example:8080",
        "http://localhost:3000",  # somebody else's development server
        "http://localhost",
        "http://localhost:x",
        "ftp://localhost:8080",
    ],
)
def test_a_page_of_another_origin_is_refused(origin: str):
    assert client().get("/v1/models", headers={"origin": origin}).status_code == 403


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://localhost:8080", "localhost:8080"),
        ("http://[::1]:8080", "[::1]:8080"),
        ("http://localhost", "localhost"),
        ("http://localhost", "localhost:80"),
        ("https://localhost", "localhost"),  # a proxy before us that speaks TLS
    ],
)
def test_a_page_of_our_own_is_served(origin: str, host: str):
    assert client().get("/v1/models", headers={"origin": origin, "host": host}).status_code == 200


@pytest.mark.parametrize("authorization", [None, "Bearer wrong", "Basic key", "key", "Bearer ключ".encode()])
def test_without_the_key_nothing_but_health_is_served(authorization: str | bytes | None):
    headers = {} if authorization is None else {"authorization": authorization}

    assert client(api_key="key").get("/v1/models", headers=headers).status_code == 401
    assert client(api_key="key").get("/health", headers=headers).status_code == 200


def test_the_key_opens():
    assert client(api_key="key").get("/v1/models", headers={"authorization": "bearer key"}).status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "::", "models.corp.example"])
def test_serving_beyond_this_machine_needs_a_key(host: str):
    with pytest.raises(InvalidInputError):
        ServerOptions(host=host)

    assert ServerOptions(host=host, api_key="key").host == host
