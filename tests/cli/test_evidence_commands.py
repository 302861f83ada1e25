"""What a person does with evidence, through the command line: attest, tree, why, and what build and sign add."""

import json

import pytest

from modelpack.evidence.predicates import CYCLONEDX, SLSA_PROVENANCE, TEST_RESULT

REFERENCE = "registry.example.com/demo/tiny:v1"
EMPTY_PASSWORD = {"MODELPACK_PASSWORD": ""}
COMMIT_REF = "acme/models/.github/workflows/release.yml@refs/tags/v1"


@pytest.fixture
def build(modelpack, tiny_checkpoint):
    """Builds the checkpoint as it is, which needs no llama.cpp."""

    def run(*arguments, **options):
        result = modelpack("build", tiny_checkpoint, "-t", REFERENCE, "--json", *arguments, **options)
        assert result.code == 0, result.stderr
        return result.json("build")

    return run


@pytest.fixture
def tree(modelpack):
    def run(*arguments):
        result = modelpack("tree", REFERENCE, "--json", *arguments)
        assert result.code == 0, result.stderr
        return result.json("tree")

    return run


@pytest.fixture
def attest(modelpack, key_pair):
    def run(*arguments, **options):
        return modelpack(
            "attest", REFERENCE, "--local", "--key", key_pair[0], "--json", *arguments,
            **{"env": EMPTY_PASSWORD, **options},
        )  # fmt: skip

    return run


@pytest.fixture
def result_file(tmp_path):
    path = tmp_path / "eval.json"
    path.write_text(json.dumps({"result": "PASSED", "configuration": [], "passedTests": ["mmlu"]}))
    return path


def kinds(answer):
    return sorted((one["kind"], one["type"], one["format"], one["signer"]) for one in answer["attached"])


def by_about(answer):
    return {fact["about"]: fact for fact in reversed(answer["facts"])}


def test_build_with_sign_signs_every_name_and_attests_provenance_and_bill(build, tree, key_pair):
    answer = build("--sign", key_pair[0], env=EMPTY_PASSWORD)
    assert answer["signed_by"].startswith("SHA256:")
    assert answer["variants"][0]["references"] == [REFERENCE, f"{REFERENCE}-bf16"]

    found = tree("--key", key_pair[1])

    assert found["digest"] == answer["variants"][0]["digest"]
    signer = str(key_pair[1])
    assert [one["reference"] for one in found["attached"] if one["kind"] == "signature"] == [
        REFERENCE, f"{REFERENCE}-bf16", REFERENCE, f"{REFERENCE}-bf16",
    ]  # fmt: skip
    assert [one for one in kinds(found) if one[0] == "attestation"] == [
        ("attestation", CYCLONEDX, "bundle", signer),
        ("attestation", SLSA_PROVENANCE, "bundle", signer),
    ]


def test_evidence_does_not_change_the_digest(build, key_pair):
    plain = build()
    signed = build("--sign", key_pair[0], env=EMPTY_PASSWORD)
    in_ci = build(env={"GITHUB_ACTIONS": "true", "GITHUB_SERVER_URL": "https://g", "GITHUB_WORKFLOW_REF": COMMIT_REF})

    assert plain["variants"] == signed["variants"] == in_ci["variants"]
    assert plain["signed_by"] is None


def test_sign_attests_what_was_built_here_and_signing_again_adds_nothing(modelpack, build, tree, key_pair):
    build()
    arguments = ("sign", REFERENCE, "--local", "--key", key_pair[0], "--json")

    first = modelpack(*arguments, env=EMPTY_PASSWORD).json("sign")
    before = tree()
    second = modelpack(*arguments, env=EMPTY_PASSWORD).json("sign")

    assert first["attested"] == second["attested"] == [SLSA_PROVENANCE, CYCLONEDX]
    assert second["written"] == []
    assert tree() == before
    assert len(before["attached"]) == 4  # both forms of the signature, and two attestations


def test_attest_writes_once_and_the_legacy_form_when_it_is_asked_for(build, tree, attest, key_pair, result_file):
    build()

    first = attest("--type", "test-result", "--predicate", result_file)
    assert first.code == 0, first.stderr
    assert first.json("attest")["predicate_type"] == TEST_RESULT
    assert first.json("attest")["written"] == ["bundle"]
    again = attest("--type", TEST_RESULT, "--predicate", result_file, "--legacy-attestations")
    assert again.json("attest")["written"] == ["cosign-legacy"]
    assert again.json("attest")["found"] == ["bundle"]

    assert kinds(tree("--key", key_pair[1])) == [
        ("attestation", TEST_RESULT, "bundle", str(key_pair[1])),
        ("attestation", TEST_RESULT, "cosign-legacy", str(key_pair[1])),
    ]
    assert [one["signer"] for one in tree()["attached"]] == [None, None]


@pytest.mark.parametrize(
    ("kind", "content", "reason"),
    [
        ("test-result", '{"result": "fine", "configuration": []}', "fine"),
        ("slsa", "{}", "buildDefinition"),
        ("cyclonedx", '{"bomFormat": "SPDX", "specVersion": "1.6"}', "CycloneDX"),
        ("sbom", "{}", "slsa, test-result, cyclonedx"),
        ("https://example.com/eval/v1", "[]", "not a JSON object"),
        ("https://example.com/eval/v1", '{"a": 1, "a": 2}', "repeats a key"),
        ("https://sigstore.dev/cosign/sign/v1", "{}", "modelpack sign makes those"),
    ],
)
def test_attest_refuses_what_its_type_does_not_allow(attest, tmp_path, kind, content, reason):
    path = tmp_path / "predicate.json"
    path.write_text(content)

    result = attest("--type", kind, "--predicate", path)

    assert result.code == 2
    assert reason in result.json("error")["error"]["message"]


def test_tree_draws_what_hangs_on_an_artifact(modelpack, build, key_pair):
    build("--sign", key_pair[0], env=EMPTY_PASSWORD)

    result = modelpack("tree", REFERENCE, "--key", key_pair[1])

    assert result.code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert "application/vnd.cncf.model.manifest.v1+json" in lines[1]
    assert f"├── signature by {key_pair[1]}" in result.stdout
    assert f"└── attestation cyclonedx by {key_pair[1]}" in result.stdout
    assert "by a key that nobody here knows" in modelpack("tree", REFERENCE).stdout


def test_tree_knows_the_keys_of_the_policy_by_name_until_they_are_revoked(modelpack, build, tree, home, key_pair):
    build("--sign", key_pair[0], env=EMPTY_PASSWORD)
    added = modelpack("trust", "add", "team", key_pair[1], "--match", "registry.example.com/**")
    assert added.code == 0, added.stderr
    assert {one["signer"] for one in tree()["attached"]} == {"team"}

    policy = home / ".config" / "modelpack" / "policy.toml"
    text = policy.read_text()
    assert "[keys.team]" in text
    policy.write_text(text.replace("[keys.team]", '[keys.team]\nstatus = "revoked"'))
    assert {one["signer"] for one in tree()["attached"]} == {None}


def test_tree_of_something_that_is_no_artifact_is_a_usage_error(modelpack):
    assert modelpack("tree", "hf://org/repo").code == 2
    assert modelpack("tree", "nowhere/to/be:found").code == 3


def test_why_tells_each_fact_with_how_sure_it_is(modelpack, build, key_pair):
    build(env={"GITHUB_ACTIONS": "true", "GITHUB_SERVER_URL": "https://g.example", "GITHUB_WORKFLOW_REF": COMMIT_REF})
    facts = by_about(modelpack("why", REFERENCE, "--json").json("why"))
    assert facts["trust"] == {"about": "trust", "value": "built here", "certainty": "recorded", "by": "this store"}
    assert facts["build"]["value"].startswith(f"https://g.example/{COMMIT_REF} at 20")
    assert facts["build"]["certainty"] == "recorded"
    assert facts["licence"]["value"] == "Apache-2.0"
    assert facts["signature"]["value"] is None
    assert facts["smoke"]["certainty"] == "unknown"

    assert modelpack("sign", REFERENCE, "--local", "--key", key_pair[0], env=EMPTY_PASSWORD).code == 0
    signed = by_about(modelpack("why", REFERENCE, "--key", key_pair[1], "--json").json("why"))
    for about in ("signature", "build", "licence", "variant", "bill"):
        assert (signed[about]["certainty"], signed[about]["by"]) == ("signed", str(key_pair[1]))

    text = modelpack("why", REFERENCE, "--key", key_pair[1]).stdout
    assert f"licence     Apache-2.0  [signed by {key_pair[1]}]" in text
    assert "smoke       unknown" in text


def test_the_provenance_names_no_place_of_this_machine(build, home, tiny_checkpoint):
    build()

    (record,) = (home / ".local" / "share" / "modelpack" / "builds").iterdir()
    text = record.read_text()
    assert '"model.safetensors"' in text
    for private in (str(tiny_checkpoint), str(home), "/home/"):
        assert private not in text


@pytest.mark.parametrize("flags", [("--no-smoke",), ("--trust-only",)])
def test_verify_attests_nothing_where_nothing_is_tested(modelpack, key_pair, flags):
    result = modelpack("verify", REFERENCE, "--attest", key_pair[0], *flags)
    assert result.code == 2
    assert "--attest signs the smoke report" in result.stderr
