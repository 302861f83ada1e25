"""Times through the command line: the signer's clock is the far end, so signatures are made with any time on them."""

from datetime import UTC, datetime, timedelta

import pytest
from fakes.artifacts import put_cncf_model

from modelpack.oci.reference import Reference
from modelpack.policy import Policy
from modelpack.receipt import Receipt, write_receipt
from modelpack.signing.candidate import rfc3339
from modelpack.signing.keys import PrivateKey
from modelpack.signing.signature import sign
from modelpack.store import Store
from modelpack.trust import check_trust

NAME = Reference.parse("registry.example.com/team/tiny:v1")
KEY = PrivateKey.generate()
DAY, HOUR, MINUTE = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1)


@pytest.fixture
def store(home):
    store = Store.open(home / ".local/share/modelpack")
    put_cncf_model(store, str(NAME), b"GGUF tiny")
    return store


@pytest.fixture
def signed(store):
    """Signs with the times that a signer's clock shows, as far as they are from now."""

    def at(offset, expires=None):
        now = datetime.now(UTC)
        repository = store.repository(NAME.name)
        sign(
            repository, NAME, repository.resolve("v1"), KEY,
            signed_at=now + offset, expires=now + expires if expires else None,
        )  # fmt: skip

    return at


@pytest.fixture
def verify(modelpack, store, tmp_path):
    """Verifies under a rule; ``key`` is added to the key, ``rule`` to the rule."""

    def run(rule="", key=""):
        (tmp_path / "team.pub").write_bytes(KEY.public.pem)
        (tmp_path / "policy.toml").write_text(
            f'version = 1\n[keys.team]\npath = "team.pub"\n{key}\n'
            f'[[rule]]\nmatch = "registry.example.com/**"\nsigners = ["team"]\n{rule}\n'
        )
        return modelpack("verify", NAME, "--policy", tmp_path / "policy.toml", "--no-smoke", "--json")

    return run


@pytest.mark.parametrize(
    ("offset", "rule", "said"),
    [
        (2 * DAY, 'max_age = "180d"', "which is in the future"),
        (10 * MINUTE, 'max_age = "180d"', "which is in the future"),
        (2 * MINUTE, 'max_age = "180d"', None),  # clocks differ by a little
        (-2 * DAY, 'max_age = "1d"', "longer ago than the rule's max_age"),
        (-2 * DAY, 'max_age = "3d"', None),
    ],
)
def test_a_rule_with_a_max_age_refuses_the_future_and_the_past(signed, verify, offset, rule, said):
    signed(offset)

    result = verify(rule)

    if said is None:
        assert result.code == 0, result.stdout
        assert result.json("verify")["trust"]["validUntil"]
        return
    assert result.code == 6
    error = result.json("error")["error"]
    assert said in error["message"]
    assert all(said in one["reason"] for one in error["rejections"])
    assert "nothing was loaded" in error["hint"]


def test_a_signature_that_has_expired_is_refused(signed, verify):
    signed(-DAY, expires=-HOUR)

    result = verify()

    assert result.code == 6
    assert "it expired at" in result.json("error")["error"]["message"]


def test_a_signature_tells_until_when_it_counts(signed, verify):
    signed(-DAY, expires=HOUR)

    until = datetime.fromisoformat(verify().json("verify")["trust"]["validUntil"])

    assert abs(until - datetime.now(UTC) - HOUR) < 5 * MINUTE


@pytest.mark.parametrize(("offset", "code"), [(-MINUTE, 6), (HOUR, 0)])
def test_a_key_counts_until_its_not_after(signed, verify, offset, code):
    signed(-DAY)
    until = rfc3339(datetime.now(UTC) + offset)

    result = verify(key=f"not_after = {until}")

    assert result.code == code
    if code:
        assert f"trusted no longer than {until}" in result.json("error")["error"]["message"]
    else:
        assert result.json("verify")["trust"]["validUntil"] == until


@pytest.mark.parametrize("command", ["run", "smoke", "export-view"])
@pytest.mark.parametrize("has_policy", [False, True])
def test_what_came_in_while_it_counted_is_not_used_after(modelpack, signed, store, home, command, has_policy):
    signed(-2 * DAY, expires=-HOUR)
    subject = store.repository(NAME.name).resolve("v1")
    then = datetime.now(UTC) - DAY
    verdict = check_trust(store.repository(NAME.name), NAME, subject, Policy.of_keys([KEY.public]), now=then)
    write_receipt(store, subject, Receipt(NAME, verdict))
    if has_policy:
        folder = home / ".config" / "modelpack"
        folder.mkdir(parents=True)
        (folder / "team.pub").write_bytes(KEY.public.pem)
        (folder / "policy.toml").write_text(
            'version = 1\n[keys.team]\npath = "team.pub"\n[[rule]]\nmatch = "**"\nsigners = ["team"]\n'
        )
    more = {"run": ("Hello",), "export-view": ("--format", "slim")}.get(command, ())

    result = modelpack(command, NAME, *more)

    assert result.code == 6, result.stderr
    assert ("it expired at" if has_policy else "at its pull counted until") in result.stderr
