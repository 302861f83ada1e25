"""SLSA provenance v1 of a build (https://slsa.dev/spec/v1.1/provenance): from which bytes, by what, with which options.

Honest about who speaks: a build on somebody's machine says so in ``builder.id``, and what a CI system's environment
says is that environment's word. What either is worth shows in whose key signs it; none of it is more than Build L1.
"""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from modelpack.evidence.toolchain import Toolchain
from modelpack.oci.digest import Digest
from modelpack.signing.candidate import rfc3339

BUILD_TYPE = "urn:modelpack:buildtype:gguf-quantize:v1"
"""externalParameters: ``source`` (``repository`` and ``revision``, or ``name``), ``quantization``, ``recipe`` (what
departs from that mixture), ``imatrix`` (the digest of the importance matrix), ``format``, ``created`` (the time that
the artifact speaks of). internalParameters: ``intermediate`` (what the variant was quantized from), ``fallbackTensors``
(those that took another type), ``findings`` (what the artifact's annotations say of its making), ``platform``.
resolvedDependencies: the repository at its commit, every input file, the importance matrix, and the tools.
"""

LOCAL_BUILDER = "urn:modelpack:builder:local-unverified:v1"


@dataclass(frozen=True, slots=True)
class Builder:
    """Who builds: a URI, and one of this very run where there is one."""

    id: str = LOCAL_BUILDER
    invocation: str | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Builder":
        """The workflow that GitHub Actions or GitLab CI say this is, spelled as in their keyless certificates.

        https://docs.github.com/actions/reference/workflows-and-actions/variables,
        https://docs.gitlab.com/ci/variables/predefined_variables/
        """
        values = {name: text for name, text in environment.items() if text and text.isprintable() and " " not in text}
        if values.get("GITHUB_ACTIONS") == "true" and {"GITHUB_SERVER_URL", "GITHUB_WORKFLOW_REF"} <= values.keys():
            server = values["GITHUB_SERVER_URL"]
            run = None
            if {"GITHUB_REPOSITORY", "GITHUB_RUN_ID"} <= values.keys():
                attempt = values.get("GITHUB_RUN_ATTEMPT", "1")
                run = (
                    f"{server}/{values['GITHUB_REPOSITORY']}/actions/runs/{values['GITHUB_RUN_ID']}/attempts/{attempt}"
                )
            return cls(f"{server}/{values['GITHUB_WORKFLOW_REF']}", run)
        if values.get("GITLAB_CI") == "true" and {"CI_PROJECT_URL", "CI_COMMIT_REF_NAME"} <= values.keys():
            kind = "tags" if "CI_COMMIT_TAG" in values else "heads"
            workflow = values.get("CI_CONFIG_PATH", ".gitlab-ci.yml")
            name = f"{values['CI_PROJECT_URL']}//{workflow}@refs/{kind}/{values['CI_COMMIT_REF_NAME']}"
            return cls(name, values.get("CI_JOB_URL"))
        return cls()


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file that went into a build: its path in the repository or directory, and its content."""

    name: str
    digest: Digest


@dataclass(frozen=True, slots=True)
class BuildFacts:
    """What a build of one variant did. ``repository`` is a URL, with the ``commit`` that was fetched; None for a
    directory or a file, whose place on the machine is nobody's business."""

    name: str
    inputs: Sequence[InputFile]
    quantization: str
    format: str
    created: datetime
    repository: str | None = None
    commit: str | None = None
    intermediate: str | None = None
    fallbacks: Sequence[str] = ()
    imatrix: Digest | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    findings: Mapping[str, str] = field(default_factory=dict)


def provenance(
    facts: BuildFacts, toolchain: Toolchain, builder: Builder, *, started: datetime, finished: datetime
) -> dict[str, Any]:
    """The predicate. Only the times differ between two runs of the same build by the same builder."""
    source: dict[str, Any] = {"name": facts.name}
    if facts.repository and facts.commit:
        source = {"repository": facts.repository, "revision": facts.commit}
    internal: dict[str, Any] = {"platform": f"{platform.system()} {platform.machine()}"}
    if facts.intermediate:
        internal["intermediate"] = facts.intermediate
    if facts.fallbacks:
        internal["fallbackTensors"] = list(facts.fallbacks)
    if facts.findings:
        internal["findings"] = dict(sorted(facts.findings.items()))
    external: dict[str, Any] = {"source": source, "quantization": facts.quantization}
    if facts.recipe:
        external["recipe"] = dict(facts.recipe)
    if facts.imatrix:
        external["imatrix"] = str(facts.imatrix)
    run: dict[str, Any] = {"startedOn": rfc3339(started), "finishedOn": rfc3339(finished)}
    if builder.invocation:
        run = {"invocationId": builder.invocation, **run}
    return {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {**external, "format": facts.format, "created": rfc3339(facts.created)},
            "internalParameters": internal,
            "resolvedDependencies": [
                *_sources(facts),
                *([{"name": "imatrix", "digest": {"sha256": facts.imatrix.hex}}] if facts.imatrix else []),
                *toolchain.converter,
                *toolchain.runtime,
            ],
        },
        "runDetails": {
            "builder": {"id": builder.id, "version": {"modelpack": toolchain.modelpack}},
            "metadata": run,
        },
    }


def _sources(facts: BuildFacts) -> list[dict[str, Any]]:
    if not facts.repository or not facts.commit:
        return [{"name": file.name, "digest": {"sha256": file.digest.hex}} for file in facts.inputs]
    repository = {"uri": f"git+{facts.repository}@{facts.commit}", "digest": {"gitCommit": facts.commit}}
    return [
        repository,
        *(
            {
                "name": file.name,
                "uri": f"{facts.repository}/resolve/{facts.commit}/{file.name}",
                "digest": {"sha256": file.digest.hex},
            }
            for file in facts.inputs
        ),
    ]
