"""Artifacts that are not what they seem: attacks 1 to 7."""

import gzip
import io
import json
import tarfile

import pytest
from evil_manifests import NAME, WEIGHTS, document_of, serve

from modelpack.oci.manifest import IMAGE_INDEX, Descriptor

RAW = "application/vnd.cncf.model.weight.v1.raw"
CONFIG = Descriptor.of(b'{"descriptor":{},"modelfs":{},"config":{}}', "application/vnd.cncf.model.config.v1+json")


def model_of(registry, content, media_type=RAW, path="m.gguf", **members):
    """A model whose only layer has this content, type and path."""
    registry.add_blob(b'{"descriptor":{},"modelfs":{},"config":{}}')
    layer = Descriptor.of(content, media_type, annotations={"org.cncf.model.filepath": path})
    registry.add_blob(content)
    return serve(registry, document_of(layer, config=CONFIG, **members))


def test_row_01_a_tampered_blob_or_manifest_is_refused_and_not_kept(registry, published, pull, store):
    genuine = registry.blobs[str(published.weights)]
    registry.blobs[str(published.weights)] = genuine[:-1] + b"!"
    refused = pull(published.reference)
    assert refused.code == 6
    assert refused.json("error")["error"]["code"] == "digest.mismatch"
    assert store().list() == []
    assert store().blobs.size(published.weights) is None

    registry.blobs[str(published.weights)] = genuine
    media_type, raw = registry.manifests[NAME, str(published.manifest.digest)]
    registry.manifests[NAME, str(published.manifest.digest)] = (media_type, raw.replace(b"tiny", b"tin!"))
    refused = pull(published.reference)
    assert refused.code == 6
    assert store().list() == []


@pytest.mark.parametrize(
    "path",
    [
        *("../../evil.gguf", "/etc/evil.gguf", "a/../../evil.gguf", "evil\0.gguf", "C:\\evil.gguf", "..\\evil.gguf"),
        *("evil.gguf.", "CON.gguf", ".hidden", "a\u0301.gguf", "", "x" * 300, "evil\n.gguf"),
    ],
)
def test_row_02_a_path_that_leaves_its_folder_is_refused(registry, path):
    from modelpack.catalog import read_model
    from modelpack.errors import InvalidContentError
    from modelpack.registry.client import connect
    from modelpack.registry.credentials import FixedCredentials

    model_of(registry, b"GGUF", path=path)
    repository = connect(registry.address, credentials=FixedCredentials(None)).repository(NAME)

    with pytest.raises(InvalidContentError):
        read_model(repository, repository.resolve("evil"))


def test_row_02_two_paths_that_are_one_on_some_system_are_refused(registry, pull, developer, tmp_path):
    registry.add_blob(b'{"descriptor":{},"modelfs":{},"config":{}}')
    layers = []
    for path, content in (("m.gguf", b"GGUF one"), ("M.GGUF", b"GGUF two")):
        registry.add_blob(content)
        layers.append(Descriptor.of(content, RAW, annotations={"org.cncf.model.filepath": path}))
    reference = serve(registry, document_of(*layers, config=CONFIG))

    assert pull(reference, unchecked=True).code in (0, 1)
    assert developer("inspect", reference).code == 1
    assert developer("run", reference, "hello").code != 0


def packed(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.mode = kind, link, mode
    return made


@pytest.mark.parametrize(
    "members",
    [
        [(entry("link", tarfile.SYMTYPE, "/"), b""), (entry("link/tmp/evil.gguf"), WEIGHTS)],
        [(entry("hard.gguf", tarfile.LNKTYPE, "/etc/passwd"), b"")],
        [(entry("device.gguf", tarfile.CHRTYPE), b"")],
        [(entry("../../evil.gguf"), WEIGHTS)],
    ],
    ids=["symlink", "hardlink", "device", "dotdot"],
)
def test_row_03_a_tar_layer_writes_nothing_outside_and_links_nothing(registry, pull, developer, tmp_path, members):
    reference = model_of(registry, packed(*members), "application/vnd.cncf.model.weight.v1.tar")
    pull(reference, unchecked=True)

    for command in (("unpack", reference, "-t", "out:v1"), ("run", reference, "hello")):
        ended = developer(*command)
        assert ended.code not in (0, 70), (command, ended.stdout, ended.stderr)
    assert not [path for path in tmp_path.rglob("*") if path.is_symlink()]
    assert not list(tmp_path.rglob("evil.gguf*"))


def test_row_04_a_decompression_bomb_is_not_unpacked(registry, pull, developer, tmp_path):
    bomb = gzip.compress(packed((entry("m.gguf"), bytes(64 << 20))))
    assert len(bomb) < 1 << 20
    reference = model_of(registry, bomb, "application/vnd.cncf.model.weight.v1.tar+gzip")
    assert pull(reference, unchecked=True).code in (0, 1, 6)

    for command in (("unpack", reference, "-t", "out:v1"), ("run", reference, "hello")):
        ended = developer(*command)
        assert ended.code not in (0, 70), (command, ended.stdout, ended.stderr)
    kept = sum(path.stat().st_size for path in (tmp_path / "developer-store").rglob("*") if path.is_file())
    assert kept < 4 << 20


def test_row_04_a_compressed_answer_is_no_way_round_the_limits(registry, published, pull, store):
    bomb = gzip.compress(bytes(256 << 20))
    gzipped = {"Content-Encoding": "gzip", "Content-Type": "application/vnd.oci.image.manifest.v1+json"}
    registry.fail("GET", "manifests", times=9, status=200, body=bomb, headers=gzipped)

    refused = pull(published.reference)

    assert refused.code in (1, 6), refused.stderr
    assert store().list() == []


@pytest.mark.parametrize(
    "digest", ["sha256:../../../etc/passwd", "sha256:" + "A" * 64, "../x", "sha256:" + "a" * 63 + "/", 7]
)
def test_row_05_a_digest_is_never_a_path(registry, pull, store, digest):
    document = document_of(Descriptor.of(b"x", RAW))
    document["layers"][0]["digest"] = digest

    refused = pull(serve(registry, document), unchecked=True)

    assert refused.code == 1
    assert refused.json("error")["error"]["code"] == "content.invalid"
    assert registry.count("GET", "passwd|blobs/[^s]") == 0
    assert store().list() == []


def test_row_06_sizes_are_believed_no_further_than_they_reach(registry, pull, store):
    content = b"GGUF" * 1000
    registry.add_blob(content)
    registry.add_blob(b'{"descriptor":{},"modelfs":{},"config":{}}')
    true = Descriptor.of(content, RAW, annotations={"org.cncf.model.filepath": "m.gguf"})
    for size in (len(content) - 1, len(content) + 1, 1 << 62):
        document = document_of(true, config=CONFIG)
        document["layers"][0]["size"] = size
        refused = pull(serve(registry, document), unchecked=True)
        assert refused.code in (1, 6, 8), (size, refused.stderr)
        assert store().list() == []
    assert pull(serve(registry, b" " * (5 << 20)), unchecked=True).code == 1
    assert pull(serve(registry, b'{"a":' * 100_000), unchecked=True).code == 1


def test_row_06_endless_referrers_are_not_read_to_their_end(registry, published, developer, key_pair):
    for number in range(250):
        registry.add_artifact(NAME, b"%d" % number, subject=published.manifest.descriptor)
    before = registry.count("GET", "manifests")

    checked = developer("verify", published.reference, "--trust-only", "--key", key_pair[1])

    assert checked.code == 0, checked.stderr
    assert registry.count("GET", "manifests") - before < 150


def test_row_07_a_manifest_that_reads_in_two_ways_is_refused(registry, pull, store):
    sound = document_of(Descriptor.of(b"x", RAW))
    registry.add_blob(b"x")
    both = {**sound, "manifests": [Descriptor.of(b"{}", IMAGE_INDEX).to_json()]}
    twice = json.dumps(sound).replace('"layers"', '"layers": [], "layers"').encode()

    for document, media_type in ((both, None), (twice, None), (sound, IMAGE_INDEX)):
        refused = pull(serve(registry, document, media_type=media_type), unchecked=True)
        assert refused.code in (1, 6), refused.stdout
        assert store().list() == []
