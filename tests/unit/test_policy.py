"""The policy file: what it means, what it must not contain, and how trust add changes it."""

import re
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from modelpack.errors import (
    InvalidInputError,
    InvalidKeyError,
    MalformedPolicyError,
    NotFoundError,
)
from modelpack.oci.digest import Digest
from modelpack.oci.reference import Reference
from modelpack.policy import Policy, add_key_rule, glob, remove_signer, revoke_key
from modelpack.schemas import violations
from modelpack.signing.keys import PrivateKey, encrypt_private

ACME = PrivateKey.generate()
OTHER = PrivateKey.generate()

FULL = f"""
version = 1
locked = true
[default]
action = "warn"
[keys.acme-2026]
path = "keys/acme.pub"
id = "{ACME.public.id}"
not_after = 2027-12-31T00:00:00Z
[keys.acme-2025]
path = "keys/other.pub"
status = "retired"
[[rule]]
match = "ghcr.io/acme/**"
signers = ["acme-2026", "acme-2025"]
threshold = 2
formats = ["bundle"]
require_ref = true
max_age = "180d"
signed_prefix = "registry.acme.dev/models"
licenses = ["Apache-2.0", "MIT"]
template_sha256 = ["{"1" * 64}", "sha256:{"2" * 64}"]
[[rule.attestation]]
type = "https://in-toto.io/attestation/test-result/v0.1"
signers = ["ci", "acme-2026"]
threshold = 2
where = {{ result = "PASSED", "configuration.0.name" = ["small", "large"] }}
[identities.ci]
issuer = "https://token.actions.githubusercontent.com"
subject = "https://github.com/acme/models/.github/workflows/release.yml@refs/tags/*"
[sigstore]
trusted_root = "trusted_root.json"
[[revoked]]
digest = "sha256:{"0" * 64}"
reason = "trained on the wrong data"
"""

SMALL = """
version = 1
[keys.acme]
path = "keys/acme.pub"
[keys.other]
path = "keys/other.pub"
[[rule]]
match = "ghcr.io/acme/**"
signers = ["acme", "other"]
"""


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "acme.pub").write_bytes(ACME.public.pem)
    (tmp_path / "keys" / "other.pub").write_bytes(OTHER.public.pem)
    return tmp_path


def write(directory: Path, text: str) -> Path:
    path = directory / "policy.toml"
    path.write_text(text)
    return path


def load(directory: Path, text: str) -> Policy:
    return Policy.load(write(directory, text))


def as_json(text: str) -> object:
    """The document that the schema describes: TOML with its date-times as strings."""

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list):
            return [plain(item) for item in value]
        return value.isoformat() if isinstance(value, datetime) else value

    return plain(tomllib.loads(text))


def match_of(policy: Policy, reference: str) -> str | None:
    rule = policy.rule_for(Reference.parse(reference))
    return rule.match if rule else None


@pytest.mark.parametrize(
    "name",
    ["docker.io/ai/x", "index.docker.io/ai/x", "registry-1.docker.io/ai/x", "DOCKER.io/ai/x", "docker.io:443/ai/x"],
)
def test_no_other_name_of_a_registry_leads_past_its_rule(directory, name):
    policy = load(directory, SMALL.replace("ghcr.io/acme", "docker.io/ai") + '[default]\naction = "allow-unsigned"\n')

    assert match_of(policy, f"{name}:v1") == "docker.io/ai/**"
    assert match_of(policy, "docker.io.example.com/ai/x:v1") is None


@pytest.mark.parametrize("order", [1, -1])
def test_rules_about_two_names_of_one_registry_are_chosen_whatever_their_order(directory, order):
    rules = [
        f'[[rule]]\nmatch = "{match}"\nsigners = ["acme"]\n' for match in ("docker.io/aaaaa/**", "index.docker.io/**")
    ]
    policy = load(directory, SMALL.partition("[[rule]]")[0] + "".join(rules[::order]))

    assert match_of(policy, "index.docker.io/aaaaa/x:v1") == "index.docker.io/**"


def test_a_rule_may_name_a_port(directory):
    policy = load(directory, SMALL.replace("ghcr.io/acme", "ghcr.io:443/acme"))

    assert match_of(policy, "ghcr.io:443/acme/x:v1") == "ghcr.io:443/acme/**"
    assert match_of(policy, "ghcr.io/acme/x:v1") is None


def test_where_looks_no_further_than_a_list_reaches(directory):
    required = '[[rule.attestation]]\ntype = "https://x/y"\nsigners = ["acme"]\nwhere = { "a.%s" = 1 }\n'
    for step, is_met in (("0", True), ("1", False), ("9" * 5000, False), ("-1", False)):
        wanted = load(directory, SMALL + required % step).rules[0].attestations[0]
        assert (wanted.fault({"a": [1]}) is None) == is_met, step[:5]


def test_every_field_is_read(directory):
    (directory / "trusted_root.json").write_bytes(b"{}")
    policy = load(directory, FULL)

    (rule,) = policy.rules
    assert (rule.signed_prefix, rule.licenses) == ("registry.acme.dev/models", ("Apache-2.0", "MIT"))
    assert rule.templates == ("1" * 64, "2" * 64)
    (required,) = rule.attestations
    assert (required.type, required.threshold) == ("https://in-toto.io/attestation/test-result/v0.1", 2)
    assert dict(required.where) == {"result": ("PASSED",), "configuration.0.name": ("small", "large")}
    assert [signer.name for signer in required.signers] == ["ci", "acme-2026"]
    assert policy.identities["ci"].issuer == "https://token.actions.githubusercontent.com"
    assert (policy.is_locked, policy.trusted_root) == (True, b"{}")
    assert (rule.match, rule.threshold, rule.formats) == ("ghcr.io/acme/**", 2, ("bundle",))
    assert rule.require_ref is True
    assert rule.max_age == timedelta(days=180)
    assert [(signer.name, signer.status) for signer in rule.signers] == [
        ("acme-2026", "active"),
        ("acme-2025", "retired"),
    ]
    assert rule.signers[0].not_after == datetime(2027, 12, 31, tzinfo=UTC)
    assert policy.default == "warn"
    assert policy.revoked == {Digest("sha256:" + "0" * 64): "trained on the wrong data"}
    assert violations("policy", as_json(FULL)) == []


def test_what_is_left_out_is_strict_except_for_the_tag(directory):
    policy = load(directory, SMALL)

    (rule,) = policy.rules
    assert (rule.threshold, rule.formats, rule.require_ref, rule.max_age) == (
        1,
        ("bundle", "cosign-legacy"),
        False,
        None,
    )
    assert policy.default == "deny"


def attestation(fields: str) -> str:
    return f'[[rule.attestation]]\nsigners = ["acme"]\n{fields}'


# Shapes: the schema and the loader refuse the same. (what stands there, what is put in its place)
SHAPES = [
    ("version = 1", ""),
    ("version = 1", "version = 2"),
    ("version = 1", 'version = "1"'),
    ("version = 1", "version = 1\nextra = true"),
    ("version = 1", "version = 1\nlocked = 1"),
    ("version = 1", 'version = 1\n[identities."c i"]\nissuer = "https://x"\nsubject = "a"'),
    ("version = 1", 'version = 1\n[identities.ci]\nissuer = "http://x"\nsubject = "a"'),
    ("version = 1", 'version = 1\n[identities.ci]\nissuer = "https://*"\nsubject = "a"'),
    ("version = 1", 'version = 1\n[identities.ci]\nissuer = "https://x"\nsubject = ""'),
    ("version = 1", 'version = 1\n[identities.ci]\nissuer = "https://x"\nsubject = "**"'),
    ("version = 1", 'version = 1\n[identities.ci]\nissuer = "https://x"\nsubject = "*@*.*"'),
    ("version = 1", 'version = 1\n[identities.ci]\nissuer = "https://x"\nsubject = "a***"'),
    ("version = 1", 'version = 1\n[identities.ci]\nissuer = "https://x"\nsubject = "a b"'),
    ("version = 1", 'version = 1\n[identities.ci]\nissuer = "https://x"\nsubject = "a"\nkey = "b"'),
    ("version = 1", "version = 1\n[sigstore]\nrekor = 'x'"),
    ("version = 1", "version = 1\n[sigstore]\ntrusted_root = 1"),
    ("version = 1", 'version = 1\n[default]\naction = "allow"'),
    ("version = 1", "version = 1\n[default]\naction = true"),
    ("version = 1", 'version = 1\n[default]\nextra = "x"'),
    ("version = 1", 'version = 1\n[identities.ci]\nissuer = "https://example.com"'),
    ("version = 1", 'version = 1\n[[revoked]]\ndigest = "sha256:1"'),
    ("version = 1", 'version = 1\n[[revoked]]\nreason = "x"'),
    ("version = 1", "version = 1\nrevoked = 1"),
    ("[keys.acme]", '[keys."ac me"]\npath = "keys/acme.pub"\n[keys.acme]'),
    ('path = "keys/acme.pub"', ""),
    ('path = "keys/acme.pub"', "path = 5"),
    ('path = "keys/acme.pub"', 'path = "keys/acme.pub"\nstatus = "old"'),
    ('path = "keys/acme.pub"', 'path = "keys/acme.pub"\nemail = "x"'),
    ('match = "ghcr.io/acme/**"', ""),
    ('match = "ghcr.io/acme/**"', 'match = ""'),
    ('match = "ghcr.io/acme/**"', 'match = "ghcr.io/acme/***"'),
    ('match = "ghcr.io/acme/**"', 'match = "https://ghcr.io/acme/**"'),
    ('match = "ghcr.io/acme/**"', 'match = "ghcr.io/acme/tiny:v1"'),
    ('match = "ghcr.io/acme/**"', 'match = "ghcr.io/acme/"'),
    ('match = "ghcr.io/acme/**"', 'match = "/acme"'),
    ('match = "ghcr.io/acme/**"', 'match = "gh?r.io/acme"'),
    ('match = "ghcr.io/acme/**"', f'match = "{"a" * 256}"'),
    ('signers = ["acme", "other"]', ""),
    ('signers = ["acme", "other"]', "signers = []"),
    ('signers = ["acme", "other"]', 'signers = "acme"'),
    ('signers = ["acme", "other"]', 'signers = ["acme", "acme"]'),
    ('signers = ["acme", "other"]', 'signers = ["acme", "other"]\nthreshold = 0'),
    ('signers = ["acme", "other"]', 'signers = ["acme", "other"]\nthreshold = true'),
    ('signers = ["acme", "other"]', 'signers = ["acme", "other"]\nformats = []'),
    ('signers = ["acme", "other"]', 'signers = ["acme", "other"]\nformats = ["notation"]'),
    ('signers = ["acme", "other"]', 'signers = ["acme", "other"]\nrequire_ref = 1'),
    ('signers = ["acme", "other"]', 'signers = ["acme", "other"]\nmax_age = "0d"'),
    ('signers = ["acme", "other"]', 'signers = ["acme", "other"]\nmax_age = "6 months"'),
    ('signers = ["acme", "other"]', 'signers = ["acme", "other"]\nrequire_ref = true\nsigned_prefix = "x/*"'),
    ('signers = ["acme", "other"]', 'signers = ["acme", "other"]\nrequire_ref = true\nsigned_prefix = "x/"'),
    ('signers = ["acme", "other"]', 'signers = ["acme", "other"]\nlicenses = []'),
    ('signers = ["acme", "other"]', 'signers = ["acme", "other"]\nlicenses = "MIT"'),
    ('signers = ["acme", "other"]', 'signers = ["acme", "other"]\ntemplate_sha256 = "x"'),
    ('signers = ["acme", "other"]', 'signers = ["acme", "other"]\ntemplate_sha256 = ["x"]'),
    ('signers = ["acme", "other"]', f'signers = ["acme", "other"]\ntemplate_sha256 = ["{"A" * 64}"]'),
    ('signers = ["acme", "other"]', 'signers = ["acme", "other"]\ntemplate_sha256 = []'),
    ('signers = ["acme", "other"]', 'signers = ["acme", "other"]\n[[rule.attestation]]\ntype = "x"'),
    ('signers = ["acme", "other"]', 'signers = ["acme", "other"]\n[[rule.attestation]]\nsigners = ["acme"]'),
    ('signers = ["acme", "other"]', 'signers = ["acme", "other"]\n' + attestation('type = "a b"')),
    ('signers = ["acme", "other"]', 'signers = ["acme", "other"]\n' + attestation('type = "x"\nthreshold = 0')),
    ('signers = ["acme", "other"]', 'signers = ["acme", "other"]\n' + attestation('type = "x"\nmax_age = "1d"')),
    ('signers = ["acme", "other"]', 'signers = ["acme", "other"]\n' + attestation('type = "x"\nwhere = {"a..b"=1}')),
    ('signers = ["acme", "other"]', 'signers = ["acme", "other"]\n' + attestation('type = "x"\nwhere = {a=1.5}')),
    ('signers = ["acme", "other"]', 'signers = ["acme", "other"]\n' + attestation('type = "x"\nwhere = {a=[]}')),
    ('signers = ["acme", "other"]', 'signers = ["acme", "other"]\n' + attestation('type = "x"\nwhere = {a={b=1}}')),
]


@pytest.mark.parametrize(("old", "new"), SHAPES)
def test_the_loader_and_the_schema_refuse_the_same_shapes(directory, old, new):
    text = SMALL.replace(old, new, 1)
    assert text != SMALL

    with pytest.raises(MalformedPolicyError) as caught:
        load(directory, text)
    assert str(directory / "policy.toml") in str(caught.value)
    assert violations("policy", as_json(text))


# Meaning, which no schema sees.
@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('signers = ["acme", "other"]', 'signers = ["acme", "ci"]', "'ci' is not among the keys"),
        (
            'signers = ["acme", "other"]',
            'signers = ["acme", "other"]\n[[rule.attestation]]\ntype = "x"\nsigners = ["ci"]',
            "'ci' is not among the keys",
        ),
        (
            'signers = ["acme", "other"]',
            'signers = ["acme", "other"]\nsigned_prefix = "x"',
            "says nothing without require_ref",
        ),
        (
            'match = "ghcr.io/acme/**"',
            'match = "ghcr.io/acme-*/**"\nsigned_prefix = "x"\nrequire_ref = true',
            "needs a match that ends",
        ),
        ("version = 1", 'version = 1\n[sigstore]\ntrusted_root = "none.json"', "there is no file"),
        (
            "version = 1",
            'version = 1\n[identities.acme]\nissuer = "https://x"\nsubject = "a"',
            "'acme' names a key and an identity",
        ),
        ('signers = ["acme", "other"]', 'signers = ["acme", "other"]\nthreshold = 3', "does not fit 2 distinct keys"),
        ('path = "keys/acme.pub"', 'path = "keys/none.pub"', "there is no file"),
        ('path = "keys/acme.pub"', 'path = "policy.toml"', "not a key file"),
        ('path = "keys/acme.pub"', 'path = "keys"', "cannot be read"),
        # The digest of nothing: some other key's.
        (
            'path = "keys/acme.pub"',
            'path = "keys/acme.pub"\nid = "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="',
            "holds the key",
        ),
        ('path = "keys/acme.pub"', 'path = "keys/acme.pub"\nnot_after = 2027-12-31T00:00:00', "no time zone"),
        (
            'path = "keys/acme.pub"',
            'path = "keys/acme.pub"\nnot_after = 9999-12-31T23:59:59-23:59',
            "not in the years 1 to 9999",
        ),
        ("version = 1", "version = 1\nversion = 1", "not TOML"),
        ("version = 1", "version =", "not TOML"),
    ],
)
def test_a_policy_that_cannot_mean_anything_is_refused_whole(directory, old, new, reason):
    with pytest.raises(MalformedPolicyError, match=reason):
        load(directory, SMALL.replace(old, new, 1))


def test_one_key_under_two_names_is_one_key_to_a_threshold(directory):
    (directory / "keys" / "other.pub").write_bytes(ACME.public.pem)

    with pytest.raises(MalformedPolicyError, match="1 distinct keys"):
        load(directory, SMALL.replace('["acme", "other"]', '["acme", "other"]\nthreshold = 2'))


def test_a_policy_without_a_file_is_not_found(tmp_path):
    with pytest.raises(NotFoundError):
        Policy.load(tmp_path / "none.toml")


def test_a_policy_beyond_the_limit_or_not_in_utf8_is_refused(directory):
    path = directory / "policy.toml"
    for content in (b"#" * ((1 << 20) + 1), b"version = 1 # \xff"):
        path.write_bytes(content)
        with pytest.raises(MalformedPolicyError):
            Policy.load(path)


def rules(*matches: str) -> str:
    blocks = [f'[[rule]]\nmatch = "{match}"\nsigners = ["acme"]' for match in matches]
    return "\n".join(['version = 1\n[keys.acme]\npath = "keys/acme.pub"', *blocks])


@pytest.mark.parametrize("order", [1, -1])
def test_the_most_specific_rule_wins_whatever_its_place(directory, order):
    matches = ["**", "ghcr.io/**", "ghcr.io/acme/**", "ghcr.io/acme/*", "ghcr.io/acme/tiny", "ghcr.io/acme/*-prod"]
    policy = load(directory, rules(*matches[::order]))

    assert match_of(policy, "ghcr.io/acme/tiny:v1") == "ghcr.io/acme/tiny"
    assert match_of(policy, "ghcr.io/acme/big") == "ghcr.io/acme/*"
    assert match_of(policy, "ghcr.io/acme/big-prod") == "ghcr.io/acme/*-prod"
    assert match_of(policy, "ghcr.io/acme/team/big") == "ghcr.io/acme/**"
    assert match_of(policy, "ghcr.io/other/big") == "ghcr.io/**"
    assert match_of(policy, "localhost:5000/x") == "**"
    assert match_of(policy, "tiny") == "**"


def test_a_repository_that_no_rule_is_about_has_none(directory):
    policy = load(directory, rules("ghcr.io/acme/**", "localhost:5000/*"))

    assert match_of(policy, "ghcr.io/acme-evil/tiny") is None
    assert match_of(policy, "ghcr.io.evil.com/acme/tiny") is None
    assert match_of(policy, "evil.com/ghcr.io/acme/tiny") is None
    assert match_of(policy, "localhost:5000/a/b") is None
    assert match_of(policy, "localhost:5000/a") == "localhost:5000/*"


def test_a_registry_in_capitals_is_the_same_registry(directory):
    policy = load(directory, rules("GHCR.io/acme/**"))

    assert match_of(policy, "ghcr.IO/acme/tiny") == "ghcr.io/acme/**"


@pytest.mark.parametrize(
    "matches", [("a.io/x/*", "a.io/x/*"), ("a.io/*a*", "a.io/*b*"), ("a.io/X/**", "a.io/x/**"), ("a.io/*", "A.io/*")]
)
def test_two_rules_that_could_both_decide_are_refused(directory, matches):
    with pytest.raises(MalformedPolicyError, match="equally specific"):
        load(directory, rules(*matches))


def test_rules_that_look_alike_but_cannot_meet_are_fine(directory):
    assert len(load(directory, rules("a.io/*-prod", "a.io/*-test", "a.io/b/**", "a.io/c/**")).rules) == 4


pieces = st.lists(st.sampled_from(["a", "b", "/", "-", "*", "**"]), max_size=7).map("".join)
names = st.lists(st.sampled_from(["a", "b", "/", "-"]), max_size=7).map("".join)


@given(one=pieces, other=pieces, name=names)
@example(one="*/a", other="b/*", name="b/a")
@example(one="**", other="*", name="")
def test_globs_that_both_match_a_name_overlap(one, other, name):
    if glob.matches(one, name) and glob.matches(other, name):
        assert glob.overlap(one, other)


@given(pattern=pieces, name=names)
def test_a_glob_matches_what_the_same_regular_expression_matches(pattern, name):
    expression = "".join(
        {"**": ".*", "*": "[^/]*"}.get(part) or re.escape(part) for part in re.split(r"(\*\*|\*)", pattern)
    )

    assert glob.matches(pattern, name) == bool(re.fullmatch(expression, name))


def test_a_glob_full_of_wildcards_is_decided_at_once():
    assert not glob.matches("**a" * 80 + "b", "a" * 250)


@given(raw=st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_any_file_is_a_policy_or_refused(raw):
    try:
        Policy.parse(raw, Path("/nowhere/policy.toml"))
    except MalformedPolicyError:
        return
    assert tomllib.loads(raw.decode())["version"] == 1


def test_the_digest_of_a_policy_follows_its_meaning_and_not_its_spelling(directory):
    digest = load(directory, SMALL).digest

    assert load(directory, "# a comment\n" + SMALL.replace(" = ", "=")).digest == digest
    assert load(directory, SMALL.replace('["acme", "other"]', '["other", "acme"]')).digest == digest
    for old, new in (
        ("acme/**", "acme/*"),
        ('["acme", "other"]', '["acme"]'),
        ('["acme", "other"]', '["acme", "other"]\nthreshold = 2'),
        ('["acme", "other"]', '["acme", "other"]\nrequire_ref = true'),
        ('["acme", "other"]', '["acme", "other"]\nmax_age = "1d"'),
        ('["acme", "other"]', '["acme", "other"]\nformats = ["bundle"]'),
        ('path = "keys/acme.pub"', 'path = "keys/acme.pub"\nstatus = "revoked"'),
        ('path = "keys/acme.pub"', 'path = "keys/acme.pub"\nnot_after = 2027-01-01T00:00:00Z'),
        ("version = 1", 'version = 1\n[default]\naction = "warn"'),
        ("version = 1", f'version = 1\n[[revoked]]\ndigest = "sha256:{"0" * 64}"'),
        ('["acme", "other"]', '["acme", "other"]\nrequire_ref = true\nsigned_prefix = "x"'),
        ('["acme", "other"]', '["acme", "other"]\nlicenses = ["MIT"]'),
        ('["acme", "other"]', f'["acme", "other"]\ntemplate_sha256 = ["{"1" * 64}"]'),
        ('["acme", "other"]', '["acme", "other"]\n' + attestation('type = "x"')),
        ('["acme", "other"]', '["acme", "other"]\n' + attestation('type = "x"\nwhere = {a = 1}')),
        ("version = 1", 'version = 1\n[identities.ci]\nissuer = "https://x"\nsubject = "a"'),
        ("version = 1", 'version = 1\n[sigstore]\ntrusted_root = "policy.toml"'),
    ):
        assert load(directory, SMALL.replace(old, new, 1)).digest != digest
    (directory / "keys" / "acme.pub").write_bytes(PrivateKey.generate().public.pem)
    assert load(directory, SMALL).digest != digest


def test_keys_given_by_hand_are_one_rule_for_everything():
    policy = Policy.of_keys([ACME.public, OTHER.public, ACME.public])

    rule = policy.rule_for(Reference.parse("anything/at/all"))
    assert (rule.threshold, len(rule.signers)) == (1, 2)
    with pytest.raises(InvalidInputError):
        Policy.of_keys([])


def test_trust_add_makes_a_policy_that_loads(tmp_path):
    path = tmp_path / "new" / "policy.toml"

    add_key_rule(path, "acme", ACME.public.pem, "ghcr.io/acme/**")

    policy = Policy.load(path)
    assert policy.rules[0].match == "ghcr.io/acme/**"
    assert policy.keys["acme"].key == ACME.public
    assert policy.default == "deny"
    assert (tmp_path / "new" / "keys" / "acme.pub").read_bytes() == ACME.public.pem
    assert ACME.public.id in path.read_text()
    assert violations("policy", as_json(path.read_text())) == []


def test_trust_add_twice_changes_nothing(tmp_path):
    path = tmp_path / "policy.toml"
    add_key_rule(path, "acme", ACME.public.pem, "ghcr.io/acme/**")
    before = path.read_text()

    add_key_rule(path, "acme", ACME.public.pem, "ghcr.io/acme/**")

    assert path.read_text() == before


def test_trust_add_keeps_what_people_wrote(directory):
    text = "# our rules\n" + SMALL + "\n# the end\n"
    path = write(directory, text)

    add_key_rule(path, "third", PrivateKey.generate().public.pem, "ghcr.io/third/*")

    assert path.read_text().startswith(text.rstrip())
    assert [rule.match for rule in Policy.load(path).rules] == ["ghcr.io/acme/**", "ghcr.io/third/*"]


@pytest.mark.parametrize(
    "signers", ['["acme", "other"]', "['acme', 'other',]", '[\n  "acme",\n  "other",\n]', '[ "acme" , "other" ]']
)
def test_trust_add_extends_the_rule_of_the_same_match(directory, signers):
    path = write(directory, SMALL.replace('["acme", "other"]', signers) + '\n[[rule]]\nmatch="x/*"\nsigners=["acme"]\n')
    third = PrivateKey.generate()

    add_key_rule(path, "third", third.public.pem, "ghcr.io/acme/**")

    policy = Policy.load(path)
    assert [signer.name for signer in policy.rules[0].signers] == ["acme", "other", "third"]
    assert [signer.name for signer in policy.rules[1].signers] == ["acme"]


def test_trust_add_leaves_alone_what_it_cannot_extend(directory):
    path = write(directory, SMALL.replace('["acme", "other"]', '["acme", # ours]\n"other"]'))
    before = path.read_text()

    with pytest.raises(InvalidInputError, match="by hand"):
        add_key_rule(path, "third", PrivateKey.generate().public.pem, "ghcr.io/acme/**")

    assert path.read_text() == before
    assert not (directory / "keys" / "third.pub").exists()


@pytest.mark.parametrize(
    ("name", "match", "error"),
    [
        ("../evil", "ghcr.io/**", InvalidInputError),
        ("a.b", "ghcr.io/**", InvalidInputError),
        ("", "ghcr.io/**", InvalidInputError),
        ("new", 'x"\nthreshold = 0', InvalidInputError),
        ("new", "ghcr.io/acme:v1", InvalidInputError),
        ("acme", "ghcr.io/**", InvalidInputError),  # knows acme as another key
    ],
)
def test_trust_add_refuses_what_would_not_load_and_writes_nothing(directory, name, match, error):
    path = write(directory, SMALL)

    with pytest.raises(error):
        add_key_rule(path, name, PrivateKey.generate().public.pem, match)

    assert path.read_text() == SMALL
    assert sorted(file.name for file in (directory / "keys").iterdir()) == ["acme.pub", "other.pub"]


def test_trust_add_refuses_a_private_key_and_a_revoked_one(directory):
    path = write(directory, SMALL.replace('path = "keys/acme.pub"', 'path = "keys/acme.pub"\nstatus = "revoked"'))

    with pytest.raises(InvalidKeyError):
        add_key_rule(path, "new", encrypt_private(ACME, b""), "ghcr.io/**")
    with pytest.raises(InvalidInputError, match="revoked"):
        add_key_rule(path, "acme", ACME.public.pem, "ghcr.io/**")


def test_trust_add_does_not_mend_a_broken_policy(directory):
    path = write(directory, SMALL + "\nbroken")

    with pytest.raises(MalformedPolicyError):
        add_key_rule(path, "new", PrivateKey.generate().public.pem, "x/**")
    assert path.read_text() == SMALL + "\nbroken"


def test_a_policy_that_is_a_link_into_another_folder_is_edited_as_it_is_read(directory, tmp_path):
    (tmp_path / "dotfiles").mkdir()
    real = tmp_path / "dotfiles" / "policy.toml"
    real.write_text("version = 1\n")
    (tmp_path / "config").mkdir()
    link = tmp_path / "config" / "policy.toml"
    link.symlink_to(real)

    add_key_rule(link, "acme", ACME.public.pem, "x/**")
    assert Policy.load(link).keys["acme"].id == ACME.public.id
    assert revoke_key(link, "acme").status == "revoked"
    remove_signer(link, "acme")

    assert link.is_symlink()
    assert real.read_text().startswith("version = 1")
    assert not Policy.load(link).keys


def test_trust_add_follows_a_linked_policy(directory, tmp_path):
    path = write(directory, SMALL)
    link = tmp_path / "link.toml"
    link.symlink_to(path)

    add_key_rule(link, "new", PrivateKey.generate().public.pem, "x/**")

    assert link.is_symlink()
    assert len(Policy.load(path).rules) == 2
