"""What is known of registries, as data."""

import threading
from pathlib import Path

import pytest
from fakes.registry import FakeRegistry

from modelpack.errors import RegistryRefusedError
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import Descriptor
from modelpack.registry.client import connect
from modelpack.registry.profiles import GENERIC, PROFILES, Patch, Profile, profile_of
from modelpack.store import Store
from modelpack.transfer import copy


@pytest.mark.parametrize(
    ("registry", "name"),
    [
        ("docker.io", "Docker Hub"),
        ("ghcr.io", "GitHub Container Registry"),
        ("123456789012.dkr.ecr.eu-central-1.amazonaws.com", "Amazon ECR"),
        ("europe-west3-docker.pkg.dev", "Google Artifact Registry"),
        ("team.azurecr.io", "Azure Container Registry"),
        ("GHCR.io", "GitHub Container Registry"),
        ("ghcr.io.example.com", GENERIC.name),
        ("notghcr.io", GENERIC.name),
        ("127.0.0.1:5000", GENERIC.name),
    ],
)
def test_a_profile_is_found_by_the_registrys_name(registry: str, name: str) -> None:
    assert profile_of(registry).name == name


def test_profiles_have_names_of_their_own() -> None:
    assert len({profile.name for profile in PROFILES}) == len(PROFILES)


@pytest.mark.parametrize(
    ("profile", "jobs", "expected"),
    [(GENERIC, None, 4), (profile_of("docker.io"), None, 8), (profile_of("docker.io"), 2, 2), (GENERIC, 6, 6)],
)
def test_a_registry_that_slows_connections_down_is_read_over_more_of_them(
    tmp_path: Path, profile: Profile, jobs: int | None, expected: int
) -> None:
    going, most = 0, 0
    changed = threading.Condition()

    def arrived(client: int) -> None:
        """Each answer waits for as many others as are to come at once, and a moment for one too many."""
        nonlocal going, most
        with changed:
            going += 1
            most = max(most, going)
            changed.notify_all()
            changed.wait_for(lambda: most >= expected, timeout=10)
            changed.wait_for(lambda: most > expected, timeout=0.3)

    def left(client: int) -> None:
        nonlocal going
        with changed:
            going -= 1

    with FakeRegistry() as fake:
        fake.add_artifact("me/tiny", *(bytes([number]) * 1000 for number in range(20)), tag="v1")
        source = connect(fake.address, profile=profile).repository("me/tiny")
        fake.before_answer, fake.after_answer = arrived, left

        copy(source, Store.open(tmp_path / "store").repository("tiny"), source.resolve("v1"), tag="v1", jobs=jobs)

    assert most == expected


def test_a_layer_that_a_registry_does_not_take_is_refused_before_anything_is_sent() -> None:
    fits = Descriptor("a/b", Digest.of(b"small"), 10 * 1000**3)
    large = Descriptor("a/b", Digest.of(b"large"), 10 * 1000**3 + 1)
    # No such host is ever asked: the name is enough.
    repository = connect("ghcr.io").repository("me/tiny")

    repository.check_limits([fits])
    with pytest.raises(RegistryRefusedError, match=r"GitHub Container Registry takes layers of at most 10000000000"):
        repository.check_limits([fits, large])


def test_a_registry_without_a_profile_has_no_limits() -> None:
    connect("127.0.0.1:5000").repository("me/tiny").check_limits([Descriptor("a/b", Digest.of(b"x"), 1 << 50)])
    assert GENERIC.patch is Patch.SIZED
