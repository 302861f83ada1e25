"""Artifacts of other tools, made by hand from the media types that their sources and specifications name."""

import io
import itertools
import json
import tarfile

import pytest
from fakes.tars import entry, make_tar

from modelpack import catalog, schemas
from modelpack.errors import InvalidContentError, NotFoundError, UnsupportedError
from modelpack.formats import CODECS, FileKind, codec_for, codec_named
from modelpack.formats.model import flat_name
from modelpack.oci.manifest import (
    DOCKER_MANIFEST,
    EMPTY_CONFIG,
    Descriptor,
    image_index,
    image_manifest,
)
from modelpack.oci.reference import Reference
from modelpack.store import Store
from modelpack.unpack import find_unpacked, unpack

GGUF = b"GGUF" + bytes(range(256)) * 40
KINDS = ("weight", "weight.config", "doc", "code", "dataset")
PACKINGS = ("raw", "tar", "tar+gzip", "tar+zstd")
CNCF_CONFIG = {
    "descriptor": {"name": "tiny", "family": "llama", "licenses": ["Apache-2.0"]},
    "config": {"architecture": "llama", "format": "gguf", "paramSize": "1.1b", "quantization": "Q4_K_M"},
    "modelfs": {"type": "layers", "diffIds": []},
}


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "store")


def put(store, *layers, config, config_type, artifact_type=None, media_type=None, annotations=None):
    """An artifact in the store; layers are (media type, content, annotations)."""
    raw = config if isinstance(config, bytes) else json.dumps(config).encode()
    more = {"media_type": media_type} if media_type else {}
    manifest = image_manifest(
        config=store.write_small(raw, config_type),
        layers=[
            Descriptor(blob.media_type, blob.digest, blob.size, named)
            for kind, content, named in layers
            for blob in [store.write_small(content, kind)]
        ],
        artifact_type=artifact_type,
        annotations=annotations,
        **more,
    )
    return store.repository("foreign").put_manifest(manifest, tag="v1")


def read(store, descriptor):
    return catalog.read_model(store.repository("foreign"), descriptor)[1]


def unpacked(store, descriptor, **options):
    model = read(store, descriptor)
    return unpack(store, store.repository("foreign"), descriptor, model, **options).model


def contents(store, model):
    return {file.name: store.blob_path(file.digest).read_bytes() for file in model.files}


def named(path, org="cncf"):
    return {f"org.{org}.model.filepath": path}


def packed(packing, *entries):
    content = make_tar(*entries)
    if packing == "tar+gzip":
        return make_tar(*entries, mode="w:gz")
    if packing == "tar+zstd":
        return pytest.importorskip("backports.zstd").compress(content)
    return content


def put_cncf(store, *layers, org="cncf", config=CNCF_CONFIG):
    return put(
        store,
        *layers,
        config=config,
        config_type=f"application/vnd.{org}.model.config.v1+json",
        artifact_type=f"application/vnd.{org}.model.manifest.v1+json",
    )


@pytest.mark.parametrize(("kind", "packing"), list(itertools.product(KINDS, PACKINGS)))
@pytest.mark.parametrize("org", ["cncf", "cnai"])
def test_all_twenty_layer_types_are_read_and_those_before_they_were_renamed(store, kind, packing, org):
    name = "file.gguf" if kind == "weight" else "file.txt"
    content = GGUF if packing == "raw" else packed(packing, entry(name, GGUF))
    weights = (f"application/vnd.{org}.model.weight.v1.raw", GGUF + b"w", named("model.gguf", org))
    layer = (f"application/vnd.{org}.model.{kind}.v1.{packing}", content, named(name, org))
    made = put_cncf(store, weights, layer, org=org)

    model = read(store, made)
    if packing != "raw":
        assert [(one.kind, one.packing) for one in model.packed] == [(FileKind(kind), packing)]
        model = unpacked(store, made)

    assert contents(store, model) == {"model.gguf": GGUF + b"w", name: GGUF}
    assert [file.kind for file in model.files] == [FileKind.WEIGHT, FileKind(kind)]
    assert (model.architecture, model.quantization, model.licenses) == ("llama", "Q4_K_M", ("Apache-2.0",))


@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
def test_the_names_that_docker_model_runner_has_for_raw_weights_are_read(store, kind):
    made = put_cncf(store, (f"application/vnd.cncf.model.weight.v1.{kind}", GGUF, named(f"m.{kind}")))

    assert [file.name for file in read(store, made).weights] == [f"m.{kind}"]


def test_code_of_one_name_in_two_folders_stays_apart_and_is_only_listed(store):
    made = put_cncf(
        store,
        ("application/vnd.cncf.model.weight.v1.raw", GGUF, named("models/m.gguf")),
        ("application/vnd.cncf.model.code.v1.raw", b"1", named("a/__init__.py")),
        ("application/vnd.cncf.model.code.v1.raw", b"2", named("b/__init__.py")),
    )

    assert [file.name for file in read(store, made).files] == ["m.gguf", "a____init__.py", "b____init__.py"]


def test_a_packing_that_nobody_defined_is_a_clear_no(store):
    made = put_cncf(store, ("application/vnd.cncf.model.weight.v1.tar+xz", b"x", named("m")))
    with pytest.raises(InvalidContentError, match=r"tar\+xz"):
        read(store, made)


@pytest.mark.parametrize("version", ["v0.1", "v0.2"])
def test_docker_model_runner_of_both_versions_is_read(store, version):
    config = {"config": {"format": "gguf", "quantization": "MOSTLY_Q4_K_M", "context_size": 8192}, "descriptor": {}}
    made = put(
        store,
        ("application/vnd.docker.ai.gguf.v3", GGUF, {}),
        ("application/vnd.docker.ai.mmproj", b"GGUF projector", named("mmproj-m.gguf")),
        ("application/vnd.docker.ai.chat.template.jinja", b"{{ m }}", named("template.jinja")),
        ("application/vnd.docker.ai.license", b"MIT", {}),
        ("application/vnd.docker.ai.model.file", b"{}", named("sub/config.json")),
        config=config,
        config_type=f"application/vnd.docker.ai.model.config.{version}+json",
    )

    model = read(store, made)

    assert [(file.name, file.kind) for file in model.files] == [
        ("model-00001.gguf", FileKind.WEIGHT),
        ("mmproj-m.gguf", FileKind.WEIGHT_CONFIG),
        ("template.jinja", FileKind.WEIGHT_CONFIG),
        ("file-4", FileKind.DOC),
        ("config.json", FileKind.WEIGHT_CONFIG),
    ]
    assert (model.quantization, model.context_length) == ("Q4_K_M", 8192)
    assert catalog.weights_path(store, model).read_bytes() == GGUF


def test_a_directory_that_docker_packed_is_unpacked(store):
    made = put(
        store,
        ("application/vnd.docker.ai.gguf.v3", GGUF, {}),
        ("application/vnd.docker.ai.dir.tar", make_tar(entry("extra/tokenizer.json", b"{}")), {}),
        config={"config": {}, "descriptor": {}},
        config_type="application/vnd.docker.ai.model.config.v0.1+json",
    )

    assert contents(store, unpacked(store, made)) == {"model-00001.gguf": GGUF, "tokenizer.json": b"{}"}


OLLAMA_CONFIG = {
    "model_format": "gguf",
    "model_family": "llama",
    "model_type": "1.1B",
    "file_type": "Q4_0",
    "rootfs": {"type": "layers", "diff_ids": []},
}


@pytest.mark.parametrize("media_type", [DOCKER_MANIFEST, None], ids=["docker", "oci"])
def test_ollamas_models_are_read_with_all_their_parts(store, media_type):
    parts = {"template": b"{{ .Prompt }}", "system": b"Be kind.", "params": b"{}", "license": b"MIT"}
    made = put(
        store,
        ("application/vnd.ollama.image.model", GGUF, {}),
        *((f"application/vnd.ollama.image.{kind}", content, {}) for kind, content in parts.items()),
        ("application/vnd.ollama.image.license", b"Llama", {}),
        config=OLLAMA_CONFIG,
        config_type="application/vnd.docker.container.image.v1+json",
        media_type=media_type,
    )

    model = read(store, made)

    assert [file.name for file in model.files] == [
        "model.gguf", "template", "system.txt", "params.json", "LICENSE", "LICENSE-5",
    ]  # fmt: skip
    assert (model.name, model.quantization, model.parameters) == ("llama", "Q4_0", "1.1B")
    assert catalog.weights_path(store, model).read_bytes() == GGUF


def test_a_model_of_ollama_in_single_tensors_is_a_clear_no(store):
    made = put(
        store,
        ("application/vnd.ollama.image.tensor", b"x", {}),
        config=OLLAMA_CONFIG,
        config_type="application/vnd.docker.container.image.v1+json",
    )
    with pytest.raises(UnsupportedError, match="each tensor"):
        read(store, made)


KITFILE = {
    "manifestVersion": "1.0.0",
    "package": {"name": "kit", "version": "1", "license": "Apache-2.0"},
    "model": {"name": "m", "path": "sub/m-Q4_K_M.gguf", "parts": [{"path": "lora.gguf", "type": "lora adapter"}]},
    "docs": [{"path": "README.md"}],
    "code": [{"path": "src"}],
}
KIT = "application/vnd.kitops.modelkit."


def put_kit(store, *layers):
    return put(
        store,
        *layers,
        config=KITFILE,
        config_type=f"{KIT}config.v1+json",
        artifact_type=f"{KIT}manifest.v1+json",
    )


@pytest.mark.parametrize("packing", PACKINGS)
def test_modelkits_are_read_in_the_order_of_their_kitfile(store, packing):
    content = GGUF if packing == "raw" else packed(packing, entry("sub/m-Q4_K_M.gguf", GGUF))
    made = put_kit(
        store,
        (f"{KIT}model.v1.{packing}", content, {}),
        (f"{KIT}modelpart.v1.raw", b"GGUF lora", {}),
        (f"{KIT}docs.v1.raw", b"# m", {}),
        (f"{KIT}code.v1.tar", make_tar(entry("src/run.py", b"run()")), {}),
    )

    model = unpacked(store, made)

    assert {file.name: file.kind for file in model.files} == {
        "m-Q4_K_M.gguf": FileKind.WEIGHT,
        "lora.gguf": FileKind.WEIGHT_CONFIG,
        "README.md": FileKind.DOC,
        "src__run.py": FileKind.CODE,
    }
    assert contents(store, model)["m-Q4_K_M.gguf"] == GGUF
    assert (model.name, model.version, model.licenses) == ("m", "1", ("Apache-2.0",))
    assert catalog.weights_path(store, model).read_bytes() == GGUF


def test_a_compressed_file_that_is_no_archive_is_unpacked(store):
    import gzip

    made = put_kit(store, (f"{KIT}model.v1.raw+gzip", gzip.compress(GGUF), {}))

    assert contents(store, unpacked(store, made)) == {"m-Q4_K_M.gguf": GGUF}


def test_a_layer_that_modelkits_do_not_have_is_refused(store):
    with pytest.raises(InvalidContentError, match="of the type"):
        read(store, put_kit(store, ("application/x-evil", GGUF, {})))


def test_ramalamas_artifacts_speak_through_annotations_and_file_names(store):
    made = put(
        store,
        ("application/octet-stream", GGUF, {**named("tiny.gguf"), "org.opencontainers.image.title": "tiny.gguf"}),
        ("text/plain; charset=utf-8", b"MIT", {"org.opencontainers.image.title": "LICENSE"}),
        config=b"{}",
        config_type=EMPTY_CONFIG.media_type,
        artifact_type="application/vnd.cncf.model.manifest.v1+json",
        annotations={"org.opencontainers.image.title": "Tiny"},
    )

    model = read(store, made)

    assert [(file.name, file.kind) for file in model.files] == [
        ("tiny.gguf", FileKind.WEIGHT),
        ("LICENSE", FileKind.DOC),
    ]
    assert model.title == "Tiny"


CAR_LAYER = "application/vnd.oci.image.layer.v1.tar"


def put_car(store, *layers, config=None, annotations=None):
    labelled = {"config": {"Labels": {"org.containers.type": "ai.image.model.car"}}}
    return put(
        store,
        *layers,
        config=labelled if config is None else config,
        config_type="application/vnd.oci.image.config.v1+json",
        annotations=annotations,
    )


@pytest.mark.parametrize(
    ("media_type", "packing"),
    [
        (CAR_LAYER, "tar"),
        (f"{CAR_LAYER}+gzip", "tar+gzip"),
        (f"{CAR_LAYER}+zstd", "tar+zstd"),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", "tar+gzip"),
    ],
)
def test_a_modelcar_gives_the_files_in_its_models_folder_and_nothing_else(store, media_type, packing):
    base = make_tar(
        entry("bin/busybox", b"ELF"),
        entry("bin/sh", type=tarfile.SYMTYPE, linkname="/bin/busybox"),
        entry("dev/null", type=tarfile.CHRTYPE),
    )
    layer = packed(
        packing,
        entry("models", type=tarfile.DIRTYPE),
        entry("models/tiny/m.gguf", GGUF),
        entry("models/LICENSE", b"MIT"),
        entry("models/model.file", type=tarfile.SYMTYPE, linkname="tiny/m.gguf"),
        entry("modelsafe/x.gguf", b"GGUF not of the model"),
    )
    made = put_car(store, (CAR_LAYER, base, {}), (media_type, layer, {}))

    model = unpacked(store, made)

    assert contents(store, model) == {"m.gguf": GGUF, "LICENSE": b"MIT"}
    assert catalog.weights_path(store, model).read_bytes() == GGUF


@pytest.mark.parametrize(
    "evidence",
    [
        {"config": {"history": [{"created_by": "COPY model.gguf /models/"}]}},
        {"annotations": {"olot.layer.content.name": "m.gguf"}, "config": {}},
    ],
)
def test_other_signs_of_a_modelcar_are_known(store, evidence):
    made = put_car(store, (CAR_LAYER, make_tar(entry("models/m.gguf", GGUF)), {}), **evidence)

    assert len(read(store, made).packed) == 1


def test_any_other_container_image_is_a_clear_no(store):
    made = put_car(store, (CAR_LAYER, make_tar(entry("bin/sh", b"ELF")), {}), config={"config": {"Cmd": ["sh"]}})

    with pytest.raises(UnsupportedError, match="container image"):
        read(store, made)
    assert list(catalog.list_models(store)) == []


def test_a_car_that_takes_files_away_is_refused(store):
    layers = [make_tar(entry("models/m.gguf", GGUF)), make_tar(entry("models/.wh.m.gguf", b""))]
    made = put_car(store, *((CAR_LAYER, layer, {}) for layer in layers))
    with pytest.raises(InvalidContentError, match="takes files"):
        unpacked(store, made)


def test_an_index_says_that_one_of_its_manifests_has_to_be_named(store):
    with pytest.raises(UnsupportedError, match="several manifests"):
        codec_for(image_index([]))


# Archives that nobody should have written


@pytest.mark.parametrize(
    "hostile",
    [
        entry("../m.gguf", GGUF),
        entry("/m.gguf", GGUF),
        entry("m.gguf", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        entry("m.gguf", type=tarfile.LNKTYPE, linkname="other"),
        entry("m.gguf", type=tarfile.FIFOTYPE),
        entry(".bashrc", b"x"),
        entry("con.gguf", b"x"),
    ],
    ids=["parent", "root", "symlink", "hardlink", "fifo", "hidden", "device"],
)
def test_an_archive_that_holds_more_than_plain_files_is_refused_and_leaves_nothing(store, hostile):
    layer = make_tar(entry("good.gguf", GGUF), hostile)
    made = put_cncf(store, ("application/vnd.cncf.model.weight.v1.tar", layer, named("m")))

    with pytest.raises(InvalidContentError):
        unpacked(store, made)

    assert find_unpacked(store, store.repository("foreign"), made) is None
    assert list(store.partials.iterdir()) == []


def test_two_files_of_one_name_in_an_archive_are_refused(store):
    layer = make_tar(entry("a/m.gguf", GGUF), entry("b/M.gguf", GGUF))
    made = put_cncf(store, ("application/vnd.cncf.model.weight.v1.tar", layer, named("m")))
    with pytest.raises(InvalidContentError, match="two files of one name"):
        unpacked(store, made)


def test_an_archive_does_not_unpack_to_more_than_is_allowed(store):
    layer = make_tar(entry("m.gguf", GGUF))
    made = put_cncf(store, ("application/vnd.cncf.model.weight.v1.tar", layer, named("m")))

    with pytest.raises(InvalidContentError, match="more than is allowed"):
        unpacked(store, made, max_size=len(GGUF) - 1)
    assert contents(store, unpacked(store, made, max_size=len(GGUF))) == {"m.gguf": GGUF}


def test_a_bomb_in_a_layer_is_refused(store):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        member = tarfile.TarInfo("m.gguf")
        member.size = 192 << 20
        archive.addfile(member, io.BytesIO(bytes(member.size)))
    made = put_cncf(store, ("application/vnd.cncf.model.weight.v1.tar+gzip", buffer.getvalue(), named("m")))

    with pytest.raises(InvalidContentError, match="256 times"):
        unpacked(store, made)
    assert list(store.partials.iterdir()) == []


def test_an_archive_without_weights_is_no_model_to_run(store):
    layer = make_tar(entry("README.md", b"# Tiny"))
    made = put_cncf(store, ("application/vnd.cncf.model.weight.v1.tar", layer, named("m")))
    with pytest.raises(InvalidContentError, match="no weights"):
        unpacked(store, made)


# What was unpacked belongs to its artifact


def test_unpacking_twice_is_unpacking_once_and_removal_takes_it_away(store):
    layer = make_tar(entry("m.gguf", GGUF))
    made = put_cncf(store, ("application/vnd.cncf.model.weight.v1.tar", layer, named("m")))
    repository = store.repository("foreign")
    first = unpack(store, repository, made, read(store, made))

    assert unpack(store, repository, made, read(store, made)).descriptor.digest == first.descriptor.digest
    assert store.prune().blobs == ()
    assert [str(stored.reference) for stored in store.list()] == ["foreign:v1"]
    found = catalog.find_model(store, Reference.parse("foreign:v1"))
    assert catalog.weights_path(store, found.model).read_bytes() == GGUF
    store.remove(Reference.parse("foreign:v1"))
    with pytest.raises(NotFoundError):
        store.blob_path(first.model.files[0].digest)


def test_two_packings_of_the_same_files_are_both_known_and_one_outlives_the_other(store):
    repository = store.repository("foreign")
    kinds = {packing: f"application/vnd.cncf.model.weight.v1.{packing}" for packing in ("tar", "tar+gzip")}
    made = [
        put_cncf(store, (kind, packed(packing, entry("m.gguf", GGUF)), named("m"))) for packing, kind in kinds.items()
    ]
    first, second = (unpack(store, repository, one, read(store, one)) for one in made)

    assert first.descriptor.digest == second.descriptor.digest
    assert all(find_unpacked(store, repository, one) for one in made)

    store.remove(Reference.parse(f"foreign@{made[0].digest}"))
    assert repository.list_tags() == [f"sha256-{made[1].digest.hex}.unpacked", "v1"]
    left = find_unpacked(store, repository, made[1])
    assert left is not None
    assert contents(store, left.model) == {"m.gguf": GGUF}
    store.remove(Reference.parse("foreign:v1"))
    assert all(find_unpacked(store, repository, one) is None for one in made)
    assert store.list() == []


def test_what_somebody_else_put_under_the_tag_of_the_unpacked_counts_for_nothing(store):
    layer = make_tar(entry("m.gguf", GGUF))
    made = put_cncf(store, ("application/vnd.cncf.model.weight.v1.tar", layer, named("m")))
    repository = store.repository("foreign")
    evil = codec_named("cncf").encode(unpacked(store, put_cncf(store, *_evil_layer()))).manifest
    repository.put_manifest(evil, tag=f"sha256-{made.digest.hex}.unpacked")

    assert find_unpacked(store, repository, made) is None
    found = catalog.find_model(store, Reference.parse(f"foreign@{made.digest}"))
    with pytest.raises(UnsupportedError, match="packed as tar"):
        catalog.weights_path(store, found.model)


def _evil_layer():
    return [("application/vnd.cncf.model.weight.v1.tar", make_tar(entry("m.gguf", b"GGUF evil")), named("m"))]


def test_a_model_that_is_not_packed_has_nothing_to_unpack(store):
    made = put_cncf(store, ("application/vnd.cncf.model.weight.v1.raw", GGUF, named("m.gguf")))
    with pytest.raises(UnsupportedError, match="not packed"):
        unpacked(store, made)


@pytest.mark.parametrize("path", ["../x", "/x", "", "a/../../x"])
def test_no_path_becomes_a_name_by_leaving_its_folder(path):
    with pytest.raises(InvalidContentError):
        flat_name(path, FileKind.CODE)


def test_what_is_written_for_ollama_fits_the_schemas(store):
    made = put_cncf(
        store,
        ("application/vnd.cncf.model.weight.v1.raw", GGUF, named("m.gguf")),
        ("application/vnd.cncf.model.doc.v1.raw", b"MIT", named("LICENSE")),
        ("application/vnd.cncf.model.doc.v1.raw", b"# Tiny", named("README.md")),
    )

    encoded = codec_named("ollama").encode(read(store, made))

    assert encoded.manifest.media_type == DOCKER_MANIFEST
    assert schemas.violations("ollama/manifest", json.loads(encoded.manifest.raw)) == []
    assert schemas.violations("ollama/config", json.loads(encoded.config)) == []
    assert [codec.name for codec in CODECS] == ["cncf", "docker", "ollama"]
