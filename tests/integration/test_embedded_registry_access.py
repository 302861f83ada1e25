"""Who may use the embedded registry, and over what: an account, TLS, both through the command line."""

import base64
import json
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fakes.certificates import make_certificate
from fakes.servers import running_registry
from fakes.wire import OCTETS, Client

from modelpack.embedded_registry import Account
from modelpack.errors import AccessDeniedError, InvalidInputError
from modelpack.oci.manifest import EMPTY_CONFIG, EMPTY_JSON, Descriptor, image_manifest
from modelpack.oci.target import write_whole
from modelpack.registry.client import connect
from modelpack.registry.credentials import Credential, FixedCredentials
from modelpack.registry.network import NetworkSettings
from modelpack.store import Store

ALICE = Account("alice", "s3cret: ü")


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with running_registry(Store.open(tmp_path_factory.mktemp("guarded") / "store"), account=ALICE) as address:
        yield Client(address)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2/"),
        ("GET", "/v2/_catalog"),
        ("GET", "/v2/me/tiny/manifests/v1"),
        ("HEAD", "/v2/me/tiny/manifests/v1"),
        ("POST", "/v2/me/tiny/blobs/uploads/"),
        ("PUT", "/v2/me/tiny/manifests/v1"),
        ("DELETE", "/v2/me/tiny/manifests/v1"),
        ("GET", "/v2/../v2/me/tiny/manifests/v1"),
        ("GET", "/"),
    ],
)
def test_nothing_is_answered_without_the_account(guarded: Client, method: str, path: str) -> None:
    answer = guarded(method, path)
    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"] == 'Basic realm="modelpack", charset="UTF-8"'
    if method != "HEAD":
        assert answer.code == "UNAUTHORIZED"


@pytest.mark.parametrize(
    "authorization",
    ["", "Basic", "Basic !!!", basic("alice"), basic("alice:"), basic("bob:s3cret: ü"), "Bearer s3cret",
     basic("alice:s3cret: ü").replace("Basic", "Digest"), basic("alice:s3cret: ü\0")],
)  # fmt: skip
def test_a_wrong_account_is_refused_after_a_while(guarded: Client, authorization: str) -> None:
    began = time.monotonic()
    assert guarded("GET", "/v2/", Authorization=authorization).status == 401
    assert time.monotonic() - began > 0.4
    assert guarded("GET", "/v2/", Authorization=basic("alice:s3cret: ü")).status == 200
    assert guarded("GET", "/v2/", Authorization=basic("alice:s3cret: ü").replace("Basic", "basic")).status == 200


def test_our_client_logs_in_pushes_and_pulls(guarded: Client) -> None:
    alice = FixedCredentials(Credential(ALICE.user, ALICE.password))
    repository = connect(guarded.address, credentials=alice).repository("me/model", push=True)
    layer = write_whole(repository, b"weights", OCTETS)
    write_whole(repository, EMPTY_JSON, EMPTY_CONFIG.media_type)
    manifest = image_manifest(config=EMPTY_CONFIG, layers=[layer], artifact_type="a/b")
    repository.put_manifest(manifest, tag="v1")
    assert repository.resolve("v1").digest == manifest.digest

    with pytest.raises(AccessDeniedError):
        connect(guarded.address).repository("me/model").resolve("v1")


@pytest.mark.parametrize(("user", "password"), [("", "x"), ("a:b", "x"), ("alice", ""), ("al\nice", "x")])
def test_an_account_that_basic_cannot_name_is_refused(user: str, password: str) -> None:
    with pytest.raises(InvalidInputError):
        Account(user, password)
    assert "s3cret" not in repr(ALICE)


@contextmanager
def serving(environment: dict[str, str], *arguments: object) -> Iterator[str]:
    """``modelpack registry serve`` with the arguments; yields its URL."""
    process = subprocess.Popen(
        [sys.executable, "-m", "modelpack", "registry", "serve", "--port", "0", "--json", *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stderr
    try:
        answer = ""
        while not answer.endswith("}\n"):
            line = process.stdout.readline()
            assert line, process.stderr.read()
            answer += line
        yield json.loads(answer)["url"]
    finally:
        process.terminate()
        _, told = process.communicate(timeout=10)
    assert process.returncode == 0
    assert "Invalid HTTP request" not in told


def test_clients_that_try_tls_first_do_not_fill_the_terminal(environment: dict[str, str], tmp_path: Path) -> None:
    """As crane, oras, skopeo and cosign do before each command on a loopback address."""
    with serving(environment, "--store", tmp_path / "store") as url:
        host, _, port = url.removeprefix("http://").rpartition(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection, pytest.raises(ssl.SSLError):
            ssl.create_default_context().wrap_socket(connection, server_hostname=host)


@pytest.mark.skipif(not shutil.which("skopeo"), reason="skopeo is not installed")
def test_skopeo_talks_to_it_over_tls_with_a_password(environment: dict[str, str], tmp_path: Path) -> None:
    certificates = tmp_path / "certificates"
    certificates.mkdir()
    chain, key = make_certificate(certificates, "ca")
    chain.rename(certificates / "ca.crt")
    (tmp_path / "password").write_text("s3cret\n")
    store = Store.open(tmp_path / "store")
    layer = store.write_small(b"weights", OCTETS)
    store.write_small(EMPTY_JSON, EMPTY_CONFIG.media_type)
    manifest = image_manifest(config=EMPTY_CONFIG, layers=[layer], artifact_type="a/b")
    store.repository("me/tiny").put_manifest(manifest, tag="v1")
    arguments = ("--user", "alice", "--password-file", tmp_path / "password",
                 "--tls-cert", certificates / "ca.crt", "--tls-key", key, "--store", store.root)  # fmt: skip
    with serving(environment, *arguments) as url:
        assert url.startswith("https://127.0.0.1:")
        location = f"docker://{url.removeprefix('https://')}/me/tiny:v1"

        def inspect(*flags: str) -> subprocess.CompletedProcess[bytes]:
            command = ["skopeo", "inspect", "--raw", *flags, location]
            return subprocess.run(command, capture_output=True, timeout=60, check=False)

        trusting = ("--cert-dir", str(certificates))
        (certificates / "ca.key").rename(tmp_path / "ca.key")  # else skopeo takes it for a client's
        assert inspect(*trusting, "--creds", "alice:s3cret").stdout == manifest.raw
        assert inspect(*trusting).returncode
        assert inspect("--creds", "alice:s3cret").returncode, "a certificate that nobody signed"


def test_a_certificate_that_does_not_fit_is_told_before_anything_is_served(modelpack, tmp_path: Path) -> None:
    chain, _ = make_certificate(tmp_path)
    _, other = make_certificate(tmp_path, "other")
    _, sealed = make_certificate(tmp_path, "sealed", password=b"secret")
    for arguments, code, said in (
        (("--tls-cert", chain), 2, "belong together"),
        (("--tls-cert", chain, "--tls-key", other), 2, "cannot use the certificate"),
        (("--tls-cert", chain, "--tls-key", sealed), 2, "cannot use the certificate"),
        (("--tls-cert", chain, "--tls-key", tmp_path / "missing"), 3, "there is no file"),
        (("--user", "alice"), 2, "belong together"),
        (("--user", "alice", "--password-file", tmp_path / "missing"), 3, "there is no file"),
    ):
        result = modelpack("registry", "serve", "--port", "0", *arguments)
        assert result.code == code, result.stderr
        assert said in result.stderr
        assert result.stdout == ""


def test_our_client_reads_over_tls_whom_certs_d_trusts(environment: dict[str, str], tmp_path: Path) -> None:
    chain, key = make_certificate(tmp_path)
    store = Store.open(tmp_path / "store")
    layer = store.write_small(b"weights" * 1000, OCTETS)
    store.write_small(EMPTY_JSON, EMPTY_CONFIG.media_type)
    manifest = image_manifest(config=EMPTY_CONFIG, layers=[layer], artifact_type="a/b")
    store.repository("me/tiny").put_manifest(manifest, tag="v1")
    with serving(environment, "--tls-cert", chain, "--tls-key", key, "--store", store.root) as url:
        address = url.removeprefix("https://")
        place = tmp_path / ".docker/certs.d" / address
        place.mkdir(parents=True)
        (place / "ca.crt").write_bytes(chain.read_bytes())
        network = NetworkSettings.from_environment({"HOME": str(tmp_path)})
        repository = connect(address, network=network).repository("me/tiny")
        assert repository.fetch_manifest(repository.resolve("v1")).raw == manifest.raw
        with repository.read_blob(Descriptor(OCTETS, layer.digest, layer.size)) as chunks:
            assert b"".join(chunks) == b"weights" * 1000
