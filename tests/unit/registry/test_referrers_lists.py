"""Referrers through the API and through the fallback tag."""

import json
import threading
from collections.abc import Callable, Iterator

import pytest
from fakes.registry import FakeRegistry

from modelpack.errors import AccessDeniedError, InvalidContentError, RegistryUnavailableError
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import (
    EMPTY_CONFIG,
    IMAGE_INDEX,
    IMAGE_MANIFEST,
    Descriptor,
    Manifest,
    image_index,
    image_manifest,
)
from modelpack.oci.target import write_whole
from modelpack.registry.client import Registry, Repository, connect
from modelpack.registry.retry import Retries


@pytest.fixture
def old(open_registry: Callable[..., Registry]) -> Iterator[tuple[FakeRegistry, Repository]]:
    """A registry without the referrers API."""
    with FakeRegistry(referrers_api=False) as fake:
        yield fake, open_registry(fake).repository("me/tiny")


def sign(repository: Repository, subject: Manifest, text: bytes) -> Manifest:
    write_whole(repository, b"{}", EMPTY_CONFIG.media_type)
    referrer = image_manifest(
        config=EMPTY_CONFIG,
        layers=[write_whole(repository, text, "application/x.signature")],
        artifact_type="application/x.signature",
        subject=subject.descriptor,
        annotations={"who": text.decode()},
    )
    repository.put_manifest(referrer)
    return referrer


def test_the_api_lists_what_was_pushed(repository: Repository, fake: FakeRegistry) -> None:
    subject = fake.add_artifact("me/tiny", b"weights", tag="v1")
    referrer = sign(repository, subject, b"alice")

    assert repository.list_referrers(subject.digest) == [referrer.descriptor]
    assert set(fake.tags) == {("me/tiny", "v1")}


def test_a_registry_that_lists_but_does_not_say_so_gets_no_fallback_tag(open_registry: Callable[..., Registry]) -> None:
    with FakeRegistry(subject_header=False) as fake:
        repository = open_registry(fake).repository("me/tiny")
        subject = fake.add_artifact("me/tiny", b"weights", tag="v1")

        referrer = sign(repository, subject, b"alice")

        assert repository.list_referrers(subject.digest) == [referrer.descriptor]
        assert set(fake.tags) == {("me/tiny", "v1")}


def test_without_the_api_the_fallback_tag_is_kept(old: tuple[FakeRegistry, Repository]) -> None:
    fake, repository = old
    subject = fake.add_artifact("me/tiny", b"weights")

    first, second = sign(repository, subject, b"alice"), sign(repository, subject, b"bob")
    repository.put_manifest(first)

    assert repository.list_referrers(subject.digest) == [first.descriptor, second.descriptor]
    entries = repository.fetch_manifest(repository.resolve(f"sha256-{subject.digest.hex}")).manifests
    assert entries[0].artifact_type == "application/x.signature"
    assert dict(entries[0].annotations) == {"who": "alice"}


def test_concurrent_signers_keep_each_other(old: tuple[FakeRegistry, Repository]) -> None:
    fake, repository = old
    subject = fake.add_artifact("me/tiny", b"weights")
    failures: list[Exception] = []

    def sign_alone(name: str) -> None:
        own = connect(fake.address, retries=Retries()).repository("me/tiny")
        try:
            sign(own, subject, name.encode())
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=sign_alone, args=(f"signer-{number}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert len(repository.list_referrers(subject.digest)) == 6


@pytest.mark.parametrize("moment", ["PUT", "GET"], ids=["before we look again", "after we looked again"])
def test_an_entry_that_another_writer_dropped_is_written_again(
    old: tuple[FakeRegistry, Repository], moment: str
) -> None:
    fake, repository = old
    subject = fake.add_artifact("me/tiny", b"weights")
    tag = f"sha256-{subject.digest.hex}"
    theirs = image_index([Descriptor.of(b"theirs", subject.media_type)])
    written: list[str] = []

    def overwrite(method: str, path: str) -> None:
        # They read before we wrote, and write after it. We read an index under its digest.
        if method == "PUT" and path.endswith(tag):
            written.append(fake.tags["me/tiny", tag])
        if written and written[0] != "gone" and method == moment and path.endswith((tag, written[0])):
            fake.add_manifest("me/tiny", theirs, tag=tag)
            written.insert(0, "gone")

    fake.after_request = overwrite
    referrer = sign(repository, subject, b"alice")

    assert written[0] == "gone"
    assert {one.digest for one in repository.list_referrers(subject.digest)} == {
        referrer.digest,
        theirs.manifests[0].digest,
    }


def test_both_lists_are_read_and_each_entry_is_told_once(repository: Repository, fake: FakeRegistry) -> None:
    subject = fake.add_artifact("me/tiny", b"weights")
    listed = sign(repository, subject, b"alice")
    by_tag = Descriptor.of(b"older", listed.media_type)
    index = image_index([listed.descriptor, by_tag])
    fake.add_manifest("me/tiny", index, tag=f"sha256-{subject.digest.hex}")

    assert repository.list_referrers(subject.digest) == [listed.descriptor, by_tag]


def test_a_web_page_on_another_host_is_not_an_api(old: tuple[FakeRegistry, Repository]) -> None:
    # GHCR answers 303 to github.com.
    fake, repository = old
    subject = fake.add_artifact("me/tiny", b"weights")
    with FakeRegistry() as website:
        fake.fail("GET", "referrers", times=9, status=303, headers={"Location": f"{website.url}/packages"})

        referrer = sign(repository, subject, b"alice")

        assert repository.list_referrers(subject.digest) == [referrer.descriptor]
        assert website.requests == []


def test_a_tag_that_names_the_subject_itself_is_not_a_list(old: tuple[FakeRegistry, Repository]) -> None:
    # GitLab reads sha256-<hex> as the digest.
    fake, repository = old
    subject = fake.add_artifact("me/tiny", b"weights")
    fake.tags["me/tiny", f"sha256-{subject.digest.hex}"] = str(subject.digest)

    assert repository.list_referrers(subject.digest) == []


def test_nothing_refers_to_a_lonely_artifact(old: tuple[FakeRegistry, Repository]) -> None:
    fake, repository = old
    subject = fake.add_artifact("me/tiny", b"weights")

    assert repository.list_referrers(subject.digest) == []


def test_an_api_that_is_down_is_not_an_empty_list(repository: Repository, fake: FakeRegistry) -> None:
    subject = fake.add_artifact("me/tiny", b"weights")
    fake.fail("GET", "referrers", times=99, status=503)

    with pytest.raises(RegistryUnavailableError):
        repository.list_referrers(subject.digest)


def test_a_closed_repository_is_not_an_empty_list(open_registry: Callable[..., Registry]) -> None:
    with FakeRegistry(auth="basic") as fake:
        subject = fake.add_artifact("me/tiny", b"weights")

        with pytest.raises(AccessDeniedError):
            open_registry(fake).repository("me/tiny").list_referrers(subject.digest)


def test_a_deleted_referrer_leaves_the_fallback_list(old: tuple[FakeRegistry, Repository]) -> None:
    fake, repository = old
    subject = fake.add_artifact("me/tiny", b"weights")
    first, second = sign(repository, subject, b"alice"), sign(repository, subject, b"bob")

    repository.delete(str(first.digest))

    assert repository.list_referrers(subject.digest) == [second.descriptor]


def list_by_hand(fake: FakeRegistry, subject: Manifest, *entries: dict[str, object]) -> str:
    raw = json.dumps({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": entries}).encode()
    fake.manifests["me/tiny", str(Digest.of(raw))] = (IMAGE_INDEX, raw)
    fake.tags["me/tiny", f"sha256-{subject.digest.hex}"] = str(Digest.of(raw))
    return str(Digest.of(raw))


FOREIGN = {"mediaType": IMAGE_MANIFEST, "digest": "sha512:" + "a" * 128, "size": 9}


def test_an_entry_under_another_kind_of_digest_hides_no_other(old: tuple[FakeRegistry, Repository]) -> None:
    fake, repository = old
    subject = fake.add_artifact("me/tiny", b"weights")
    known = Descriptor.of(b"signature", IMAGE_MANIFEST)
    list_by_hand(fake, subject, FOREIGN, known.to_json())

    assert repository.list_referrers(subject.digest) == [known]


def test_a_list_that_cannot_be_written_again_is_not_overwritten(old: tuple[FakeRegistry, Repository]) -> None:
    fake, repository = old
    subject = fake.add_artifact("me/tiny", b"weights")
    listed = list_by_hand(fake, subject, FOREIGN)

    with pytest.raises(InvalidContentError, match="cannot be added to"):
        sign(repository, subject, b"alice")

    assert fake.tags["me/tiny", f"sha256-{subject.digest.hex}"] == listed


def test_an_artifact_under_the_tag_of_the_list_is_not_overwritten(old: tuple[FakeRegistry, Repository]) -> None:
    fake, repository = old
    subject = fake.add_artifact("me/tiny", b"weights")
    tag = f"sha256-{subject.digest.hex}"
    other = fake.add_artifact("me/tiny", b"another", tag=tag)

    with pytest.raises(InvalidContentError, match="is an artifact"):
        sign(repository, subject, b"alice")

    assert fake.tags["me/tiny", tag] == str(other.digest)
