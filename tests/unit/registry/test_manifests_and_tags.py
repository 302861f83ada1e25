from collections.abc import Callable

import pytest
from fakes.registry import FakeRegistry

from modelpack.errors import (
    DigestMismatchError,
    InvalidContentError,
    NotFoundError,
    RegistryRefusedError,
    RegistryUnavailableError,
)
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import IMAGE_INDEX, IMAGE_MANIFEST, Descriptor
from modelpack.registry.client import Registry, Repository


def test_a_tag_is_resolved_without_fetching(repository: Repository, fake: FakeRegistry) -> None:
    manifest = fake.add_artifact("me/tiny", b"weights", tag="v1")

    assert repository.resolve("v1") == Descriptor(IMAGE_MANIFEST, manifest.digest, len(manifest.raw))
    assert [one.method for one in fake.requests] == ["HEAD"]


def test_a_registry_without_the_digest_header_is_asked_for_the_manifest(
    repository: Repository, fake: FakeRegistry
) -> None:
    manifest = fake.add_artifact("me/tiny", b"weights", tag="v1")
    fake.fail("HEAD", "manifests", status=200, headers={"Content-Type": IMAGE_MANIFEST})

    assert repository.resolve("v1").digest == manifest.digest


def test_a_missing_tag_is_not_found_by_its_name(repository: Repository, fake: FakeRegistry) -> None:
    with pytest.raises(NotFoundError, match=f"not found: {fake.address}/me/tiny:v9"):
        repository.resolve("v9")


def test_a_digest_is_answered_with_that_digest_or_not_at_all(repository: Repository, fake: FakeRegistry) -> None:
    wanted = fake.add_artifact("me/tiny", b"weights")
    other = fake.add_artifact("me/tiny", b"other")
    fake.fail("HEAD", "manifests", headers={"Docker-Content-Digest": str(other.digest)})

    with pytest.raises(DigestMismatchError):
        repository.resolve(str(wanted.digest))


def test_a_manifest_is_the_bytes_that_were_served(repository: Repository, fake: FakeRegistry) -> None:
    manifest = fake.add_artifact("me/tiny", b"weights", tag="v1")

    assert repository.fetch_manifest(repository.resolve("v1")).raw == manifest.raw


def test_a_manifest_with_other_bytes_is_refused(repository: Repository, fake: FakeRegistry) -> None:
    manifest = fake.add_artifact("me/tiny", b"weights")
    fake.fail("GET", "manifests", change_body=lambda body: body.replace(b"x.test", b"x.evil"))

    with pytest.raises(DigestMismatchError):
        repository.fetch_manifest(manifest.descriptor)


def test_a_manifest_under_another_type_is_refused(repository: Repository, fake: FakeRegistry) -> None:
    manifest = fake.add_artifact("me/tiny", b"weights")
    fake.fail("GET", "manifests", headers={"Content-Type": IMAGE_INDEX})

    with pytest.raises(InvalidContentError, match="is served as"):
        repository.fetch_manifest(manifest.descriptor)


def test_a_manifest_without_end_is_not_read_to_its_end(repository: Repository, fake: FakeRegistry) -> None:
    manifest = fake.add_artifact("me/tiny", b"weights")
    fake.fail("GET", "manifests", change_body=lambda body: body + b" " * (8 << 20))

    with pytest.raises(InvalidContentError, match="more than 4194304 bytes"):
        repository.fetch_manifest(manifest.descriptor)


def test_a_manifest_is_put_under_its_digest_and_under_a_tag(repository: Repository, fake: FakeRegistry) -> None:
    manifest = fake.add_artifact("elsewhere", b"weights")

    descriptor = repository.put_manifest(manifest)
    assert fake.tags == {}
    assert repository.put_manifest(manifest, tag="v1") == descriptor
    assert fake.tags == {("me/tiny", "v1"): str(manifest.digest)}
    assert fake.manifests["me/tiny", str(manifest.digest)] == (IMAGE_MANIFEST, manifest.raw)


def test_a_registry_that_stored_something_else_is_caught(repository: Repository, fake: FakeRegistry) -> None:
    manifest = fake.add_artifact("elsewhere", b"weights")
    fake.fail("PUT", "manifests", headers={"Docker-Content-Digest": str(Digest.of(b"other"))})

    with pytest.raises(DigestMismatchError, match="was stored as"):
        repository.put_manifest(manifest, tag="v1")


def test_a_manifest_whose_blobs_are_missing_is_refused(repository: Repository, fake: FakeRegistry) -> None:
    manifest = fake.add_artifact("elsewhere", b"weights")
    fake.blobs.clear()

    with pytest.raises(InvalidContentError, match="does not have: MANIFEST_BLOB_UNKNOWN"):
        repository.put_manifest(manifest)


def test_tags_come_from_all_pages(open_registry: Callable[..., Registry]) -> None:
    with FakeRegistry(page_size=2) as fake:
        tags = [f"v{number}" for number in range(7)]
        for tag in tags:
            fake.add_artifact("me/tiny", b"weights", tag=tag)

        assert open_registry(fake).repository("me/tiny").list_tags() == tags
        assert fake.count("GET", "tags") == 4


def test_a_next_page_on_another_host_is_not_fetched(repository: Repository, fake: FakeRegistry) -> None:
    with FakeRegistry() as other:
        fake.fail("GET", "tags", headers={"Link": f'<{other.url}/v2/x/tags/list>; rel="next"'})

        with pytest.raises(RegistryRefusedError, match="another host"):
            repository.list_tags()
        assert other.requests == []


def test_pages_that_go_in_circles_end(repository: Repository, fake: FakeRegistry) -> None:
    fake.fail("GET", "tags", times=99, headers={"Link": '</v2/me/tiny/tags/list?n=1000>; rel="next"'})

    assert repository.list_tags() == []
    assert fake.count("GET", "tags") <= 2


def test_what_is_no_tag_is_left_out(repository: Repository, fake: FakeRegistry) -> None:
    fake.fail("GET", "tags", status=200, body=b'{"tags": ["v1", "../v2", 7, "\\u001b[31m", "latest"]}')

    assert repository.list_tags() == ["latest", "v1"]


def test_a_repository_without_tags_has_none(repository: Repository, fake: FakeRegistry) -> None:
    fake.fail("GET", "tags", status=200, body=b'{"name": "me/tiny", "tags": null}')

    assert repository.list_tags() == []


def test_a_tag_and_a_manifest_are_deleted(repository: Repository, fake: FakeRegistry) -> None:
    manifest = fake.add_artifact("me/tiny", b"weights", tag="v1")

    repository.delete("v1")
    assert (fake.tags, len(fake.manifests)) == ({}, 1)
    repository.delete(str(manifest.digest))
    assert fake.manifests == {}


def test_a_registry_that_does_not_delete_says_so(repository: Repository, fake: FakeRegistry) -> None:
    manifest = fake.add_artifact("me/tiny", b"weights", tag="v1")
    body = b'{"errors":[{"code":"UNSUPPORTED","message":"disabled"}]}'
    fake.fail("DELETE", "manifests", times=2, status=405, body=body)

    with pytest.raises(RegistryRefusedError, match="does not delete tags"):
        repository.delete("v1")
    with pytest.raises(RegistryRefusedError, match=r"deletion of .* \(HTTP 405\): UNSUPPORTED disabled"):
        repository.delete(str(manifest.digest))


def test_docker_hub_keeps_official_repositories_in_library() -> None:
    from modelpack.registry.client import connect

    hub = connect("index.docker.io")

    assert hub.repository("alpine").name == "docker.io/library/alpine"
    assert hub.repository("ai/smollm2").name == "docker.io/ai/smollm2"


def test_a_warning_is_logged_once(repository: Repository, fake: FakeRegistry, caplog: pytest.LogCaptureFixture) -> None:
    fake.add_artifact("me/tiny", b"weights", tag="v1")
    fake.fail("HEAD", "manifests", times=2, headers={"Warning": '299 - "going away"'})

    repository.resolve("v1")
    repository.resolve("v1")

    assert [record.getMessage() for record in caplog.records] == [f"{fake.address} warns: going away"]


def test_a_page_of_a_proxy_is_not_shown(repository: Repository, fake: FakeRegistry) -> None:
    fake.fail("HEAD", "manifests", times=99, status=502, body=b"<html>nginx</html>")

    with pytest.raises(RegistryUnavailableError, match=r"cannot serve .*:v1 now \(HTTP 502\)$"):
        repository.resolve("v1")
