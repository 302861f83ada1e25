"""Copies between places, with everything that belongs to an artifact."""

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.registry import FakeRegistry

from modelpack.errors import DigestMismatchError, InvalidContentError, NotFoundError, RegistryRefusedError
from modelpack.mirror import mirror
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import (
    EMPTY_CONFIG,
    IMAGE_INDEX,
    IMAGE_MANIFEST,
    MAX_MANIFEST_SIZE,
    Descriptor,
    Manifest,
    image_index,
    image_manifest,
)
from modelpack.oci.target import read_whole
from modelpack.progress import SILENT, Step
from modelpack.registry.client import Repository, connect
from modelpack.registry.profiles import Profile
from modelpack.registry.retry import Retries
from modelpack.store import Store
from modelpack.transfer import copy

WEIGHTS = random.Random(9).randbytes(2_000_000)


@pytest.fixture
def here() -> Iterator[FakeRegistry]:
    with FakeRegistry() as registry:
        yield registry


@pytest.fixture
def there() -> Iterator[FakeRegistry]:
    with FakeRegistry() as registry:
        yield registry


def open_repository(registry: FakeRegistry) -> Repository:
    return connect(registry.address, retries=Retries(sleep=lambda _: None)).repository("me/tiny")


def legacy_tag(manifest: Manifest, suffix: str) -> str:
    return f"sha256-{manifest.digest.hex}.{suffix}"


def test_an_artifact_is_copied_with_its_blobs_and_the_tag_comes_last(here: FakeRegistry, there: FakeRegistry) -> None:
    manifest = here.add_artifact("me/tiny", WEIGHTS, b"licence", tag="v1")
    source, target = open_repository(here), open_repository(there)

    result = copy(source, target, source.resolve("v1"), tag="v2")

    assert there.blobs == here.blobs
    assert there.tags == {("me/tiny", "v2"): str(manifest.digest)}
    assert (result.blobs_copied, result.blobs_skipped) == (3, 0)
    assert result.bytes_copied == len(WEIGHTS) + len(b"licence") + 2
    assert there.requests[-1].path == "/v2/me/tiny/manifests/v2"


def test_a_second_copy_sends_no_blob(here: FakeRegistry, there: FakeRegistry) -> None:
    here.add_artifact("me/tiny", WEIGHTS, tag="v1")
    source, target = open_repository(here), open_repository(there)
    copy(source, target, source.resolve("v1"), tag="v1")
    there.requests.clear()

    result = copy(source, target, source.resolve("v1"), tag="v1")

    assert (result.blobs_copied, result.blobs_skipped, result.bytes_copied) == (0, 2, 0)
    assert there.count("POST") == 0


def test_without_a_tag_nothing_is_tagged(here: FakeRegistry, there: FakeRegistry) -> None:
    manifest = here.add_artifact("me/tiny", WEIGHTS)

    copy(open_repository(here), open_repository(there), manifest.descriptor, tag=None)

    assert there.tags == {}
    assert ("me/tiny", str(manifest.digest)) in there.manifests


def test_an_index_brings_what_it_lists(here: FakeRegistry, there: FakeRegistry) -> None:
    variants = [here.add_artifact("me/tiny", text) for text in (b"q4", b"q8")]
    index = image_index([variant.descriptor for variant in variants])
    here.add_manifest("me/tiny", index, tag="all")
    source = open_repository(here)

    copy(source, open_repository(there), source.resolve("all"), tag="all")

    assert set(there.manifests) == {("me/tiny", str(one.digest)) for one in (*variants, index)}
    puts = [one.path for one in there.requests if one.method == "PUT" and "/manifests/" in one.path]
    assert [path.rpartition("/")[2] for path in puts] == [*(str(one.digest) for one in (*variants, index)), "all"]


def test_signatures_and_what_refers_to_them_come_along(here: FakeRegistry, there: FakeRegistry) -> None:
    model = here.add_artifact("me/tiny", WEIGHTS, tag="v1")
    signature = here.add_artifact("me/tiny", b"signature", subject=model.descriptor)
    stamp = here.add_artifact("me/tiny", b"timestamp", subject=signature.descriptor)
    here.add_artifact("me/tiny", b"old signature", tag=legacy_tag(model, "sig"))
    here.add_artifact("me/tiny", b"old attestation", tag=legacy_tag(model, "att"))
    source = open_repository(here)

    result = copy(source, open_repository(there), source.resolve("v1"), tag="v1")

    assert result.referrers_copied == 4
    assert there.tags == here.tags
    for referrer in (signature, stamp):
        assert ("me/tiny", str(referrer.digest)) in there.manifests


class Warned:
    """A Progress that keeps what a person must not miss."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.step, self.note = SILENT.step, SILENT.note

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def test_more_referrers_than_verification_reads_are_left_behind_with_a_warning(
    here: FakeRegistry, there: FakeRegistry
) -> None:
    model = here.add_artifact("me/tiny", WEIGHTS, tag="v1")
    for number in range(120):
        here.add_artifact("me/tiny", b"rubbish %d" % number, subject=model.descriptor)
    kind = "application/vnd.dev.sigstore.bundle.v0.3+json"
    signature = here.add_artifact("me/tiny", b"bundle", subject=model.descriptor, artifact_type=kind)
    source, progress = open_repository(here), Warned()

    result = copy(source, open_repository(there), source.resolve("v1"), tag="v1", progress=progress)

    assert (result.referrers_copied, len(result.referrers_left)) == (100, 21)
    assert ("me/tiny", str(signature.digest)) in there.manifests, "what may be a signature goes first"
    assert progress.warnings == [f"21 that refer to {model.digest} are too many or too large: left behind"]


def test_a_referrer_that_outweighs_its_artifact_is_left_behind(here: FakeRegistry, there: FakeRegistry) -> None:
    model = here.add_artifact("me/tiny", WEIGHTS, tag="v1")
    small = here.add_artifact("me/tiny", b"small", subject=model.descriptor)
    for subject, tag in ((model.descriptor, None), (None, legacy_tag(model, "sig"))):
        heavy = Descriptor(media_type="application/octet-stream", digest=Digest.of(b"?"), size=1 << 40)
        here.add_manifest("me/tiny", image_manifest(config=EMPTY_CONFIG, layers=[heavy], subject=subject), tag=tag)
    source = open_repository(here)

    result = copy(source, open_repository(there), source.resolve("v1"), tag="v1")

    assert (result.referrers_copied, len(result.referrers_left)) == (1, 2)
    assert {digest for _, digest in there.manifests} == {str(model.digest), str(small.digest)}


def padded(manifest: Manifest, size: int) -> Manifest:
    return Manifest.parse(manifest.raw + b" " * (size - len(manifest.raw)), media_type=manifest.media_type)


def test_manifests_that_fill_the_memory_are_left_behind(here: FakeRegistry, there: FakeRegistry) -> None:
    model = here.add_artifact("me/tiny", WEIGHTS, tag="v1")
    here.add_blob(b"{}")
    for number in range(12):
        about = {"number": str(number)}
        referrer = image_manifest(config=EMPTY_CONFIG, layers=[], subject=model.descriptor, annotations=about)
        here.add_manifest("me/tiny", padded(referrer, MAX_MANIFEST_SIZE))
    source = open_repository(here)

    result = copy(source, open_repository(there), source.resolve("v1"), tag="v1")

    assert (result.referrers_copied, len(result.referrers_left)) == (8, 4)


def test_an_index_of_manifests_that_fill_the_memory_is_refused(here: FakeRegistry, there: FakeRegistry) -> None:
    large = [
        padded(image_manifest(config=EMPTY_CONFIG, layers=[], annotations={"number": str(number)}), MAX_MANIFEST_SIZE)
        for number in range(33)
    ]
    for one in large:
        here.add_manifest("me/tiny", one)
    here.add_manifest("me/tiny", image_index([one.descriptor for one in large]), tag="all")
    source = open_repository(here)

    with pytest.raises(InvalidContentError, match="have more than"):
        copy(source, open_repository(there), source.resolve("all"), tag="all")
    assert there.manifests == {}


def test_referrers_stay_behind_when_told_so(here: FakeRegistry, there: FakeRegistry) -> None:
    model = here.add_artifact("me/tiny", WEIGHTS, tag="v1")
    here.add_artifact("me/tiny", b"signature", subject=model.descriptor)
    source = open_repository(here)

    result = copy(source, open_repository(there), source.resolve("v1"), tag="v1", referrers=False)

    assert result.referrers_copied == 0
    assert len(there.manifests) == 1


def test_what_is_listed_as_a_referrer_but_is_none_stays_behind(here: FakeRegistry, there: FakeRegistry) -> None:
    here.referrers_api = False
    model = here.add_artifact("me/tiny", WEIGHTS, tag="v1")
    other = here.add_artifact("me/tiny", b"another model")
    replayed = here.add_artifact("me/tiny", b"signature", subject=other.descriptor)
    gone = Descriptor.of(b"gone", model.media_type)
    index = image_index([other.descriptor, replayed.descriptor, gone])
    here.add_manifest("me/tiny", index, tag=f"sha256-{model.digest.hex}")
    source = open_repository(here)

    result = copy(source, open_repository(there), source.resolve("v1"), tag="v1")

    assert result.referrers_copied == 0
    assert set(there.manifests) == {("me/tiny", str(model.digest))}


def test_a_registry_without_the_api_gets_the_fallback_tag(here: FakeRegistry, there: FakeRegistry) -> None:
    there.referrers_api = False
    model = here.add_artifact("me/tiny", WEIGHTS, tag="v1")
    signature = here.add_artifact("me/tiny", b"signature", subject=model.descriptor)
    source, target = open_repository(here), open_repository(there)

    copy(source, target, source.resolve("v1"), tag="v1")

    assert [one.digest for one in target.list_referrers(model.digest)] == [signature.digest]


def test_layers_that_nobody_may_distribute_stay_where_they_are(here: FakeRegistry, there: FakeRegistry) -> None:
    elsewhere = "application/vnd.oci.image.layer.nondistributable.v1.tar"
    config, layer = here.add_blob(b"{}"), Descriptor(elsewhere, Digest.of(b"elsewhere"), 9)
    here.add_manifest("me/tiny", image_manifest(config=config, layers=[layer], artifact_type="a/b"), tag="v1")
    source = open_repository(here)

    copy(source, open_repository(there), source.resolve("v1"), tag="v1")

    assert list(there.blobs) == [str(config.digest)]


def test_signatures_added_at_the_target_are_kept(here: FakeRegistry, there: FakeRegistry) -> None:
    model = here.add_artifact("me/tiny", WEIGHTS, tag="v1")
    tag = legacy_tag(model, "sig")
    here.add_artifact("me/tiny", b"first", tag=tag)
    more = there.add_artifact("me/tiny", b"first", b"second", tag=tag)
    source = open_repository(here)

    copy(source, open_repository(there), source.resolve("v1"), tag="v1")

    assert there.tags["me/tiny", tag] == str(more.digest)


def signatures(*signed: tuple[Descriptor, str]) -> Manifest:
    """What cosign keeps under its tag: payloads, and the signature of each beside it."""
    layers = [
        Descriptor(payload.media_type, payload.digest, payload.size, {"dev.cosignproject.cosign/signature": signature})
        for payload, signature in signed
    ]
    return image_manifest(config=EMPTY_CONFIG, layers=layers)


def signed_with(registry: FakeRegistry, tag: str) -> list[tuple[Digest, str]]:
    _, raw = registry.manifests["me/tiny", registry.tags["me/tiny", tag]]
    return [
        (layer.digest, layer.annotations["dev.cosignproject.cosign/signature"]) for layer in Manifest.parse(raw).layers
    ]


def test_signatures_of_both_sides_are_merged(here: FakeRegistry, there: FakeRegistry) -> None:
    model = here.add_artifact("me/tiny", WEIGHTS, tag="v1")
    tag = legacy_tag(model, "sig")
    ours, theirs = here.add_blob(b"ours"), there.add_blob(b"theirs")
    here.add_manifest("me/tiny", signatures((ours, "alice")), tag=tag)
    there.add_manifest("me/tiny", signatures((theirs, "bob")), tag=tag)
    source, target = open_repository(here), open_repository(there)

    result = mirror(source, target, source.resolve("v1"), tag="v1")

    assert signed_with(there, tag) == [(theirs.digest, "bob"), (ours.digest, "alice")]
    assert str(ours.digest) in there.blobs
    assert result.referrers_copied == 1

    there.requests.clear()
    mirror(source, target, source.resolve("v1"), tag="v1")
    assert there.count("PUT", tag) == 0


def test_two_keys_that_signed_the_same_payload_are_two_signatures(here: FakeRegistry, there: FakeRegistry) -> None:
    model = here.add_artifact("me/tiny", WEIGHTS, tag="v1")
    tag = legacy_tag(model, "sig")
    payload = here.add_blob(b"payload")
    there.add_blob(b"payload")
    here.add_manifest("me/tiny", signatures((payload, "alice")), tag=tag)
    there.add_manifest("me/tiny", signatures((payload, "bob")), tag=tag)
    source = open_repository(here)

    copy(source, open_repository(there), source.resolve("v1"), tag="v1")

    assert [signature for _, signature in signed_with(there, tag)] == ["bob", "alice"]


def test_signatures_that_say_more_than_the_target_keep_their_digest(here: FakeRegistry, there: FakeRegistry) -> None:
    model = here.add_artifact("me/tiny", WEIGHTS, tag="v1")
    tag = legacy_tag(model, "sig")
    first, second = here.add_blob(b"first"), here.add_blob(b"second")
    there.add_blob(b"first")
    more = here.add_manifest("me/tiny", signatures((first, "alice"), (second, "bob")), tag=tag)
    there.add_manifest("me/tiny", signatures((first, "alice")), tag=tag)
    source = open_repository(here)

    copy(source, open_repository(there), source.resolve("v1"), tag="v1")

    assert there.tags["me/tiny", tag] == str(more.digest)


def test_a_tag_with_as_many_signatures_as_anybody_reads_stays(here: FakeRegistry, there: FakeRegistry) -> None:
    model = here.add_artifact("me/tiny", WEIGHTS, tag="v1")
    tag = legacy_tag(model, "sig")
    payload = here.add_blob(b"payload")
    there.add_blob(b"payload")
    here.add_manifest("me/tiny", signatures((payload, "alice")), tag=tag)
    full = there.add_manifest("me/tiny", signatures(*((payload, f"{number}") for number in range(100))), tag=tag)
    source = open_repository(here)

    mirror(source, open_repository(there), source.resolve("v1"), tag="v1")

    assert there.tags["me/tiny", tag] == str(full.digest)


def test_a_heap_of_signatures_does_not_push_out_the_one_that_was_there(here: FakeRegistry, there: FakeRegistry) -> None:
    model = here.add_artifact("me/tiny", WEIGHTS, tag="v1")
    tag = legacy_tag(model, "sig")
    payload = here.add_blob(b"payload")
    there.add_blob(b"payload")
    heap = [(payload, f"{number}") for number in range(120)]
    here.add_manifest("me/tiny", signatures(*heap, (payload, "alice")), tag=tag)
    there.add_manifest("me/tiny", signatures((payload, "alice")), tag=tag)
    source = open_repository(here)

    mirror(source, open_repository(there), source.resolve("v1"), tag="v1")

    assert signed_with(there, tag)[0] == (payload.digest, "alice")
    assert len(signed_with(there, tag)) == 100


@pytest.mark.parametrize(
    ("media_type", "raw"),
    [(IMAGE_INDEX, image_index([]).raw), (IMAGE_MANIFEST, b" " * MAX_MANIFEST_SIZE + image_index([]).raw)],
    ids=["an index", "too large"],
)
def test_what_cannot_be_signatures_at_the_target_hinders_no_copy(
    here: FakeRegistry, there: FakeRegistry, media_type: str, raw: bytes
) -> None:
    model = here.add_artifact("me/tiny", WEIGHTS, tag="v1")
    tag = legacy_tag(model, "sig")
    payload = here.add_blob(b"payload")
    here.add_manifest("me/tiny", signatures((payload, "alice")), tag=tag)
    there.tags["me/tiny", tag] = str(Digest.of(raw))
    there.manifests["me/tiny", str(Digest.of(raw))] = (media_type, raw)
    source = open_repository(here)

    copy(source, open_repository(there), source.resolve("v1"), tag="v1")

    assert there.tags["me/tiny", "v1"] == str(model.digest)
    assert signed_with(there, tag) == [(payload.digest, "alice")]


@pytest.mark.parametrize(
    ("media_type", "raw"),
    [
        (IMAGE_INDEX, image_index([]).raw),
        (IMAGE_MANIFEST, b" " * MAX_MANIFEST_SIZE + image_index([]).raw),
        (IMAGE_MANIFEST, b"no JSON"),
    ],
    ids=["an index", "too large", "no manifest"],
)
def test_what_cannot_be_signatures_at_the_source_hinders_no_copy(
    here: FakeRegistry, there: FakeRegistry, media_type: str, raw: bytes
) -> None:
    here.referrers_api = False
    model = here.add_artifact("me/tiny", WEIGHTS, tag="v1")
    tag = legacy_tag(model, "sig")
    attestation = here.add_artifact("me/tiny", b"attestation", tag=legacy_tag(model, "att"))
    here.tags["me/tiny", tag] = str(Digest.of(raw))
    here.manifests["me/tiny", str(Digest.of(raw))] = (media_type, raw)
    source, target = open_repository(here), open_repository(there)

    result = mirror(source, target, source.resolve("v1"), tag="v1")

    assert result.referrers_copied == 1
    assert there.tags == {
        ("me/tiny", "v1"): str(model.digest),
        ("me/tiny", legacy_tag(model, "att")): str(attestation.digest),
    }


def test_a_referrer_that_cannot_be_read_is_left_behind_with_a_warning(here: FakeRegistry, there: FakeRegistry) -> None:
    here.referrers_api = False
    model = here.add_artifact("me/tiny", WEIGHTS, tag="v1")
    signature = here.add_artifact("me/tiny", b"signature", subject=model.descriptor)
    broken = here.add_blob(b"no JSON", IMAGE_MANIFEST)
    here.manifests["me/tiny", str(broken.digest)] = (IMAGE_MANIFEST, b"no JSON")
    huge = Descriptor(IMAGE_MANIFEST, Digest.of(b"huge"), MAX_MANIFEST_SIZE + 1)
    # An index that is attached, and lists what nobody has.
    gone = Descriptor.of(b"gone", IMAGE_MANIFEST)
    hollow = image_index([gone], subject=model.descriptor)
    here.add_manifest("me/tiny", hollow)
    here.add_manifest(
        "me/tiny",
        image_index([signature.descriptor, broken, huge, hollow.descriptor]),
        tag=f"sha256-{model.digest.hex}",
    )
    source, target, progress = open_repository(here), open_repository(there), Warned()

    result = mirror(source, target, source.resolve("v1"), tag="v1", progress=progress)

    assert set(there.manifests) == {("me/tiny", str(model.digest)), ("me/tiny", str(signature.digest))}
    assert result.referrers_left == {broken.digest, huge.digest, hollow.digest}
    assert progress.warnings == [f"3 that refer to {model.digest} cannot be read: left behind"]


def test_a_pull_that_breaks_leaves_the_tag_alone_and_goes_on_later(here: FakeRegistry, tmp_path: Path) -> None:
    manifest = here.add_artifact("me/tiny", WEIGHTS, tag="v1")
    weights = manifest.layers[0]
    here.fail("GET", f"blobs/{weights.digest}", cut_after=1_500_000)
    here.fail("GET", f"blobs/{weights.digest}", times=99, status=404)
    source, target = open_repository(here), Store.open(tmp_path / "store").repository(open_repository(here).name)

    with pytest.raises(NotFoundError):
        copy(source, target, source.resolve("v1"), tag="v1")
    assert target.list_tags() == []

    here.faults.clear()
    here.requests.clear()
    copy(source, target, source.resolve("v1"), tag="v1")

    assert target.list_tags() == ["v1"]
    assert read_whole(target, weights, limit=1 << 22) == WEIGHTS
    resumed = [one for one in here.requests if one.path.endswith(str(weights.digest))]
    assert [one.headers.get("range") for one in resumed] == ["bytes=1500000-1999999"]


def test_a_pull_of_changed_bytes_leaves_nothing(here: FakeRegistry, tmp_path: Path) -> None:
    manifest = here.add_artifact("me/tiny", WEIGHTS, tag="v1")
    here.fail("GET", f"blobs/{manifest.layers[0].digest}", change_body=lambda body: b"!" + body[1:])
    source, target = open_repository(here), Store.open(tmp_path / "store").repository("tiny")

    with pytest.raises(DigestMismatchError):
        copy(source, target, source.resolve("v1"), tag="v1")
    assert target.list_tags() == []
    assert not target.has_blob(manifest.layers[0])


def test_one_failure_stops_the_other_blobs(here: FakeRegistry, there: FakeRegistry) -> None:
    here.add_artifact("me/tiny", *(bytes([number]) * 1000 for number in range(60)), tag="v1")
    there.fail("POST", "uploads", skip=4, times=99, status=400)
    source = open_repository(here)

    with pytest.raises(RegistryRefusedError):
        copy(source, open_repository(there), source.resolve("v1"), tag="v1", jobs=2)
    assert there.count("POST") < 15
    assert there.tags == {}


class GivesUp:
    """A person who presses Ctrl-C when the first bytes have come."""

    note = warn = lambda self, message: None

    def __init__(self) -> None:
        self.started = threading.Event()

    def step(self, label: str, *, total: int | None = None, unit: str = "B") -> Step:
        self.started.set()
        return SILENT.step(label, total=total, unit=unit)


def test_an_interrupted_copy_ends_at_once(here: FakeRegistry, there: FakeRegistry) -> None:
    here.add_artifact("me/tiny", WEIGHTS, tag="v1")
    here.fail("GET", "blobs", times=99, stall_after=1_000)
    source, person = open_repository(here), GivesUp()

    def press_ctrl_c() -> None:
        person.started.wait()
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    descriptor = source.resolve("v1")
    threading.Thread(target=press_ctrl_c, daemon=True).start()
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        copy(source, open_repository(there), descriptor, tag="v1", progress=person)
    assert time.monotonic() - begun < 3
    assert there.tags == {}


def test_an_index_nested_without_end_is_refused(here: FakeRegistry, there: FakeRegistry) -> None:
    manifest = here.add_artifact("me/tiny", b"weights")
    for _ in range(8):
        manifest = image_index([manifest.descriptor])
        here.add_manifest("me/tiny", manifest)

    with pytest.raises(InvalidContentError, match="nested deeper"):
        copy(open_repository(here), open_repository(there), manifest.descriptor, tag="v1")


def test_what_hangs_on_what_hangs_on_it_without_end_is_left_behind(here: FakeRegistry, there: FakeRegistry) -> None:
    """Whoever may attach something to a model must not be able to keep others from copying it."""
    last = here.add_artifact("me/tiny", b"weights", tag="v1").descriptor
    chain = [last := here.add_artifact("me/tiny", bytes([number]), subject=last).descriptor for number in range(12)]
    source, target = open_repository(here), open_repository(there)

    result = mirror(source, target, source.resolve("v1"), tag="v1")

    assert (result.referrers_copied, result.referrers_left) == (7, {chain[7].digest})
    assert "v1" in target.list_tags()


def test_what_was_attached_and_then_taken_apart_is_left_behind(here: FakeRegistry, there: FakeRegistry) -> None:
    model = here.add_artifact("me/tiny", b"weights", tag="v1")
    sound = here.add_artifact("me/tiny", b"signature", subject=model.descriptor)
    apart = here.add_artifact("me/tiny", b"gone", b"signature", subject=model.descriptor)
    legacy = f"sha256-{model.digest.hex}.sig"
    here.add_artifact("me/tiny", b"gone too", tag=legacy)
    for content in (b"gone", b"gone too"):
        del here.blobs[str(Digest.of(content))]
    source, target = open_repository(here), open_repository(there)

    result = mirror(source, target, source.resolve("v1"), tag="v1")

    assert [one.digest for one in target.list_referrers(model.digest)] == [sound.digest]
    assert apart.digest in result.referrers_left
    assert result.blobs_absent >= {Digest.of(b"gone")}
    assert "v1" in target.list_tags()

    del here.blobs[str(Digest.of(b"weights"))], there.blobs[str(Digest.of(b"weights"))]
    with pytest.raises(NotFoundError):
        copy(source, target, source.resolve("v1"), tag="v1")


class Heard:
    """What a progress bar would have been told."""

    note = warn = lambda self, message: None

    def __init__(self) -> None:
        self.labels: dict[str, int | None] = {}

    def step(self, label: str, *, total: int | None = None, unit: str = "B") -> Step:
        self.labels[label] = total
        return SILENT.step(label)


def test_each_blob_is_one_step_with_its_size(here: FakeRegistry, there: FakeRegistry) -> None:
    manifest = here.add_artifact("me/tiny", WEIGHTS, tag="v1")
    source, heard = open_repository(here), Heard()

    copy(source, open_repository(there), source.resolve("v1"), tag="v1", progress=heard)

    assert heard.labels == {blob.digest.short: blob.size for blob in manifest.blobs}


def test_a_blob_that_the_registry_will_not_take_is_known_before_anything_is_sent(
    here: FakeRegistry, there: FakeRegistry
) -> None:
    here.add_artifact("me/tiny", WEIGHTS, b"licence", tag="v1")
    source = open_repository(here)
    narrow = Profile("a narrow registry", max_layer=len(WEIGHTS) - 1)
    target = connect(there.address, profile=narrow).repository("me/tiny")

    with pytest.raises(RegistryRefusedError, match="a narrow registry takes layers of at most 1999999 bytes"):
        copy(source, target, source.resolve("v1"), tag="v1")
    assert there.count("POST") == there.count("PUT") == 0


def test_large_blobs_are_read_over_several_connections_but_no_more_than_jobs(
    here: FakeRegistry, tmp_path: Path
) -> None:
    weights = random.Random(10).randbytes(70 << 20)
    manifest = here.add_artifact("me/tiny", weights, *(bytes([number]) * 1000 for number in range(8)), tag="v1")
    source = open_repository(here)
    target = Store.open(tmp_path / "store").repository("tiny")
    descriptor = source.resolve("v1")
    busy, most = set[int](), [0]
    here.before_answer = lambda client: (busy.add(client), most.append(len(busy)))  # type: ignore[assignment]
    here.after_answer = busy.discard

    result = copy(source, target, descriptor, tag="v1", jobs=3)

    assert 2 <= max(most) <= 3
    assert (result.bytes_copied, result.bytes_resumed) == (sum(blob.size for blob in manifest.blobs), 0)
    ranges = [one for one in here.requests if "range" in one.headers]
    assert len(ranges) == 5
