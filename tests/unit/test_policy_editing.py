"""trust revoke, trust remove and policy init: the file means what it should, and people's text stays."""

import multiprocessing
import tomllib

import pytest

from modelpack.errors import InvalidInputError, MalformedPolicyError, NotFoundError
from modelpack.policy import Policy, add_key_rule, remove_signer, revoke_key, write_starting_policy
from modelpack.schemas import violations
from modelpack.signing.keys import PrivateKey

ACME, OTHER = PrivateKey.generate(), PrivateKey.generate()

TEXT = """\
# Ours.
version = 1

# The old team; see the wiki.
[keys.acme]
path = "keys/acme.pub"   # on paper, too

# The new team.
[keys.other]
path = "keys/other.pub"
status = "retired" # since May

# Machines.
[identities.ci]
issuer = "https://ci.example.com"
subject = "release@example.com"

# Everything of ours.
[[rule]]
match = "ghcr.io/acme/**"
signers = ["acme", "other"] # both

# Tests alone.
[[rule]]
match = "ghcr.io/acme-test/**"
signers = ["acme"]

# The end.
"""


@pytest.fixture
def path(tmp_path):
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "acme.pub").write_bytes(ACME.public.pem)
    (tmp_path / "keys" / "other.pub").write_bytes(OTHER.public.pem)
    path = tmp_path / "policy.toml"
    path.write_text(TEXT)
    return path


def comments(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("#")]


def test_revoke_marks_the_key_and_leaves_the_rest_alone(path):
    revoked = revoke_key(path, "acme")

    assert (revoked.name, revoked.id, revoked.status) == ("acme", ACME.public.id, "revoked")
    wanted = TEXT.replace("# on paper, too\n", '# on paper, too\nstatus = "revoked"\n')
    assert path.read_text() == wanted
    assert Policy.load(path).keys["acme"].status == "revoked"


def test_revoke_replaces_a_status_and_does_nothing_twice(path):
    revoke_key(path, "other")
    once = path.read_text()
    revoke_key(path, "other")

    assert once == TEXT.replace('status = "retired" # since May', 'status = "revoked" # since May')
    assert path.read_text() == once


def test_remove_takes_the_key_and_the_rules_it_signed_alone(path):
    remove_signer(path, "acme")

    policy = Policy.load(path)
    assert set(policy.keys) == {"other"}
    assert [(rule.match, [one.name for one in rule.signers]) for rule in policy.rules] == [
        ("ghcr.io/acme/**", ["other"])
    ]
    assert comments(path.read_text()) == comments(TEXT)
    assert (path.parent / "keys" / "acme.pub").exists()


def test_remove_takes_an_identity(path):
    remove_signer(path, "ci")

    assert Policy.load(path).identities == {}
    assert comments(path.read_text()) == comments(TEXT)


def test_remove_refuses_to_leave_a_rule_that_nobody_can_meet(path):
    text = TEXT.replace('signers = ["acme", "other"] # both', 'signers = ["acme", "other"]\nthreshold = 2')
    path.write_text(text)

    with pytest.raises(InvalidInputError, match="could not be met"):
        remove_signer(path, "other")
    assert path.read_text() == text


def test_remove_refuses_who_attests_for_a_rule(path):
    text = TEXT + '[[rule.attestation]]\ntype = "https://x"\nsigners = ["other"]\n'
    path.write_text(text)

    with pytest.raises(InvalidInputError, match="wants an attestation"):
        remove_signer(path, "other")
    assert path.read_text() == text


@pytest.mark.parametrize("change", [revoke_key, remove_signer])
def test_what_is_not_plain_enough_is_left_to_a_person(path, change):
    text = TEXT.replace(
        '[keys.acme]\npath = "keys/acme.pub"   # on paper, too', '[keys]\nacme = {path="keys/acme.pub"}'
    )
    path.write_text(text)

    with pytest.raises(InvalidInputError, match="by hand"):
        change(path, "acme")
    assert path.read_text() == text


@pytest.mark.parametrize("change", [revoke_key, remove_signer])
def test_who_is_not_there_and_a_broken_file_are_named(path, change):
    with pytest.raises(NotFoundError):
        change(path, "nobody")
    path.write_bytes(TEXT.encode() + b"\xff")
    with pytest.raises(MalformedPolicyError):
        change(path, "acme")
    path.unlink()
    with pytest.raises(NotFoundError):
        change(path, "acme")


def test_a_revoked_key_is_not_added_again(path):
    revoke_key(path, "acme")

    with pytest.raises(InvalidInputError, match="revoked"):
        add_key_rule(path, "acme", ACME.public.pem, "ghcr.io/**")


def test_a_starting_policy_refuses_everything_and_is_never_written_over(tmp_path):
    path = tmp_path / "new" / "policy.toml"

    write_starting_policy(path)

    policy = Policy.load(path)
    assert (policy.rules, policy.default) == ((), "deny")
    with pytest.raises(InvalidInputError, match="is there already"):
        write_starting_policy(path)
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(InvalidInputError):
        write_starting_policy(path)


def test_the_comments_of_a_starting_policy_are_a_policy(tmp_path):
    path = tmp_path / "policy.toml"
    write_starting_policy(path)
    lines = [
        line.removeprefix("# ")
        for line in path.read_text().splitlines()
        if line.startswith(("# [", "version")) or (line.startswith("# ") and " = " in line)
    ]
    text = "\n".join(lines).replace('"SHA256:..."', f'"{ACME.public.id}"').replace("sha256:...", f"sha256:{'0' * 64}")
    document = tomllib.loads(text)
    document["keys"]["team"]["not_after"] = "2027-12-31T00:00:00Z"

    assert violations("policy", document) == []
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "team.pub").write_bytes(ACME.public.pem)
    policy = Policy.parse(text.encode(), path)
    assert policy.rules[0].attestations[0].where == {"result": ("PASSED",)}


def _add(path, position):
    add_key_rule(path, f"key-{position}", PrivateKey.generate().public.pem, f"ghcr.io/team-{position}/**")


def test_processes_that_edit_at_once_lose_nothing(tmp_path):
    path = tmp_path / "policy.toml"
    context = multiprocessing.get_context("fork")
    editors = [context.Process(target=_add, args=(path, position)) for position in range(8)]
    for editor in editors:
        editor.start()
    for editor in editors:
        editor.join()

    assert [editor.exitcode for editor in editors] == [0] * 8
    assert len(Policy.load(path).rules) == 8
