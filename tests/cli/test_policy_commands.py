"""modelpack policy and trust, as a person runs them."""

import json

import pytest
from fakes.artifacts import put_cncf_model
from fakes.sigstore import ISSUER, FakeSigstore, token

from modelpack.oci.reference import Reference
from modelpack.policy import Policy
from modelpack.signing.keys import PrivateKey
from modelpack.signing.signature import sign
from modelpack.store import Store
from modelpack.trust import check_trust


@pytest.fixture
def policy_file(home):
    return home / ".config" / "modelpack" / "policy.toml"


@pytest.fixture
def trusted(modelpack, key_pair):
    result = modelpack("trust", "add", "team", key_pair[1], "--match", "registry.example.com/team/**")
    assert result.code == 0, result.stderr


def test_init_writes_a_policy_once(modelpack, policy_file):
    first = modelpack("policy", "init", "--json")

    assert first.json("policy-init") == {"policy": str(policy_file)}
    assert Policy.load(policy_file).rules == ()
    again = modelpack("policy", "init")
    assert again.code == 2
    assert "is there already" in again.stderr


def test_check_shows_the_rules_and_what_they_need(modelpack, trusted, policy_file):
    policy_file.write_text(policy_file.read_text() + 'threshold = 1\nrequire_ref = true\nlicenses = ["MIT"]\n')

    result = modelpack("policy", "check")

    assert result.code == 0, result.stderr
    for part in (
        "registry.example.com/team/**",
        "1 of 1 signatures",
        "team SHA256:",
        "a licence among MIT",
        "else deny",
    ):
        assert part in result.stdout
    document = modelpack("policy", "check", "--json").json("policy-check")
    assert document["rules"][0]["signers"][0]["name"] == "team"
    assert document["rules"][0]["require_ref"] is True


def test_check_refuses_a_file_that_asks_for_what_is_not_enforced(modelpack, tmp_path):
    draft = tmp_path / "draft.toml"
    draft.write_text("version = 1\ntransparency = true\n")

    result = modelpack("policy", "check", draft)

    assert result.code == 2
    assert "unknown field 'transparency'" in result.stderr


def test_check_of_a_draft_for_the_machine_says_that_it_is_locked(modelpack, tmp_path):
    draft = tmp_path / "draft.toml"
    draft.write_text("version = 1\nlocked = true\n")

    assert modelpack("policy", "check", draft, "--json").json("policy-check")["locked"] is True
    used = modelpack("policy", "check", env={"MODELPACK_POLICY": str(draft)})
    assert used.code == 2
    assert "'locked' holds in /etc/modelpack/policy.toml alone" in used.stderr


def test_without_a_policy_check_and_explain_say_so(modelpack):
    assert modelpack("policy", "check", "--json").json("policy-check")["rules"] == []
    document = modelpack("policy", "explain", "registry.example.com/team/tiny:v1", "--json").json("policy-explain")
    assert (document["rule"], document["default"], document["policy"]) == (None, "deny", None)


def test_explain_names_the_rule_the_keys_and_what_is_needed(modelpack, trusted, policy_file):
    policy_file.write_text(
        policy_file.read_text()
        + '[[rule]]\nmatch = "**"\nsigners = ["team"]\n'
        + '[[rule]]\nmatch = "registry.example.com/team/prod/*"\nsigners = ["team"]\nrequire_ref = true\n'
        + 'signed_prefix = "origin.example.com/prod"\nmax_age = "4w"\n'
        + '[[rule.attestation]]\ntype = "https://slsa.dev/provenance/v1"\nsigners = ["team"]\n'
        + 'where = { "runDetails.builder.id" = "https://ci.example.com/1" }\n'
    )

    result = modelpack("policy", "explain", "registry.example.com/team/prod/tiny:v1")

    assert result.code == 0, result.stderr
    for part in (
        "rule       registry.example.com/team/prod/*",
        "team SHA256:",
        "origin.example.com/prod/tiny:v1",
        "28 days",
        "https://slsa.dev/provenance/v1 by team",
        "runDetails.builder.id is 'https://ci.example.com/1'",
        "not        registry.example.com/team/**, which is less specific",
    ):
        assert part in result.stdout
    answer = modelpack("policy", "explain", "registry.example.com/team/prod/tiny:v1", "--json").json("policy-explain")
    assert answer["rule"]["match"] == "registry.example.com/team/prod/*"
    assert answer["less_specific"] == ["registry.example.com/team/**", "**"]
    assert answer["signed_as"] == "origin.example.com/prod/tiny"


def test_revoke_says_which_stored_models_the_key_signed(modelpack, trusted, key_pair, home, policy_file):
    store = Store.open(home / ".local" / "share" / "modelpack")
    key = PrivateKey.load(key_pair[0].read_bytes(), b"")
    for name in ("signed", "unsigned"):
        reference = Reference.parse(f"registry.example.com/team/{name}:v1")
        put_cncf_model(store, str(reference), f"GGUF {name}".encode())
        repository = store.repository(reference.name)
        if name == "signed":
            from datetime import UTC, datetime

            sign(repository, reference, repository.resolve("v1"), key, signed_at=datetime.now(UTC))
            rules = Policy.load(policy_file)
            assert check_trust(
                repository, reference, repository.resolve("v1"), rules, now=datetime.now(UTC)
            ).is_verified

    result = modelpack("trust", "revoke", "team", "--json")

    document = result.json("trust-revoke")
    assert [one["reference"] for one in document["models"]] == ["registry.example.com/team/signed:v1"]
    assert Policy.load(policy_file).keys["team"].status == "revoked"
    refused = modelpack("verify", "--local", "--trust-only", "registry.example.com/team/signed:v1")
    assert refused.code == 6
    assert "key 'team' is revoked" in refused.stderr
    listed = modelpack("trust", "list", "--json").json("trust-list")
    assert listed["rules"][0]["signers"][0]["status"] == "revoked"


def test_remove_forgets_a_key(modelpack, trusted, policy_file):
    assert modelpack("trust", "remove", "team", "--json").json("trust-remove")["name"] == "team"
    assert Policy.load(policy_file).rules == ()
    again = modelpack("trust", "remove", "team")
    assert again.code == 3


def test_an_identity_in_the_policy_is_listed(modelpack, policy_file):
    policy_file.parent.mkdir(parents=True)
    policy_file.write_text(
        'version = 1\n[identities.ci]\nissuer = "https://x"\nsubject = "a@b"\n'
        '[[rule]]\nmatch = "**"\nsigners = ["ci"]\n'
    )

    listed = modelpack("trust", "list", "--json").json("trust-list")
    assert listed["rules"][0]["signers"] == [{"name": "ci", "id": "a@b (https://x)", "status": "active"}]


def test_sign_takes_a_key_or_none(modelpack, key_pair):
    for arguments in ([], ["--key", key_pair[0], "--keyless"], ["--key", key_pair[0], "--trust-config", "x"]):
        result = modelpack("sign", "registry.example.com/team/tiny:v1", *arguments)
        assert result.code == 2
        assert "--keyless" in result.stderr


def test_keyless_outside_of_ci_says_what_is_missing(modelpack, home, environment):
    put_cncf_model(Store.open(home / ".local" / "share" / "modelpack"), "tiny:v1", b"GGUF")

    result = modelpack("sign", "tiny:v1", "--keyless")

    assert result.code == 2
    assert "OIDC token" in result.stderr


RELEASE = "https://gitlab.com/acme/models//.gitlab-ci.yml@refs/tags/v1"


def test_a_ci_job_signs_and_attests_in_a_private_sigstore_and_a_policy_asks_for_it(
    modelpack, home, policy_file, tmp_path
):
    put_cncf_model(Store.open(home / ".local" / "share" / "modelpack"), "registry.example.com/team/tiny:v1", b"GGUF")
    (tmp_path / "said.json").write_text('{"reviewed": true}')
    job = {"GITLAB_CI": "true", "SIGSTORE_ID_TOKEN": token(RELEASE), "GITHUB_ACTIONS": ""}
    with FakeSigstore() as sigstore:
        (tmp_path / "config.json").write_text(json.dumps(sigstore.trust_config()))
        private = ("--keyless", "--trust-config", tmp_path / "config.json", "--local", "--json")
        name = "registry.example.com/team/tiny:v1"
        signed = modelpack("sign", name, *private, env=job)
        said = ("--type", "urn:example:review", "--predicate", tmp_path / "said.json")
        attested = modelpack("attest", name, *said, *private, env=job)
        entries = len(sigstore.log)

    assert signed.json("sign")["log_index"] == 1, signed.stderr
    document = attested.json("attest")
    assert (document["log_index"], document["written"], entries) == (2, ["bundle"], 2)
    assert document["key_id"] == f"{RELEASE} ({ISSUER})"
    for told in (signed.stderr, attested.stderr):
        assert f"the log {sigstore.url}/api/v1, where they stay" in told

    def policy(subject: str, reviewed: str) -> None:
        policy_file.parent.mkdir(parents=True, exist_ok=True)
        (policy_file.parent / "root.json").write_text(json.dumps(sigstore.trusted_root()))
        policy_file.write_text(
            f'version = 1\n[sigstore]\ntrusted_root = "root.json"\n[identities.ci]\nissuer = "{ISSUER}"\n'
            f'subject = "{subject}"\n[[rule]]\nmatch = "registry.example.com/**"\nsigners = ["ci"]\n'
            f'[[rule.attestation]]\ntype = "urn:example:review"\nsigners = ["ci"]\n'
            f"where = {{ reviewed = {reviewed} }}\n"
        )

    policy("https://gitlab.com/acme/models//.gitlab-ci.yml@refs/tags/*", "true")
    verified = modelpack("verify", name, "--local", "--trust-only", "--json")
    assert verified.code == 0, verified.stderr
    assert verified.json("verify")["trust"]["attestations"][0]["type"] == "urn:example:review"
    policy("https://gitlab.com/acme/models//.gitlab-ci.yml@refs/tags/*", "false")
    assert modelpack("verify", name, "--local", "--trust-only").code == 6
    policy("https://gitlab.com/evil/models//.gitlab-ci.yml@refs/tags/*", "true")
    assert modelpack("verify", name, "--local", "--trust-only").code == 6


def test_attest_takes_a_key_or_none(modelpack, key_pair, tmp_path):
    said = ("--type", "urn:example:x", "--predicate", tmp_path / "said.json")
    for arguments in ([], ["--key", key_pair[0], "--keyless"], ["--keyless", "--legacy-attestations"]):
        result = modelpack("attest", "tiny:v1", *said, *arguments)
        assert result.code == 2, result.stderr
        assert "--keyless" in result.stderr
