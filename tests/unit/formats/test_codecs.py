"""The artifact formats: what is written fits the specification, what is read is not trusted."""

import json
from datetime import UTC, datetime

import pytest

from modelpack import schemas
from modelpack.errors import InvalidContentError, UnsupportedError
from modelpack.formats import CODECS, FileKind, Model, ModelFile, codec_for, codec_named
from modelpack.formats.cncf import parameter_size, precision
from modelpack.formats.licenses import spdx
from modelpack.oci import manifest as oci
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import Descriptor, image_manifest

WEIGHTS = ModelFile("tiny-Q4_K_M.gguf", FileKind.WEIGHT, Digest.of(b"w"), 1)
LICENSE = ModelFile("LICENSE", FileKind.DOC, Digest.of(b"l"), 1)
README = ModelFile("README.md", FileKind.DOC, Digest.of(b"r"), 1)
MODEL = Model(
    name="tiny",
    files=(WEIGHTS, LICENSE, README),
    created=datetime(2026, 7, 22, 9, 22, 8, tzinfo=UTC),
    architecture="llama",
    quantization="Q4_K_M",
    parameters=1_100_048_384,
    context_length=2048,
    title="Tiny",
    source_url="https://huggingface.co/org/tiny",
    revision="0" * 40,
    licenses=("Apache-2.0",),
    gguf={"general.architecture": "llama"},
)


def test_a_cncf_artifact_fits_the_schemas_written_from_the_specification():
    encoded = codec_named("cncf").encode(MODEL)

    assert schemas.violations("cncf/manifest", json.loads(encoded.manifest.raw)) == []
    assert schemas.violations("cncf/config", json.loads(encoded.config)) == []


def test_a_docker_artifact_fits_the_schema_written_from_its_reader():
    encoded = codec_named("docker").encode(MODEL)
    config = json.loads(encoded.config)

    assert schemas.violations("docker/config", config) == []
    assert config["config"]["context_size"] == 2048
    assert config["config"]["quantization"] == "MOSTLY_Q4_K_M"
    assert encoded.manifest.artifact_type is None
    assert [layer.media_type for layer in encoded.manifest.layers] == [
        "application/vnd.docker.ai.gguf.v3",
        "application/vnd.docker.ai.license",
    ]


def test_the_cncf_schema_refuses_what_strict_readers_refuse():
    config = json.loads(codec_named("cncf").encode(MODEL).config)
    config["descriptor"]["datasetsURL"] = []

    assert schemas.violations("cncf/config", config)


def test_layers_are_raw_files_with_flat_names_in_both_annotations():
    for codec in (codec_named("cncf"), codec_named("docker")):
        for layer in codec.encode(MODEL).manifest.layers:
            name = layer.annotations["org.cncf.model.filepath"]
            assert layer.annotations["org.opencontainers.image.title"] == name
            metadata = json.loads(layer.annotations["org.cncf.model.file.metadata+json"])
            assert metadata["name"] == name
            assert (metadata["mode"], metadata["uid"], metadata["gid"]) == (0o644, 0, 0)
            assert metadata["mtime"] == "2026-07-22T09:22:08Z"


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_what_a_codec_writes_it_reads(codec):
    encoded = codec.encode(MODEL)

    assert codec_for(encoded.manifest) is codec
    decoded = codec.decode(encoded.manifest, encoded.config)

    assert [file.digest for file in decoded.weights] == [file.digest for file in MODEL.weights]
    assert decoded.quantization == "Q4_K_M"
    assert decoded.architecture == "llama"
    if codec.name != "ollama":  # which keeps no names, no time and no context
        assert decoded.weights == MODEL.weights
        assert decoded.context_length == 2048
        assert decoded.created == MODEL.created


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
@pytest.mark.parametrize(
    "name", ["../../.bashrc", "/etc/passwd", "a/../../b", "C:\\x.gguf", "a\0b", ".hidden", "con.gguf", "x.", ""]
)
def test_a_layer_cannot_name_a_file_outside_its_folder(codec, name):
    encoded = codec.encode(MODEL)
    weights = encoded.manifest.layers[0]
    hostile = Descriptor(weights.media_type, weights.digest, weights.size, {"org.cncf.model.filepath": name or "."})
    manifest = image_manifest(config=encoded.manifest.config, layers=[hostile])

    with pytest.raises(InvalidContentError):
        codec.decode(manifest, encoded.config)


def test_two_files_that_differ_in_case_alone_are_refused():
    with pytest.raises(InvalidContentError, match="two files of one name"):
        Model("m", (LICENSE, ModelFile("license", FileKind.DOC, Digest.of(b"x"), 1)), MODEL.created)


def test_an_artifact_that_is_no_model_is_a_clear_no():
    with pytest.raises(UnsupportedError, match=r"application/x-other"):
        codec_for(image_manifest(config=oci.EMPTY_CONFIG, layers=[], artifact_type="application/x-other"))


@pytest.mark.parametrize(
    ("count", "text"),
    [(1_100_048_384, "1.1b"), (918_784, "918.8k"), (70_000_000_000, "70b"), (135_000_000, "135m"), ("8B", "8B")],
)
def test_parameter_sizes_have_a_scale_and_at_most_one_decimal(count, text):
    assert parameter_size(count) == text


def test_precision_is_named_in_the_specifications_words():
    assert [precision(name) for name in ("BF16", "F16", "Q8_0", "Q4_K_M", None)] == [
        "bfloat16",
        "float16",
        "int8",
        "int4",
        None,
    ]


def test_licences_become_spdx_expressions():
    assert spdx("apache-2.0") == "Apache-2.0"
    assert spdx("MIT") == "MIT"
    assert spdx("llama3.1") == "LicenseRef-llama3.1"
    assert spdx("my license!") == "LicenseRef-my-license-"


def test_build_offers_every_format_that_is_written():
    from modelpack.cli.build import build

    (choice,) = [option.type for option in build.params if option.name == "format_"]
    assert list(choice.choices) == [codec.name for codec in CODECS]
