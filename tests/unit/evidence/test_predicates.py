"""Predicate types by name, and predicates held against what their specifications ask."""

import pytest

from modelpack.errors import InvalidInputError
from modelpack.evidence.predicates import (
    CYCLONEDX,
    SLSA_PROVENANCE,
    TEST_RESULT,
    check_predicate,
    predicate_type,
    short_name,
)

SLSA = {
    "buildDefinition": {
        "buildType": "https://example.com/build/v1",
        "externalParameters": {},
        "resolvedDependencies": [{"uri": "pkg:pypi/gguf@0.19.0"}],
    },
    "runDetails": {"builder": {"id": "https://example.com/builder"}},
}
RESULT = {"result": "PASSED", "configuration": [{"name": "suite", "digest": {"sha256": "00"}}]}
BOM = {"bomFormat": "CycloneDX", "specVersion": "1.6", "components": [{"type": "file", "name": "a"}]}


def test_short_names_and_uris_name_the_same_types():
    for name, uri in (("slsa", SLSA_PROVENANCE), ("test-result", TEST_RESULT), ("cyclonedx", CYCLONEDX)):
        assert predicate_type(name) == predicate_type(uri) == uri
        assert short_name(uri) == name
    assert predicate_type("https://example.com/eval/v1") == short_name("https://example.com/eval/v1")


def test_a_name_that_nobody_knows_is_refused_with_those_that_are_known():
    with pytest.raises(InvalidInputError, match="slsa, test-result, cyclonedx"):
        predicate_type("sbom")


@pytest.mark.parametrize(("kind", "predicate"), [(SLSA_PROVENANCE, SLSA), (TEST_RESULT, RESULT), (CYCLONEDX, BOM)])
def test_a_sound_predicate_passes_also_with_fields_that_nobody_knows(kind, predicate):
    check_predicate(kind, predicate)
    check_predicate(kind, {**predicate, "https://example.com/more": 1})


@pytest.mark.parametrize(
    ("kind", "predicate"),
    [
        (SLSA_PROVENANCE, {}),
        (SLSA_PROVENANCE, {**SLSA, "runDetails": {"builder": {}}}),
        (SLSA_PROVENANCE, {**SLSA, "runDetails": {"builder": {"id": "me"}}}),
        (SLSA_PROVENANCE, {**SLSA, "buildDefinition": {**SLSA["buildDefinition"], "resolvedDependencies": [{}]}}),
        (SLSA_PROVENANCE, {**SLSA, "runDetails": {**SLSA["runDetails"], "metadata": {"startedOn": "yesterday"}}}),
        (TEST_RESULT, {"result": "passed", "configuration": []}),
        (TEST_RESULT, {"result": "PASSED"}),
        (TEST_RESULT, {**RESULT, "passedTests": [{"name": "load"}]}),
        (CYCLONEDX, {"specVersion": "1.6"}),
        (CYCLONEDX, {**BOM, "specVersion": "2.0"}),
        (CYCLONEDX, {**BOM, "components": [{"name": "a"}]}),
    ],
)
def test_a_predicate_that_breaks_its_specification_is_refused(kind, predicate):
    with pytest.raises(InvalidInputError, match="not a predicate of type"):
        check_predicate(kind, predicate)


def test_of_a_type_that_nobody_knows_every_predicate_passes():
    check_predicate("https://example.com/eval/v1", {"anything": ["at", "all"]})
