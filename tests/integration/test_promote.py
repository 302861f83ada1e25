"""promote: from a repository where things are tried to one where they are used."""

import json

import pytest
from fakes.artifacts import put_cncf_model
from fakes.servers import running_registry

from modelpack.store import Store

PASSWORD = {"MODELPACK_PASSWORD": ""}


@pytest.fixture
def registry(tmp_path):
    with running_registry(Store.open(tmp_path / "far")) as address:
        yield address


@pytest.fixture
def staged(modelpack, home, registry, key_pair):
    """A signed model in the staging repository; its name and digest."""
    name = f"{registry}/staging/tiny:v1"
    manifest, _ = put_cncf_model(Store.open(home / ".local/share/modelpack"), name, b"GGUF tiny" * 1000)
    pushed = modelpack("push", name, "--sign", key_pair[0], env=PASSWORD)
    assert pushed.code == 0, pushed.stderr
    return name, str(manifest.digest)


@pytest.fixture
def production(registry):
    return f"{registry}/prod/tiny:v1"


def write_policy(home, key_pair, *rules: str) -> None:
    path = home / ".config/modelpack/policy.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["version = 1", "[keys.team]", f'path = "{key_pair[1]}"']
    for rule in rules:
        lines += ["[[rule]]", 'signers = ["team"]', rule]
    path.write_text("\n".join(lines))


def tags(modelpack, name):
    listed = modelpack("tags", name.rpartition(":")[0], "--json")
    return listed.json("tags")["tags"] if listed.code == 0 else []


def test_a_promotion_keeps_digest_and_signatures_and_moves_the_tag(modelpack, staged, production, key_pair, tmp_path):
    name, digest = staged

    promoted = modelpack("promote", name, production, "--key", key_pair[1], "--json")

    assert promoted.code == 0, promoted.stderr
    answer = promoted.json("promote")
    assert (answer["digest"], answer["destination"], answer["referrers_copied"]) == (digest, production, 2)
    assert answer["source_trust"]["verified"]
    assert answer["destination_trust"]["reference"] == production
    pulled = modelpack("pull", production, "--key", key_pair[1], "--store", tmp_path / "user", "--json")
    assert pulled.json("pull")["digest"] == digest


def test_a_dry_run_judges_and_moves_nothing(modelpack, staged, production, key_pair):
    tried = modelpack("promote", staged[0], production, "--key", key_pair[1], "--dry-run", "--json")

    assert tried.code == 0, tried.stderr
    assert tried.json("promote")["dry_run"]
    assert tags(modelpack, production) == []


def test_what_the_policy_does_not_allow_is_not_promoted(modelpack, staged, production):
    refused = modelpack("promote", staged[0], production)

    assert refused.code == 6
    assert f"{production} was not touched" in refused.stderr
    assert tags(modelpack, production) == []


def test_a_rule_that_wants_the_new_name_is_met_by_signing_it_there(
    modelpack, staged, registry, production, home, key_pair
):
    name, digest = staged
    write_policy(
        home, key_pair, f'match = "{registry}/staging/**"', f'match = "{registry}/prod/**"\nrequire_ref = true'
    )

    tried = modelpack("promote", name, production, "--dry-run")
    refused = modelpack("promote", name, production)

    assert tried.code == refused.code == 6
    assert f"it was made for '{name}', not for {production}" in refused.stderr
    assert f"modelpack sign {production}@{digest}" in refused.stderr
    assert tags(modelpack, production) == []
    signed = modelpack("sign", f"{production}@{digest}", "--key", key_pair[0], env=PASSWORD)
    assert signed.code == 0, signed.stderr
    assert modelpack("promote", name, production, "--dry-run").code == 0
    assert modelpack("promote", name, production).code == 0
    assert tags(modelpack, production) == ["v1"]


def test_signatures_of_the_source_count_where_the_rule_says_so(modelpack, staged, registry, production, home, key_pair):
    mirrored = f'match = "{registry}/prod/**"\nrequire_ref = true\nsigned_prefix = "{registry}/staging"'
    write_policy(home, key_pair, f'match = "{registry}/staging/**"\nrequire_ref = true', mirrored)

    assert modelpack("promote", staged[0], production).code == 0
    other = modelpack("promote", staged[0], production.replace(":v1", ":v2"))
    assert other.code == 6, "a signature for one tag is none for another"


def test_evidence_that_is_asked_for_has_to_be_there_and_good(modelpack, staged, production, key_pair, tmp_path):
    command = ("promote", staged[0], production, "--key", key_pair[1], "--require", "smoke:PASSED")
    report = tmp_path / "result.json"

    def attest(result: str) -> None:
        report.write_text(
            json.dumps({"result": result, "configuration": [{"name": "suite", "uri": "https://example.com/suite"}]})
        )
        attested = modelpack(
            "attest", staged[0], "--type", "test-result", "--predicate", report, "--key", key_pair[0], env=PASSWORD
        )
        assert attested.code == 0, attested.stderr

    assert modelpack(*command).code == 6
    attest("FAILED")
    failed = modelpack(*command)
    assert failed.code == 6
    assert "its result is 'FAILED', not 'PASSED'" in failed.stderr
    assert tags(modelpack, production) == []
    attest("PASSED")
    passed = modelpack(*command, "--json")
    assert passed.code == 0, passed.stderr
    assert len(passed.json("promote")["destination_trust"]["attestations"]) == 1


def test_evidence_is_not_waved_through_where_no_rule_says_whose_counts(modelpack, staged, production, home, key_pair):
    write_policy(home, key_pair)
    path = home / ".config/modelpack/policy.toml"
    path.write_text('version = 1\n[default]\naction = "allow-unsigned"\n')

    assert modelpack("promote", staged[0], production, "--require", "slsa").code == 6
    assert modelpack("promote", staged[0], production).code == 0


@pytest.mark.parametrize("text", ["smoke:GREAT", "nonsense"])
def test_evidence_that_nobody_knows_is_refused(modelpack, staged, production, key_pair, text):
    assert modelpack("promote", staged[0], production, "--key", key_pair[1], "--require", text).code == 2
