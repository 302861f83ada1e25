"""What run and serve ask first: whether what was promised at the pull still holds."""

import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fakes.artifacts import put_cncf_model

from modelpack.errors import InvalidContentError, InvalidSignatureError, PolicyRefusedError, UnsignedError
from modelpack.oci.reference import Reference
from modelpack.policy import Policy
from modelpack.receipt import Receipt, read_receipt, require_trusted, signed_by, standing, verify_again, write_receipt
from modelpack.rollback import remember, require_no_rollback
from modelpack.signing.keys import PrivateKey
from modelpack.signing.signature import sign
from modelpack.store import Store
from modelpack.trust import Verdict, check_trust

A, B = PrivateKey.generate(), PrivateKey.generate()
V1 = Reference.parse("registry.example.com/team/tiny:v1")
COPY = Reference.parse("mine:v1")
NOW = datetime(2026, 11, 22, 10, 0, 0, tzinfo=UTC)


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "store")


@pytest.fixture
def policy(tmp_path):
    def make(rules: dict[str, str], rest: str = "", **statuses: str) -> Policy:
        text = f"version = 1\n{rest}\n"
        for name, key in (("a", A), ("b", B)):
            (tmp_path / f"{name}.pub").write_bytes(key.public.pem)
            text += f'[keys.{name}]\npath = "{name}.pub"\nstatus = "{statuses.get(name, "active")}"\n'
        for match, signer in rules.items():
            text += f'[[rule]]\nmatch = "{match}"\nsigners = ["{signer}"]\n'
        (tmp_path / "policy.toml").write_text(text)
        return Policy.load(tmp_path / "policy.toml")

    return make


def put(store, reference=V1, weights=b"GGUF"):
    put_cncf_model(store, str(reference), weights)
    return store.repository(reference.name).resolve(reference.selector)


def pulled(store, policy, *, key=A, reference=V1, is_locked=False):
    """What pull leaves behind."""
    subject = put(store, reference)
    sign(store.repository(reference.name), reference, subject, key, signed_at=NOW)
    verdict = check_trust(store.repository(reference.name), reference, subject, policy, now=NOW, is_locked=is_locked)
    write_receipt(store, subject, Receipt(reference, verdict, is_locked))
    remember(store, reference, verdict)
    return subject


def test_a_local_name_keeps_the_promise_under_which_it_was_pulled(store, policy):
    subject = pulled(store, policy({V1.name: "a"}))
    store.tag(V1, COPY)

    # A changed policy, so that the receipt alone is not enough.
    assert require_trusted(store, COPY, subject, policy({V1.name: "a", "x/**": "b"}), now=NOW).reference == V1
    with pytest.raises(InvalidSignatureError):
        require_trusted(store, COPY, subject, policy({V1.name: "b", "mine": "a"}), now=NOW)


def test_the_promise_outlives_the_name_that_was_pulled(store, policy):
    subject = pulled(store, policy({V1.name: "a"}))
    store.tag(V1, COPY)
    store.remove(V1)

    assert require_trusted(store, COPY, subject, policy({V1.name: "a", "x/**": "b"}), now=NOW).verdict.is_verified
    with pytest.raises(InvalidSignatureError):
        require_trusted(store, COPY, subject, policy({V1.name: "b"}), now=NOW)


def test_one_artifact_under_two_pulled_names_has_two_promises(store, policy):
    other = Reference.parse("registry.example.com/lax/tiny:v1")
    rules = {V1.name: "a", other.name: "b"}
    pulled(store, policy(rules))
    subject = pulled(store, policy(rules), key=B, reference=other)

    revoked = policy(rules, a="revoked")
    assert require_trusted(store, other, subject, revoked, now=NOW).reference == other
    with pytest.raises(PolicyRefusedError, match="revoked"):
        require_trusted(store, V1, subject, revoked, now=NOW)


def test_a_receipt_older_than_the_policy_means_verify_again(store, policy):
    subject = pulled(store, policy({V1.name: "a"}))

    with pytest.raises(PolicyRefusedError, match="revoked"):
        require_trusted(store, V1, subject, policy({V1.name: "a"}, a="revoked"), now=NOW)
    renewed = policy({"registry.example.com/**": "a"})
    require_trusted(store, V1, subject, renewed, now=NOW)
    assert read_receipt(store, subject).verdict.policy == renewed.digest


def test_what_is_locked_keeps_its_retired_key(store, policy):
    subject = pulled(store, policy({V1.name: "a"}, a="retired"), is_locked=True)

    changed = policy({V1.name: "a", "x/**": "b"}, a="retired")
    assert require_trusted(store, V1, subject, changed, now=NOW).is_locked
    with pytest.raises(PolicyRefusedError, match="revoked"):
        require_trusted(store, V1, subject, policy({V1.name: "a"}, a="revoked"), now=NOW)


def test_what_somebody_let_in_unverified_does_not_run_under_a_locked_policy(store, policy):
    subject = put(store)
    write_receipt(store, subject, Receipt(V1, Verdict.skipped(V1, subject, now=NOW)))

    assert require_trusted(store, V1, subject, policy({V1.name: "a"}), now=NOW).is_skipped
    with pytest.raises(UnsignedError):
        require_trusted(store, V1, subject, policy({V1.name: "a"}, "locked = true"), now=NOW)


def test_what_has_no_receipt_is_verified_and_gets_one(store, policy):
    subject = put(store)
    with pytest.raises(UnsignedError):
        require_trusted(store, V1, subject, policy({V1.name: "a"}), now=NOW)
    sign(store.repository(V1.name), V1, subject, A, signed_at=NOW)

    require_trusted(store, V1, subject, policy({V1.name: "a"}), now=NOW)

    assert read_receipt(store, subject).verdict.is_verified


def test_the_models_that_a_key_signed_are_found(store, policy):
    pulled(store, policy({V1.name: "a"}))
    put(store, Reference.parse("registry.example.com/team/other:v1"), b"GGUF other")

    assert [one.reference for one in signed_by(store, A.public)] == [V1]
    assert signed_by(store, B.public) == []


def test_a_receipt_that_is_no_file_is_none_and_is_not_waited_for(store, policy):
    rules = policy({V1.name: "a"})
    subject = pulled(store, rules)
    path = store.note_folders[0] / f"{subject.digest.hex}.json"
    path.unlink()
    os.mkfifo(path)

    assert read_receipt(store, subject) is None
    path.unlink()
    path.symlink_to("/dev/zero")
    assert read_receipt(store, subject) is None
    assert require_trusted(store, V1, subject, rules, now=NOW).verdict.is_verified
    assert not path.is_symlink()


def test_a_memory_that_is_no_file_may_have_held_a_warning(store):
    os.mkfifo(store.root / "memory.json")

    with pytest.raises(InvalidContentError, match="it is a pipe"):
        require_no_rollback(store, V1, verdict_of(b"first", NOW))


# The rollback guard


def verdict_of(content: bytes, signed_at: datetime | None, reference: Reference = V1) -> Verdict:
    from modelpack.oci.digest import Digest
    from modelpack.trust import Signer

    signers = (Signer("a", A.public.id),)
    return Verdict(str(reference), Digest.of(content), "r", None, NOW, signers=signers, signed_at=signed_at)


HOUR = timedelta(hours=1)


def test_what_is_older_than_what_was_verified_before_is_refused(store):
    require_no_rollback(store, V1, verdict_of(b"first", NOW - 2 * HOUR))
    remember(store, V1, verdict_of(b"second", NOW - HOUR))

    with pytest.raises(PolicyRefusedError) as caught:
        require_no_rollback(store, V1, verdict_of(b"first", NOW - 2 * HOUR))
    for part in ("2026-11-22T08:00:00Z", "2026-11-22T09:00:00Z", "verified as this tag before"):
        assert part in str(caught.value)
    with pytest.raises(PolicyRefusedError, match="does not say when"):
        require_no_rollback(store, V1, verdict_of(b"first", None))
    require_no_rollback(store, V1, verdict_of(b"third", NOW - HOUR))
    require_no_rollback(store, V1.with_tag("v0"), verdict_of(b"first", NOW - 2 * HOUR))
    for name in ("REGISTRY.example.com", "registry.example.com:443"):
        with pytest.raises(PolicyRefusedError, match="verified as this tag before"):
            require_no_rollback(store, Reference.parse(f"{name}/team/tiny:v1"), verdict_of(b"first", NOW - 2 * HOUR))


@pytest.mark.parametrize(
    "facts",
    [
        {"signedAt": "2026-11-22T09:00:00Z"},
        {"digest": "sha256:0", "signedAt": None},
        {"digest": 5, "signedAt": None},
        {"digest": f"sha256:{'0' * 64}"},
        {"digest": f"sha256:{'0' * 64}", "signedAt": "yesterday"},
        {"digest": f"sha256:{'0' * 64}", "signedAt": "9999-12-31T23:59:59-23:59"},
    ],
)
def test_a_memory_that_says_nothing_is_not_taken_for_none(store, facts):
    store.memory.remember(str(V1), facts)
    verdict = verdict_of(b"first", NOW)

    for look in (require_no_rollback, remember):
        with pytest.raises(InvalidContentError, match="remembers about"):
            look(store, V1, verdict)


def test_the_same_artifact_with_its_newer_signatures_left_out_is_no_rollback_and_hides_nothing(store):
    remember(store, V1, verdict_of(b"second", NOW - HOUR))

    again = verdict_of(b"second", NOW - 3 * HOUR)
    require_no_rollback(store, V1, again)
    remember(store, V1, again)

    with pytest.raises(PolicyRefusedError):
        require_no_rollback(store, V1, verdict_of(b"first", NOW - 2 * HOUR))


def test_a_signature_from_the_future_locks_nobody_out(store):
    remember(store, V1, verdict_of(b"second", NOW + 24 * HOUR))

    require_no_rollback(store, V1, verdict_of(b"third", NOW + HOUR))


def test_the_memory_outlives_the_model_and_the_process(store, tmp_path):
    put(store)
    remember(store, V1, verdict_of(b"second", NOW))
    store.remove(V1)

    with pytest.raises(PolicyRefusedError):
        require_no_rollback(Store.open(Path(tmp_path / "store")), V1, verdict_of(b"first", NOW - HOUR))


def test_a_view_is_trusted_as_far_as_what_it_is_a_view_of(store, policy):
    allowed = policy({V1.name: "a"})
    subject = pulled(store, allowed)
    name = V1.with_tag("v1-docker")
    view = put(store, name, weights=b"the same in another manifest")
    write_receipt(store, view, Receipt(name, None, view_of=V1.with_digest(subject.digest)))

    assert require_trusted(store, name, view, allowed, now=NOW).verdict.digest == subject.digest
    with pytest.raises(InvalidSignatureError):
        require_trusted(store, name, view, policy({V1.name: "b"}), now=NOW)
    revoked = policy({V1.name: "a"}, f'[[revoked]]\ndigest = "{subject.digest}"')
    with pytest.raises(PolicyRefusedError, match="revoked"):
        require_trusted(store, name, view, revoked, now=NOW)
    store.remove(V1)
    with pytest.raises(PolicyRefusedError, match="no longer in the store"):
        require_trusted(store, name, view, allowed, now=NOW)


def test_a_view_is_verified_again_as_what_it_is_a_view_of_and_by_this_policy(store, policy):
    subject = pulled(store, policy({V1.name: "a"}))
    name = Reference.parse(f"{V1}-slim")
    view = put(store, name, weights=b"the same in another manifest")
    write_receipt(store, view, Receipt(name, None, view_of=V1.with_digest(subject.digest)))

    assert verify_again(store, name, view, policy({V1.name: "a"}), now=NOW).verdict.digest == subject.digest
    with pytest.raises(InvalidSignatureError):
        verify_again(store, name, view, policy({V1.name: "b"}), now=NOW)
    # What came in unverified stays so, however it looks from here.
    store.put_receipt(subject.digest, {
        "reference": str(V1), "locked": False, "verdict": Verdict.skipped(V1, subject, now=NOW).to_json(),
    })  # fmt: skip
    assert require_trusted(store, name, view, policy({V1.name: "b"}), now=NOW).is_skipped
    with pytest.raises(InvalidSignatureError):
        verify_again(store, name, view, policy({V1.name: "b"}), now=NOW)


def test_views_of_each_other_vouch_for_nothing(store, policy):
    one, other = Reference.parse("one:v1"), Reference.parse("other:v1")
    first, second = put(store, one, weights=b"1"), put(store, other, weights=b"2")
    write_receipt(store, first, Receipt(one, None, view_of=other.with_digest(second.digest)))
    write_receipt(store, second, Receipt(other, None, view_of=one.with_digest(first.digest)))

    for judge in (require_trusted, verify_again):
        with pytest.raises(PolicyRefusedError, match="without end"):
            judge(store, one, first, policy({"one": "a"}), now=NOW)
    assert standing(store, first) == "no"


def test_what_was_built_here_stays_so_when_the_same_bytes_are_pulled(store, policy):
    subject = put(store)
    write_receipt(store, subject, Receipt(V1, None, is_built=True))
    pulled(store, policy({V1.name: "a"}))

    held = require_trusted(store, V1, subject, policy({V1.name: "b"}), now=NOW)

    assert held.is_built
    assert held.summary == "built here"


def test_a_name_with_a_stricter_rule_is_not_borne_by_what_a_laxer_one_let_in(store, policy):
    rules = policy({"registry.example.com/community/*": "b", V1.name: "a"})
    community = Reference.parse("registry.example.com/community/tiny:v1")
    subject = pulled(store, rules, key=B, reference=community)
    store.tag(community, V1)

    assert require_trusted(store, community, subject, rules, now=NOW).verdict
    with pytest.raises(InvalidSignatureError):
        require_trusted(store, V1, subject, rules, now=NOW)


def test_what_a_key_vouched_for_until_yesterday_says_so_where_there_is_no_policy(store, policy):
    subject = pulled(store, policy({V1.name: "a"}))
    held = read_receipt(store, subject)
    assert held is not None
    assert held.verdict is not None
    ended = replace(held.verdict, valid_until=NOW - timedelta(days=1))
    write_receipt(store, subject, Receipt(V1, ended))

    with pytest.raises(PolicyRefusedError, match="counted until 2026-11-21T10:00:00Z, and there is no policy"):
        require_trusted(store, V1, subject, None, now=NOW)


def test_a_model_pulled_under_two_names_is_not_said_to_have_run_out_before_it_has(store, policy):
    other = Reference.parse("registry.example.com/team/other:v1")
    rules = policy({"registry.example.com/**": "a"})
    pulled(store, rules)
    subject = pulled(store, rules, reference=other)
    held = read_receipt(store, subject)
    assert held is not None
    assert held.verdict is not None
    write_receipt(store, subject, Receipt(other, replace(held.verdict, valid_until=NOW + timedelta(days=1))))

    assert require_trusted(store, other, subject, None, now=NOW).reference == other
    with pytest.raises(PolicyRefusedError, match="there is no rule, and no key was given"):
        require_trusted(store, V1, subject, None, now=NOW)
