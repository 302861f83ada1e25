"""Evidence that travels: from the build over a registry onto another machine, and back with the smoke report."""

import json

import pytest
from fakes.hub import COMMIT, FakeHub, serve_hub
from fakes.registry import FakeRegistry
from fakes.servers import running_registry

from modelpack.evidence.predicates import CYCLONEDX, SLSA_PROVENANCE, TEST_RESULT
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import Manifest
from modelpack.signing.envelope import BUNDLE_TYPE
from modelpack.store import Store

EMPTY_PASSWORD = {"MODELPACK_PASSWORD": ""}


@pytest.fixture
def address(tmp_path):
    with running_registry(Store.open(tmp_path / "far")) as address:
        yield address


@pytest.fixture
def author(modelpack, tmp_path):
    def run(*arguments, schema, **options):
        result = modelpack(*arguments, "--json", "--store", tmp_path / "author", **{"env": EMPTY_PASSWORD, **options})
        assert result.code == 0, result.stderr
        return result.json(schema)

    return run


@pytest.fixture
def developer(modelpack, tmp_path):
    def run(*arguments, schema, code=0, **options):
        result = modelpack(
            *arguments, "--json", "--store", tmp_path / "developer", **{"env": EMPTY_PASSWORD, **options}
        )
        assert result.code == code, result.stderr
        return result.json(schema)

    return run


def by_about(answer):
    return {fact["about"]: fact for fact in reversed(answer["facts"])}


@pytest.mark.llama
def test_the_evidence_travels_with_the_model_and_the_smoke_report_goes_back(
    author, developer, address, key_pair, tiny_checkpoint, modelpack, tmp_path
):
    key, public = key_pair
    reference = f"{address}/demo/tiny:v1"
    author("build", tiny_checkpoint, "-t", reference, "--quant", "Q8_0", schema="build")
    pushed = author("push", reference, "--sign", key, schema="push")
    assert pushed["attested"] == [SLSA_PROVENANCE, CYCLONEDX]

    developer("trust", "add", "team", public, "--match", f"{address}/**", schema="trust-add")
    developer("pull", reference, schema="pull")
    facts = by_about(developer("why", "tiny:v1", schema="why"))
    assert facts["trust"]["value"].startswith(f"signed by team; rule {address}/**; checked ")
    assert facts["registry"]["value"] == reference
    for about in ("signature", "build", "source", "licence", "variant", "bill"):
        assert (facts[about]["certainty"], facts[about]["by"]) == ("signed", "team"), about
    assert facts["smoke"]["value"] is None

    # The developer's machine has a key of its own, which the policy does not know.
    assert modelpack("keygen", "--out", tmp_path / "desk", "--no-password").code == 0
    arguments = ("verify", reference, "--attest", tmp_path / "desk.key", "--device", "cpu")
    suite = ("--smoke", tiny_checkpoint / "smoke.toml")
    verified = developer(*arguments, *suite, schema="verify")
    assert verified["attested"]["result"] == "PASSED"
    assert verified["attested"]["sent"] is True
    smoke = by_about(developer("why", "tiny:v1", schema="why"))["smoke"]
    assert smoke["value"] == "PASSED: 3 passed; smoke.toml"
    assert smoke["certainty"] == "said"

    remote = author("tree", reference, "--remote", "--key", tmp_path / "desk.pub", schema="tree")
    reports = [one for one in remote["attached"] if one["type"] == TEST_RESULT]
    assert [(one["signer"], one["format"]) for one in reports] == [(str(tmp_path / "desk.pub"), "bundle")]
    developer(*arguments, *suite, schema="verify")
    assert author("tree", reference, "--remote", "--key", tmp_path / "desk.pub", schema="tree") == remote


@pytest.mark.llama
def test_a_model_that_fails_its_prompts_is_attested_to_have_failed(
    author, key_pair, tiny_checkpoint, modelpack, tmp_path
):
    author("build", tiny_checkpoint, "-t", "demo/tiny:v1", "--sign", key_pair[0], schema="build")
    suite = tmp_path / "impossible.toml"
    suite.write_text('schema = 1\n[[case]]\nname = "capital"\nprompt = "Hello"\nexpect = { equals = "never this" }\n')

    result = modelpack(
        "verify", "demo/tiny:v1", "--key", key_pair[1], "--attest", key_pair[0], "--smoke", suite, "--device", "cpu",
        "--json", "--store", tmp_path / "author",
        env=EMPTY_PASSWORD,
    )  # fmt: skip

    assert result.code == 7, result.stderr
    attested = result.json("verify")["attested"]
    assert (attested["result"], attested["sent"]) == ("FAILED", False)
    facts = by_about(author("why", "demo/tiny:v1", "--key", key_pair[1], schema="why"))
    assert facts["smoke"]["value"] == "FAILED: 1 failed; impossible.toml"
    assert facts["smoke"]["certainty"] == "signed"


def test_a_build_from_the_hub_names_its_commit_and_every_file_by_its_content(author, tiny_checkpoint, tmp_path):
    files = {path.name: path.read_bytes() for path in tiny_checkpoint.iterdir() if path.name != "smoke.toml"}
    with serve_hub(FakeHub({"acme/tiny-llama": files})) as hub:
        env = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        author("build", "hf://acme/tiny-llama@main", "-t", "tiny:v1", schema="build", env=env)

    (record,) = (tmp_path / "author" / "builds").iterdir()
    definition = json.loads(record.read_text())["predicates"][SLSA_PROVENANCE]["buildDefinition"]
    url = "https://huggingface.co/acme/tiny-llama"
    assert definition["externalParameters"]["source"] == {"repository": url, "revision": COMMIT}
    repository, *inputs = [one for one in definition["resolvedDependencies"] if url in one["uri"]]
    assert repository["digest"] == {"gitCommit": COMMIT}
    assert {one["name"]: one["digest"]["sha256"] for one in inputs} == {
        name: Digest.of(content).hex for name, content in files.items()
    }
    source = by_about(author("why", "tiny:v1", schema="why"))["source"]
    assert source["value"] == f"{url}@{COMMIT}"
    assert source["certainty"] == "recorded"


def test_a_registry_without_the_referrers_api_lists_attestations_by_their_right_type(
    author, key_pair, tiny_checkpoint, tmp_path
):
    with FakeRegistry(referrers_api=False) as registry:
        reference = f"{registry.address}/demo/tiny:v1"
        author("build", tiny_checkpoint, "-t", reference, "--sign", key_pair[0], schema="build")
        digest = author("push", reference, schema="push")["digest"]
        predicate = tmp_path / "eval.json"
        predicate.write_text(json.dumps({"result": "PASSED", "configuration": []}))
        attested = author(
            "attest", reference, "--type", "test-result", "--predicate", predicate, "--key", key_pair[0],
            "--legacy-attestations", schema="attest",
        )  # fmt: skip
        assert attested["written"] == ["bundle", "cosign-legacy"]

        fallback = registry.tags["demo/tiny", digest.replace(":", "-")]
        media_type, raw = registry.manifests["demo/tiny", fallback]
        listed = Manifest.parse(raw, media_type=media_type).manifests
        assert {one.artifact_type for one in listed} == {BUNDLE_TYPE}
        types = {one.annotations["dev.sigstore.bundle.predicateType"] for one in listed}
        assert types >= {SLSA_PROVENANCE, CYCLONEDX, TEST_RESULT}

        remote = author("tree", reference, "--remote", "--key", key_pair[1], schema="tree")
        kinds = [(one["type"], one["format"]) for one in remote["attached"] if one["kind"] == "attestation"]
        assert sorted(kinds) == sorted(
            [
                (SLSA_PROVENANCE, "bundle"),
                (CYCLONEDX, "bundle"),
                (TEST_RESULT, "bundle"),
                (TEST_RESULT, "cosign-legacy"),
            ]
        )
        assert {one["signer"] for one in remote["attached"]} == {str(key_pair[1])}


def test_attest_signs_no_tag_that_the_registry_moved(author, key_pair, tiny_checkpoint, modelpack, tmp_path):
    with FakeRegistry() as registry:
        reference = f"{registry.address}/demo/tiny:v1"
        author("build", tiny_checkpoint, "-t", reference, schema="build")
        author("push", reference, schema="push")
        registry.add_artifact("demo/tiny", b"something else", tag="v1")
        predicate = tmp_path / "eval.json"
        predicate.write_text(json.dumps({"result": "PASSED", "configuration": []}))

        result = modelpack(
            "attest", reference, "--type", "test-result", "--predicate", predicate, "--key", key_pair[0],
            "--store", tmp_path / "author",
            env=EMPTY_PASSWORD,
        )  # fmt: skip

        assert result.code == 2
        assert "to sign the registry's" in result.stderr
