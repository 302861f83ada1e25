"""The bill of materials, held against CycloneDX's own published schema."""

import json
import subprocess
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from fakes.peers import peer_environment

from modelpack.evidence.bom import bill_of_materials
from modelpack.evidence.predicates import CYCLONEDX, check_predicate
from modelpack.formats import FileKind, Model, ModelFile
from modelpack.oci.digest import Digest

DIGEST = Digest.of(b"manifest")
WEIGHTS = ModelFile("tiny-Q4_K_M.gguf", FileKind.WEIGHT, Digest.of(b"weights"), 7)
PLAIN = Model(name="tiny", files=(WEIGHTS,), created=datetime(2025, 2, 1, tzinfo=UTC))
FULL = replace(
    PLAIN,
    files=(WEIGHTS, ModelFile("LICENSE", FileKind.DOC, Digest.of(b"licence"), 7)),
    architecture="llama",
    quantization="Q4_K_M",
    parameters=134_515_008,
    context_length=8192,
    version="1.0",
    description="A small model.",
    source_url="https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
    revision="12fd25f77366fa6b3b4b768ec3050bf629380bac",
    licenses=("Apache-2.0",),
    base_models=("HuggingFaceTB/SmolLM2-135M",),
    gguf={"tokenizer.chat_template": "{{ messages }}"},
)


# Not in our own environment: what it validates with makes every import of jsonschema a second slower.
VALIDATOR = "cyclonedx-python-lib[json-validation]==11.12.0"
VALIDATE = """
import json, sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
validator = JsonStrictValidator(SchemaVersion.V1_6)
json.dump([str(validator.validate_str(json.dumps(bom)) or "") for bom in json.load(sys.stdin)], sys.stdout)
"""


@pytest.fixture(scope="module")
def published_schema(request):
    """What CycloneDX's own validator says of bills of materials, one sentence each, empty for a good one."""
    python = peer_environment(request.config, VALIDATOR) / "python"

    def validate(*boms):
        asked = json.dumps(boms)
        made = subprocess.run([python, "-c", VALIDATE], input=asked, capture_output=True, text=True, check=True)
        return json.loads(made.stdout)

    return validate


MODELS = [
    PLAIN,
    FULL,
    replace(FULL, licenses=("LicenseRef-llama3.2",)),
    replace(FULL, licenses=("MIT", "CC-BY-4.0"), embeds=True),
    replace(FULL, revision=None),
]


@pytest.mark.peer
def test_the_bills_pass_the_schema_that_cyclonedx_publishes(published_schema):
    assert published_schema(*(bill_of_materials(model, DIGEST) for model in MODELS)) == [""] * len(MODELS)


@pytest.mark.parametrize("model", MODELS)
def test_the_bill_passes_our_own_schema(model):
    check_predicate(CYCLONEDX, bill_of_materials(model, DIGEST))


@pytest.mark.peer
def test_the_published_schema_would_notice_a_field_of_ours(published_schema):
    bom = bill_of_materials(FULL, DIGEST)
    bom["metadata"]["component"]["quantization"] = "Q4_K_M"

    assert published_schema(bom) != [""]


def test_the_bill_says_what_it_was_quantized_from_and_what_that_was_made_from():
    component = bill_of_materials(FULL, DIGEST)["metadata"]["component"]

    assert component["type"] == "machine-learning-model"
    assert component["hashes"] == [{"alg": "SHA-256", "content": DIGEST.hex}]
    assert component["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    assert [(one["name"], one.get("version")) for one in component["pedigree"]["ancestors"]] == [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "12fd25f77366fa6b3b4b768ec3050bf629380bac"),
        ("HuggingFaceTB/SmolLM2-135M", None),
    ]
    assert component["purl"] == (
        "pkg:huggingface/HuggingFaceTB/SmolLM2-135M-Instruct@12fd25f77366fa6b3b4b768ec3050bf629380bac"
    )
    properties = {one["name"]: one["value"] for one in component["properties"]}
    assert properties["modelpack:chat-template-sha256"] == Digest.of(b"{{ messages }}").hex


def test_a_licence_that_spdx_does_not_know_goes_by_its_name():
    component = bill_of_materials(replace(FULL, licenses=("LicenseRef-gemma",)), DIGEST)["metadata"]["component"]

    assert component["licenses"] == [{"license": {"name": "gemma"}}]


def test_one_artifact_has_one_bill_and_another_has_another():
    assert bill_of_materials(FULL, DIGEST) == bill_of_materials(FULL, DIGEST)
    other = bill_of_materials(FULL, Digest.of(b"other"))
    assert other["serialNumber"] != bill_of_materials(FULL, DIGEST)["serialNumber"]
