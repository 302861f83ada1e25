"""A real registry behind a real nginx: TLS that ends there, ranges, limits on rates and bodies."""

import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.artifacts import put_cncf_model
from fakes.certificates import make_certificate
from fakes.docker_registry import running_docker_registry
from fakes.nginx import parallel_connections, running_nginx

from modelpack.errors import PlainHTTPError, RegistryRefusedError, UntrustedError
from modelpack.registry.client import Repository, connect
from modelpack.registry.network import NetworkSettings
from modelpack.registry.retry import Retries
from modelpack.store import Store
from modelpack.transfer import copy

WEIGHTS = random.Random(11).randbytes(40 << 20)
"""Three segments: large enough for two connections."""


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    with running_docker_registry(tmp_path / "registry") as address:
        yield address


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    return make_certificate(tmp_path)


def at(address: str, **network: object) -> Repository:
    settings = NetworkSettings(**network)  # type: ignore[arg-type]  # a test's own keywords
    return connect(address, network=settings, retries=Retries(attempts=2)).repository("me/tiny", push=True)


def trusting(folder: Path, address: str, chain: Path) -> Path:
    """A ``certs.d`` with the certificate of one registry."""
    place = folder / "certs.d" / address
    place.mkdir(parents=True)
    (place / "ca.crt").write_bytes(chain.read_bytes())
    return folder / "certs.d"


def requests(folder: Path, method: str) -> list[int]:
    """The statuses of all requests for blobs that nginx has answered."""
    log = (folder / "access.log").read_text()
    return [int(status) for status in re.findall(rf'"{method} /v2/me/tiny/blobs/sha256\S* HTTP/1.1" (\d+)', log)]


@pytest.mark.parametrize(
    "settings",
    [
        "proxy_set_header X-Forwarded-Proto $scheme;",
        "",  # the registry then says http:// of itself
        "proxy_set_header X-Forwarded-Proto $scheme; proxy_request_buffering off; proxy_buffering off;",
    ],
)
def test_a_model_goes_to_and_fro_through_tls(
    settings: str, registry: str, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    here, there = Store.open(tmp_path / "here"), Store.open(tmp_path / "there")
    artifact, _ = put_cncf_model(here, "tiny:v1", WEIGHTS)
    with running_nginx(tmp_path / "nginx", registry, certificate=certificate, settings=settings) as address:
        remote = at(address, certificate_directories=(trusting(tmp_path, address, certificate[0]),))
        copy(here.repository("tiny"), remote, artifact.descriptor, tag="v1")
        copy(remote, there.repository("tiny"), remote.resolve("v1"), tag="v1")

    there.rehash(artifact.layers[0])
    assert there.repository("tiny").list_tags() == ["v1"]
    assert requests(tmp_path / "nginx", "GET").count(206) == 3


def test_tls_on_the_loopback_interface_is_named_where_plain_http_gets_no_answer(
    registry: str, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    with running_nginx(tmp_path / "nginx", registry, certificate=certificate) as address:
        with pytest.raises(PlainHTTPError, match="speaks TLS"):
            at(address).resolve("v1")

        _, foreign = make_certificate(tmp_path, "foreign"), tmp_path / "foreign.pem"
        directory = trusting(tmp_path / "other", address, foreign)
        with pytest.raises(UntrustedError, match="not trusted"):
            at(address, certificate_directories=(directory,)).resolve("v1")


def test_a_large_blob_comes_over_four_connections_at_once_where_each_is_slowed_down(
    registry: str, tmp_path: Path
) -> None:
    weights = random.Random(12).randbytes(128 << 20)
    here = Store.open(tmp_path / "here")
    artifact, _ = put_cncf_model(here, "tiny:v1", weights)
    copy(here.repository("tiny"), at(registry), artifact.descriptor, tag="v1")
    blob = f"/v2/me/tiny/blobs/{artifact.layers[0].digest}"
    seen = {}
    for jobs, settings in ((4, "limit_rate 20m;"), (1, "")):
        with running_nginx(tmp_path / f"nginx-{jobs}", registry, settings=settings) as address:
            remote = at(address)
            there = Store.open(tmp_path / f"there-{jobs}")
            copy(remote, there.repository("tiny"), remote.resolve("v1"), tag="v1", jobs=jobs)
        there.rehash(artifact.layers[0])
        seen[jobs] = parallel_connections(tmp_path / f"nginx-{jobs}", blob)

    assert seen == {4: (4, 4), 1: (1, 1)}


def test_a_proxy_that_takes_no_large_bodies_gets_them_in_pieces(registry: str, tmp_path: Path) -> None:
    here = Store.open(tmp_path / "here")
    artifact, _ = put_cncf_model(here, "tiny:v1", WEIGHTS)
    with running_nginx(tmp_path / "nginx", registry, largest_body="20m") as address:
        remote = at(address)
        copy(here.repository("tiny"), remote, artifact.descriptor, tag="v1")
        assert remote.traffic.retries == 0
    log = (tmp_path / "nginx" / "access.log").read_text()
    assert re.findall(r'"PATCH \S+ HTTP/1.1" (\d+)', log) == ["202"] * 3

    there = Store.open(tmp_path / "there")
    copy(at(registry), there.repository("tiny"), artifact.descriptor, tag="v1")
    there.rehash(artifact.layers[0])


def test_a_proxy_that_takes_not_even_pieces_is_an_answer_and_not_a_reason_to_try_again(
    registry: str, tmp_path: Path
) -> None:
    here = Store.open(tmp_path / "here")
    artifact, _ = put_cncf_model(here, "tiny:v1", WEIGHTS)
    with running_nginx(tmp_path / "nginx", registry, largest_body="1m") as address:
        remote = at(address)
        with pytest.raises(RegistryRefusedError, match="413"):
            copy(here.repository("tiny"), remote, artifact.descriptor, tag="v1")
        assert remote.traffic.retries == 0
