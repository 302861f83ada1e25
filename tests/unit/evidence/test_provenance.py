"""What a build says about itself, and who it says it is."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from modelpack.evidence.predicates import SLSA_PROVENANCE, check_predicate
from modelpack.evidence.provenance import LOCAL_BUILDER, Builder, BuildFacts, InputFile, provenance
from modelpack.evidence.toolchain import Library, Toolchain
from modelpack.oci.digest import Digest

COMMIT = "12fd25f77366fa6b3b4b768ec3050bf629380bac"
CREATED = datetime(2025, 2, 1, tzinfo=UTC)
STARTED = datetime(2026, 11, 23, 7, 0, 0, tzinfo=UTC)
FINISHED = datetime(2026, 11, 23, 7, 5, 0, tzinfo=UTC)
WEIGHTS = InputFile("model.safetensors", Digest.of(b"weights"))
TOOLS = Toolchain("0.1.0", "0.19.0", "0.3.36", "0c1e570", (Library("libllama.so", "ab" * 32),))
FROM_HUB = BuildFacts(
    name="SmolLM2-135M-Instruct",
    inputs=(WEIGHTS,),
    quantization="Q4_K_M",
    format="cncf",
    created=CREATED,
    repository="https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
    commit=COMMIT,
    intermediate="BF16",
    fallbacks=("blk.0.attn_k.weight",),
)


LOCAL = Builder()


def make(facts=FROM_HUB, builder=LOCAL, **also):
    return provenance(facts, TOOLS, builder, **{"started": STARTED, "finished": FINISHED, **also})


def test_a_build_from_the_hub_names_the_commit_every_input_and_the_tools():
    predicate = make()

    check_predicate(SLSA_PROVENANCE, predicate)
    definition = predicate["buildDefinition"]
    assert definition["externalParameters"] == {
        "source": {"repository": FROM_HUB.repository, "revision": COMMIT},
        "quantization": "Q4_K_M",
        "format": "cncf",
        "created": "2025-02-01T00:00:00Z",
    }
    assert definition["internalParameters"]["intermediate"] == "BF16"
    assert definition["internalParameters"]["fallbackTensors"] == ["blk.0.attn_k.weight"]
    dependencies = definition["resolvedDependencies"]
    assert dependencies[0]["digest"] == {"gitCommit": COMMIT}
    assert dependencies[1] == {
        "name": "model.safetensors",
        "uri": f"{FROM_HUB.repository}/resolve/{COMMIT}/model.safetensors",
        "digest": {"sha256": WEIGHTS.digest.hex},
    }
    assert [one["uri"] for one in dependencies[2:]] == [
        "pkg:pypi/modelpack-oci@0.1.0",
        "pkg:pypi/gguf@0.19.0",
        "pkg:pypi/llama-cpp-python@0.3.36",
        "pkg:github/ggml-org/llama.cpp@0c1e570",
        "pkg:pypi/llama-cpp-python@0.3.36#libllama.so",
    ]
    assert dependencies[-1]["digest"] == {"sha256": "ab" * 32}


def test_a_build_from_a_directory_names_its_files_and_not_where_they_lay():
    predicate = make(replace(FROM_HUB, repository=None, commit=None))

    check_predicate(SLSA_PROVENANCE, predicate)
    definition = predicate["buildDefinition"]
    assert definition["externalParameters"]["source"] == {"name": "SmolLM2-135M-Instruct"}
    assert definition["resolvedDependencies"][0] == {
        "name": "model.safetensors",
        "digest": {"sha256": WEIGHTS.digest.hex},
    }


def test_an_importance_matrix_and_a_recipe_are_named_where_there_are_any():
    imatrix = Digest.of(b"imatrix")
    findings = {"dev.modelpack.tensor-types": "Q4_K:14", "dev.modelpack.architecture": "llama"}
    predicate = make(replace(FROM_HUB, imatrix=imatrix, recipe={"pure": True}, findings=findings))

    check_predicate(SLSA_PROVENANCE, predicate)
    definition = predicate["buildDefinition"]
    assert definition["externalParameters"]["recipe"] == {"pure": True}
    assert definition["externalParameters"]["imatrix"] == str(imatrix)
    assert list(definition["internalParameters"]["findings"]) == sorted(findings)
    assert {"name": "imatrix", "digest": {"sha256": imatrix.hex}} in definition["resolvedDependencies"]


def test_two_runs_of_one_build_differ_in_their_times_alone():
    one, other = make(), make(started=FINISHED, finished=FINISHED.replace(hour=9))

    assert one != other
    assert one["runDetails"].pop("metadata") == {
        "startedOn": "2026-11-23T07:00:00Z",
        "finishedOn": "2026-11-23T07:05:00Z",
    }
    other["runDetails"].pop("metadata")
    assert one == other


def test_a_build_outside_ci_says_that_nobody_vouches_for_the_builder():
    assert Builder.from_environment({"HOME": "/home/me"}) == Builder(LOCAL_BUILDER, None)
    assert make()["runDetails"]["builder"]["id"] == "urn:modelpack:builder:local-unverified:v1"


GITHUB = {
    "GITHUB_ACTIONS": "true",
    "GITHUB_SERVER_URL": "https://github.com",
    "GITHUB_WORKFLOW_REF": "acme/models/.github/workflows/release.yml@refs/tags/v1",
    "GITHUB_REPOSITORY": "acme/models",
    "GITHUB_RUN_ID": "42",
    "GITHUB_RUN_ATTEMPT": "2",
}
GITLAB = {
    "GITLAB_CI": "true",
    "CI_PROJECT_URL": "https://gitlab.com/acme/models",
    "CI_COMMIT_REF_NAME": "main",
    "CI_JOB_URL": "https://gitlab.com/acme/models/-/jobs/7",
}


@pytest.mark.parametrize(
    ("environment", "builder"),
    [
        (
            GITHUB,
            Builder(
                "https://github.com/acme/models/.github/workflows/release.yml@refs/tags/v1",
                "https://github.com/acme/models/actions/runs/42/attempts/2",
            ),
        ),
        (
            GITLAB,
            Builder(
                "https://gitlab.com/acme/models//.gitlab-ci.yml@refs/heads/main",
                "https://gitlab.com/acme/models/-/jobs/7",
            ),
        ),
        (
            {**GITLAB, "CI_COMMIT_TAG": "v1", "CI_COMMIT_REF_NAME": "v1", "CI_CONFIG_PATH": "ci/build.yml"},
            Builder(
                "https://gitlab.com/acme/models//ci/build.yml@refs/tags/v1", "https://gitlab.com/acme/models/-/jobs/7"
            ),
        ),
    ],
)
def test_a_build_in_ci_names_its_workflow_and_its_run(environment, builder):
    assert Builder.from_environment(environment) == builder
    predicate = make(builder=builder)
    check_predicate(SLSA_PROVENANCE, predicate)
    assert predicate["runDetails"]["metadata"]["invocationId"] == builder.invocation


@pytest.mark.parametrize(
    "environment",
    [
        {**GITHUB, "GITHUB_ACTIONS": ""},
        {**GITHUB, "GITHUB_WORKFLOW_REF": "a workflow with spaces"},
        {key: value for key, value in GITLAB.items() if key != "CI_PROJECT_URL"},
    ],
)
def test_half_an_environment_of_ci_is_none(environment):
    assert Builder.from_environment(environment) == Builder()


def test_the_tools_that_are_installed_are_found_with_the_very_libraries():
    tools = Toolchain.installed()

    assert tools.llama_cpp_python == "0.3.36"
    names = [library.name.partition(".")[0] for library in tools.libraries]
    assert {"libllama", "libggml-base"} <= set(names)
    assert len(names) == len(set(names))
    assert all(len(library.sha256) == 64 for library in tools.libraries)
