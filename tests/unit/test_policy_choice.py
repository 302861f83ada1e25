"""Which policy counts, and that nothing a user says takes the place of a locked one."""

import pytest

from modelpack.errors import MalformedPolicyError, NotFoundError, PolicyRefusedError
from modelpack.policy import choose_policy, locked_policy
from modelpack.signing.keys import PrivateKey

KEY = PrivateKey.generate().public
LOCKED = 'version = 1\nlocked = true\n[default]\naction = "deny"\n'
OPEN = 'version = 1\n[default]\naction = "allow-unsigned"\n'


@pytest.fixture
def machine(tmp_path):
    return tmp_path / "etc" / "policy.toml"


@pytest.fixture
def user(tmp_path):
    return tmp_path / "home" / "policy.toml"


@pytest.fixture
def named(tmp_path):
    return tmp_path / "named.toml"


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_first_that_is_there_counts_and_none_is_merged(machine, user, named):
    assert choose_policy(machine, user) is None
    for path in (machine, user, named):
        write(path, OPEN)

    assert choose_policy(machine, user).path == user
    assert choose_policy(machine, user, named=named).path == named
    assert choose_policy(machine, user, named=named, keys=[KEY]).path is None
    user.unlink()
    assert choose_policy(machine, user).path == machine
    with pytest.raises(NotFoundError):
        choose_policy(machine, user, named=user)


def test_a_locked_policy_of_the_machine_wins_over_the_users_file(machine, user):
    write(machine, LOCKED)
    write(user, OPEN)

    policy = choose_policy(machine, user)

    assert (policy.path, policy.default, policy.is_locked) == (machine, "deny", True)


@pytest.mark.parametrize("said", [["--policy"], ["MODELPACK_POLICY"], ["--key", "--insecure-skip-verify"]])
def test_a_locked_policy_refuses_whatever_would_be_in_its_place(machine, user, named, said):
    write(machine, LOCKED)
    write(named, OPEN)

    with pytest.raises(PolicyRefusedError) as caught:
        choose_policy(machine, user, named=named, keys=[KEY], overridden_by=said)
    assert "is locked" in str(caught.value)
    assert str(machine) in str(caught.value)
    for one in said:
        assert one in str(caught.value)


@pytest.mark.parametrize("broken", ["version = 1\nlocked = maybe", "version = 1\nlocked = true\nnew = 1", "\0"])
def test_a_policy_of_the_machine_that_cannot_be_read_stops_everybody(machine, user, broken):
    # It might say that it is locked.
    write(machine, broken)
    write(user, OPEN)

    with pytest.raises(MalformedPolicyError):
        choose_policy(machine, user, keys=[KEY])
    machine.unlink()
    machine.mkdir()
    with pytest.raises(MalformedPolicyError):
        choose_policy(machine, user)


def test_a_lock_in_a_file_that_cannot_keep_it_is_refused(machine, user, named):
    write(user, LOCKED)
    write(named, LOCKED)

    with pytest.raises(MalformedPolicyError, match=r"holds in .*etc/policy\.toml alone"):
        choose_policy(machine, user)
    with pytest.raises(MalformedPolicyError):
        choose_policy(machine, user, named=named)


def test_an_open_policy_of_the_machine_is_not_in_the_way(machine, user):
    write(machine, OPEN)

    assert locked_policy(machine, overridden_by=["--key"]) is None
    assert choose_policy(machine, user, keys=[KEY], overridden_by=["--key"]).path is None


def test_a_policy_of_the_machine_that_is_a_link_to_nothing_is_not_taken_for_none(machine, user, named):
    machine.parent.mkdir(parents=True)
    machine.symlink_to(machine.with_name("moved.toml"))
    write(user, OPEN)

    for choose in (lambda: choose_policy(machine, user), lambda: choose_policy(machine, user, keys=[KEY])):
        with pytest.raises(MalformedPolicyError, match="link to a file that is not there"):
            choose()
