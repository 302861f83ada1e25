"""A locked policy of the machine, against all that a person can say: in this process, since its place is fixed."""

import pytest

from modelpack.cli import places
from modelpack.cli.app import App
from modelpack.cli.settings import load_settings
from modelpack.errors import MalformedPolicyError, PolicyRefusedError
from modelpack.progress import SILENT
from modelpack.signing.keys import PrivateKey


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """The machine's policy: locked, and refusing everything."""
    path = tmp_path / "etc" / "policy.toml"
    path.parent.mkdir()
    path.write_text("version = 1\nlocked = true\n")
    monkeypatch.setattr(places, "SYSTEM_POLICY", path)
    return path


@pytest.fixture
def user(home):
    """The user's configuration, with a policy that lets everything in."""
    folder = home / ".config" / "modelpack"
    folder.mkdir(parents=True)
    (folder / "policy.toml").write_text('version = 1\n[default]\naction = "allow-unsigned"\n')
    return folder


@pytest.fixture
def app(home):
    def make(**environment):
        return App(load_settings({"HOME": str(home), **environment}), json_output=False, progress=SILENT)

    return make


def test_the_users_own_policy_and_an_unset_variable_are_passed_over(machine, user, app):
    for environment in ({}, {"MODELPACK_POLICY": ""}, {"MODELPACK_POLICY": str(machine)}):
        found = places.load_policy(app(**environment))
        assert found is not None
        assert (found.path, found.default, found.is_locked) == (machine, "deny", True)


def test_no_flag_no_variable_and_no_setting_takes_its_place(machine, user, app, tmp_path):
    (tmp_path / "k.pub").write_bytes(PrivateKey.generate().public.pem)
    other = user / "policy.toml"
    (user / "other.toml").write_text(f'policy = "{other}"\n')

    for what, environment, said in (
        ("--key", {}, {"keys": (tmp_path / "k.pub",)}),
        ("--policy", {}, {"policy": other}),
        ("--policy", {"MODELPACK_POLICY": str(machine)}, {"policy": other}),
        ("MODELPACK_POLICY", {"MODELPACK_POLICY": str(other)}, {}),
        ("policy in config.toml", {"MODELPACK_CONFIG": str(user / "other.toml")}, {}),
        ("--insecure-skip-verify", {}, {"skip": True}),
        ("--insecure-skip-verify", {"MODELPACK_POLICY": str(machine)}, {"skip": True}),
    ):
        with pytest.raises(PolicyRefusedError, match=f"^{what} has no say here"):
            places.load_policy(app(**environment), **said)


def test_another_file_is_not_edited_as_if_it_counted(machine, user, app):
    with pytest.raises(PolicyRefusedError, match="has no say here"):
        places.editable_policy(app().settings)


def test_a_policy_of_the_machine_that_cannot_be_read_might_be_locked(machine, user, app):
    machine.write_text("version = 1\nlocked = treu\n")

    with pytest.raises(MalformedPolicyError):
        places.load_policy(app())
