"""Whether an artifact may be used: what counts, what does not, and that nobody else's rubbish gets in the way."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from fakes.vectors import MemoryRepository

from modelpack.errors import (
    InvalidContentError,
    InvalidSignatureError,
    PolicyRefusedError,
    RegistryUnavailableError,
    RevokedError,
    UnsignedError,
    UntrustedError,
)
from modelpack.oci.manifest import Descriptor, image_index, image_manifest
from modelpack.oci.reference import Reference
from modelpack.oci.target import write_whole
from modelpack.policy import Policy
from modelpack.signing import simple_signing
from modelpack.signing.attestation import attest
from modelpack.signing.envelope import BUNDLE_TYPE
from modelpack.signing.keys import PrivateKey
from modelpack.signing.signature import sign
from modelpack.trust import Verdict, check_trust

A, B, C = (PrivateKey.generate() for _ in range(3))
V1 = Reference.parse("registry.example.com/team/tiny:v1")
V2 = V1.with_tag("v2")
WHEN = datetime(2026, 11, 1, 10, 0, 0, tzinfo=UTC)
NOW = datetime(2026, 11, 22, 10, 0, 0, tzinfo=UTC)


@pytest.fixture
def repository():
    return MemoryRepository()


@pytest.fixture
def subject(repository):
    return repository.add_artifact()


@pytest.fixture
def policy(tmp_path):
    """Makes a policy over the keys a and b, with one rule for the team; lines are added to the rule and to the keys."""

    def make(
        rule: str = "", *, key_a: str = "", key_b: str = "", signers: str = '["a", "b"]', rest: str = ""
    ) -> Policy:
        for name, key in (("a", A), ("b", B)):
            (tmp_path / f"{name}.pub").write_bytes(key.public.pem)
        (tmp_path / "policy.toml").write_text(
            f'version = 1\n{rest}\n[keys.a]\npath = "a.pub"\n{key_a}\n[keys.b]\npath = "b.pub"\n{key_b}\n'
            f'[[rule]]\nmatch = "registry.example.com/team/**"\nsigners = {signers}\n{rule}\n'
        )
        return Policy.load(tmp_path / "policy.toml")

    return make


def reasons(error: UntrustedError) -> str:
    return " ".join(f"{where}: {reason}" for where, reason in error.rejections)


def test_a_signed_artifact_is_trusted_and_the_verdict_says_why(repository, subject, policy):
    sign(repository, V1, subject, A, signed_at=WHEN)
    rules = policy()

    verdict = check_trust(repository, V1, subject, rules, now=NOW)

    assert verdict.is_verified
    assert (verdict.reference, verdict.digest, verdict.rule) == (
        str(V1),
        subject.digest,
        "registry.example.com/team/**",
    )
    assert [(signer.name, signer.key_id) for signer in verdict.signers] == [("a", A.public.id)]
    assert verdict.formats == ("bundle",)
    assert (verdict.signed_at, verdict.checked_at, verdict.policy) == (WHEN, NOW, rules.digest)
    assert verdict.rejections == ()


def test_an_unsigned_artifact_is_refused_with_what_was_looked_for_and_where(repository, subject, policy):
    with pytest.raises(UnsignedError) as caught:
        check_trust(repository, V1, subject, policy(), now=NOW)

    message = str(caught.value)
    tag = f"sha256-{subject.digest.hex}"
    for part in (str(V1), "'registry.example.com/team/**'", "a, b", "referrers", f"tag {tag} ", f"tag {tag}.sig"):
        assert part in message
    assert caught.value.rejections == ()


def test_a_signature_by_a_stranger_is_refused_and_the_stranger_is_named(repository, subject, policy):
    sign(repository, V1, subject, C, signed_at=WHEN)

    with pytest.raises(InvalidSignatureError) as caught:
        check_trust(repository, V1, subject, policy(), now=NOW)
    assert C.public.id in reasons(caught.value)
    assert len(caught.value.rejections) == 2


def test_without_a_rule_and_without_a_key_everything_is_refused(repository, subject, policy):
    sign(repository, V1, subject, A, signed_at=WHEN)
    elsewhere = Reference.parse("registry.example.com/others/tiny:v1")

    with pytest.raises(PolicyRefusedError, match=r"policy\.toml is about registry\.example\.com/others/tiny"):
        check_trust(repository, elsewhere, subject, policy(), now=NOW)
    with pytest.raises(PolicyRefusedError, match="no rule, and no key was given"):
        check_trust(repository, V1, subject, Policy.empty(), now=NOW)


@pytest.mark.parametrize("action", ["warn", "allow-unsigned"])
def test_a_default_that_lets_pass_is_not_taken_for_a_verification(repository, subject, policy, action):
    elsewhere = Reference.parse("registry.example.com/others/tiny:v1")
    rules = policy(rest=f'[default]\naction = "{action}"')

    verdict = check_trust(repository, elsewhere, subject, rules, now=NOW)

    assert not verdict.is_verified
    assert verdict.rule == f"default: {action}"
    assert not verdict.holds(rules, now=NOW)
    with pytest.raises(UnsignedError):
        check_trust(repository, V1, subject, rules, now=NOW)


def test_a_key_given_by_hand_is_enough_and_replaces_the_policy(repository, subject):
    sign(repository, V1, subject, C, signed_at=WHEN)

    verdict = check_trust(repository, V1, subject, Policy.of_keys([B.public, C.public]), now=NOW)

    assert [signer.key_id for signer in verdict.signers] == [C.public.id]
    assert verdict.rule == "the keys given"
    with pytest.raises(InvalidSignatureError):
        check_trust(repository, V1, subject, Policy.of_keys([B.public]), now=NOW)


def test_two_signatures_by_one_key_are_not_two_signers(repository, subject, policy):
    sign(repository, V1, subject, A, signed_at=WHEN)
    sign(repository, V1, subject, A, signed_at=WHEN, annotations={"again": "yes"})

    with pytest.raises(PolicyRefusedError, match="1 of 2 wanted signatures"):
        check_trust(repository, V1, subject, policy("threshold = 2"), now=NOW)


def test_a_threshold_is_met_by_distinct_keys_in_whatever_form(repository, subject, policy):
    sign(repository, V1, subject, A, signed_at=WHEN, legacy=False)
    sign(repository, V1, subject, B, signed_at=WHEN + timedelta(days=1))

    verdict = check_trust(repository, V1, subject, policy("threshold = 2"), now=NOW)

    assert {signer.name for signer in verdict.signers} == {"a", "b"}
    assert verdict.signed_at == WHEN + timedelta(days=1)


def test_a_revoked_key_never_counts(repository, subject, policy):
    sign(repository, V1, subject, A, signed_at=WHEN)

    for is_locked in (False, True):
        with pytest.raises(PolicyRefusedError) as caught:
            check_trust(repository, V1, subject, policy(key_a='status = "revoked"'), now=NOW, is_locked=is_locked)
        assert "key 'a' is revoked" in reasons(caught.value)
    sign(repository, V1, subject, B, signed_at=WHEN)
    verdict = check_trust(repository, V1, subject, policy(key_a='status = "revoked"'), now=NOW)
    assert [signer.name for signer in verdict.signers] == ["b"]


def test_a_retired_key_counts_only_for_what_is_locked(repository, subject, policy):
    sign(repository, V1, subject, A, signed_at=WHEN)
    rules = policy(key_a='status = "retired"')

    with pytest.raises(PolicyRefusedError) as caught:
        check_trust(repository, V1, subject, rules, now=NOW)
    assert "retired" in reasons(caught.value)
    assert check_trust(repository, V1, subject, rules, now=NOW, is_locked=True).is_verified


def test_a_key_stops_counting_at_its_not_after(repository, subject, policy):
    sign(repository, V1, subject, A, signed_at=WHEN)
    rules = policy(key_a="not_after = 2026-11-23T00:00:00Z")

    verdict = check_trust(repository, V1, subject, rules, now=NOW)
    assert verdict.valid_until == datetime(2026, 11, 23, tzinfo=UTC)
    with pytest.raises(PolicyRefusedError):
        check_trust(repository, V1, subject, rules, now=datetime(2026, 11, 23, tzinfo=UTC))


def test_an_expired_signature_does_not_count(repository, subject, policy):
    sign(repository, V1, subject, A, signed_at=WHEN, expires=NOW)

    verdict = check_trust(repository, V1, subject, policy(), now=NOW - timedelta(seconds=1))
    assert verdict.valid_until == NOW
    with pytest.raises(PolicyRefusedError) as caught:
        check_trust(repository, V1, subject, policy(), now=NOW)
    assert "it expired at 2026-11-22T10:00:00Z" in reasons(caught.value)


def test_an_old_signature_does_not_count_under_a_max_age(repository, subject, policy):
    sign(repository, V1, subject, A, signed_at=WHEN)

    verdict = check_trust(repository, V1, subject, policy('max_age = "4w"'), now=NOW)
    assert verdict.valid_until == WHEN + timedelta(weeks=4)
    with pytest.raises(PolicyRefusedError, match="longer ago"):
        check_trust(repository, V1, subject, policy('max_age = "20d"'), now=NOW)
    with pytest.raises(PolicyRefusedError, match="in the future"):
        check_trust(repository, V1, subject, policy('max_age = "20d"'), now=WHEN - timedelta(hours=1))


def test_a_format_that_the_rule_does_not_accept_does_not_count(repository, subject, policy):
    sign(repository, V1, subject, A, signed_at=WHEN)
    repository.manifests = {
        digest: raw for digest, raw in repository.manifests.items() if BUNDLE_TYPE.encode() not in raw
    }

    assert check_trust(repository, V1, subject, policy(), now=NOW).formats == ("cosign-legacy",)
    with pytest.raises(PolicyRefusedError, match="does not accept the format cosign-legacy"):
        check_trust(repository, V1, subject, policy('formats = ["bundle"]'), now=NOW)


def test_a_signed_artifact_under_another_tag_is_refused_where_the_rule_wants_the_reference(repository, subject, policy):
    sign(repository, V1, subject, A, signed_at=WHEN)
    rules = policy("require_ref = true")

    assert check_trust(repository, V1, subject, rules, now=NOW).is_verified
    assert check_trust(repository, V1.with_digest(subject.digest), subject, rules, now=NOW).is_verified
    for other in (V2, V2.with_digest(subject.digest), Reference.parse("registry.example.com/team/tiny")):
        with pytest.raises(PolicyRefusedError) as caught:
            check_trust(repository, other, subject, rules, now=NOW)
        assert "it was made for 'registry.example.com/team/tiny:v1'" in reasons(caught.value)
    assert check_trust(repository, V2, subject, policy(), now=NOW).is_verified


def test_a_request_by_digest_alone_compares_the_repository(repository, subject, policy):
    sign(repository, V1, subject, A, signed_at=WHEN)
    rules = policy("require_ref = true")
    here = Reference.parse(f"registry.example.com/team/tiny@{subject.digest}")
    there = Reference.parse(f"registry.example.com/team/other@{subject.digest}")

    assert check_trust(repository, here, subject, rules, now=NOW).is_verified
    with pytest.raises(PolicyRefusedError, match=r"not for registry\.example\.com/team/other"):
        check_trust(repository, there, subject, rules, now=NOW)


def test_a_registry_with_a_port_is_not_mistaken_for_a_tag(repository, subject):
    reference = Reference.parse(f"localhost:5000/tiny@{subject.digest}")
    sign(repository, reference, subject, A, signed_at=WHEN)
    rules = Policy.of_keys([A.public])
    strict = replace(rules, rules=tuple(replace(rule, require_ref=True) for rule in rules.rules))

    assert check_trust(repository, reference, subject, strict, now=NOW).is_verified
    with pytest.raises(PolicyRefusedError, match="not bound to a tag"):
        check_trust(repository, Reference.parse("localhost:5000/tiny:v1"), subject, strict, now=NOW)


def put_simple_signature(repository, subject, key, reference):
    """A signature of cosign's tag scheme with this ``docker-reference``."""
    payload = simple_signing.Payload(reference, subject.digest, {})
    content = payload.to_bytes()
    write_whole(repository, content, simple_signing.PAYLOAD_TYPE)
    config = write_whole(repository, b"{}", simple_signing.CONFIG_TYPE)
    manifest = image_manifest(config=config, layers=[simple_signing.signed_layer(payload, key.sign(content))])
    repository.put_manifest(manifest, tag=simple_signing.signature_tag(subject.digest))


@pytest.mark.parametrize(
    ("signed", "wanted", "fault"),
    [
        # cosign names no tag, skopeo the one that it was told, or the digest where it was told none.
        ("{name}", "{name}@{digest}", None),
        ("{name}", "{name}:v1", "it is not bound to a tag"),
        ("{name}:v1", "{name}:v1", None),
        ("{name}:v1", "{name}:v1@{digest}", None),
        ("{name}:v1", "{name}@{digest}", None),
        ("{name}:v1", "{name}:v2@{digest}", "it was made for"),
        ("{name}@{digest}", "{name}@{digest}", None),
        ("{name}@{digest}", "{name}:v1", "it is not bound to a tag"),
        ("{name}:v1@{digest}", "{name}:v1", None),
        ("registry.example.com/team/other@{digest}", "{name}@{digest}", "it was made for"),
        ("Registry.Example.com:443/team/tiny:v1", "{name}:v1", None),
        ("{name}:v1", "REGISTRY.example.com:443/team/tiny:v1", None),
        ("registry.example.com:8443/team/tiny:v1", "{name}:v1", "it was made for"),
        ("not a reference", "{name}@{digest}", "it was made for 'not a reference'"),
    ],
)
def test_a_signature_is_bound_to_a_name_however_that_is_spelled(repository, subject, policy, signed, wanted, fault):
    words = {"name": V1.name, "digest": subject.digest}
    put_simple_signature(repository, subject, A, signed.format(**words))
    reference, rules = Reference.parse(wanted.format(**words)), policy("require_ref = true")

    if fault is None:
        assert check_trust(repository, reference, subject, rules, now=NOW).is_verified
    else:
        with pytest.raises(PolicyRefusedError, match=fault):
            check_trust(repository, reference, subject, rules, now=NOW)


def test_cosigns_name_for_docker_hub_is_docker_hub(repository, subject):
    put_simple_signature(repository, subject, A, "index.docker.io/ai/smollm2")
    rules = Policy.of_keys([A.public])
    strict = replace(rules, rules=tuple(replace(rule, require_ref=True) for rule in rules.rules))

    wanted = Reference.parse(f"docker.io/ai/smollm2@{subject.digest}")
    assert check_trust(repository, wanted, subject, strict, now=NOW).is_verified


def test_a_revoked_digest_is_refused_whoever_signed_it(repository, subject, policy):
    sign(repository, V1, subject, A, signed_at=WHEN)
    rules = policy(rest=f'[[revoked]]\ndigest = "{subject.digest}"\nreason = "leaks its data"')

    with pytest.raises(PolicyRefusedError, match="is revoked: leaks its data"):
        check_trust(repository, V1, subject, rules, now=NOW, is_locked=True)


def test_weights_that_are_revoked_are_refused_under_any_manifest(repository, subject, policy):
    weights = repository.fetch_manifest(subject).layers[0].digest
    sign(repository, V1, subject, A, signed_at=WHEN)
    rules = policy(rest=f'[[revoked]]\ndigest = "{weights}"\nreason = "backdoored"')

    with pytest.raises(RevokedError, match=f"{weights} is revoked: backdoored"):
        check_trust(repository, V1, subject, rules, now=NOW)


def test_what_is_revoked_is_refused_below_an_index_too(repository, subject, policy):
    child = repository.fetch_manifest(subject)
    inner = repository.put_manifest(image_index([child.descriptor]))
    absent = Descriptor.of(b"{}", child.descriptor.media_type)
    repository.put_manifest(image_index([inner, inner, absent]), tag="v2")
    index = repository.resolve("v2")
    sign(repository, V2, index, A, signed_at=WHEN)
    assert check_trust(repository, V2, index, policy(), now=NOW).is_verified

    for digest in (index.digest, inner.digest, child.digest, absent.digest, child.layers[0].digest):
        with pytest.raises(RevokedError, match=f"{digest} is revoked"):
            check_trust(repository, V2, index, policy(rest=f'[[revoked]]\ndigest = "{digest}"'), now=NOW)
    elsewhere = policy(rest=f'[[revoked]]\ndigest = "sha256:{"0" * 64}"')
    assert check_trust(repository, V2, index, elsewhere, now=NOW).is_verified


def test_attack_6_an_index_that_lists_more_than_is_looked_through_is_refused(repository, subject, policy):
    many = [Descriptor.of(str(number).encode(), subject.media_type) for number in range(1001)]
    repository.put_manifest(image_index(many), tag="v2")
    index = repository.resolve("v2")
    sign(repository, V2, index, A, signed_at=WHEN)

    with pytest.raises(PolicyRefusedError, match="more than 1000 manifests"):
        check_trust(repository, V2, index, policy(rest=f'[[revoked]]\ndigest = "sha256:{"0" * 64}"'), now=NOW)


def test_a_threshold_that_is_missed_says_who_counted_and_blames_no_attestation(repository, subject, policy):
    sign(repository, V1, subject, A, signed_at=WHEN)
    attest(repository, V1, subject, A, predicate_type="urn:example:note", predicate={}, created=WHEN)
    rules = policy("threshold = 2")

    with pytest.raises(PolicyRefusedError, match=r"1 of 2 wanted signatures count \(by a\); looked at"):
        check_trust(repository, V1, subject, rules, now=NOW)


def test_attack_11_a_signature_moved_to_another_artifact_is_refused(repository, subject, policy):
    evil = repository.add_artifact(b"GGUF evil", tag="evil")
    sign(repository, V1, subject, A, signed_at=WHEN)
    repository.tags[simple_signing.signature_tag(evil.digest)] = repository.tags[
        simple_signing.signature_tag(subject.digest)
    ]
    for descriptor in repository.list_referrers(subject.digest):
        layer = repository.fetch_manifest(descriptor).layers[0]
        repository.add_referrer(evil, repository.blobs[layer.digest], BUNDLE_TYPE, artifact_type=BUNDLE_TYPE)

    with pytest.raises(InvalidSignatureError) as caught:
        check_trust(repository, V1, evil, policy(), now=NOW)
    assert len(caught.value.rejections) == 2


def rubbish(repository: MemoryRepository, subject: Descriptor) -> None:
    """What others, or an attacker who may only add, can leave beside a good signature."""
    repository.add_referrer(subject, b"{", BUNDLE_TYPE, artifact_type=BUNDLE_TYPE)
    repository.add_referrer(
        subject, b"{}", "application/jose+json", config_type="application/vnd.cncf.notary.signature"
    )
    repository.add_referrer(subject, b"not json", "application/vnd.cyclonedx+json")
    repository.advertised.append(Descriptor(BUNDLE_TYPE, subject.digest, 1 << 40))
    repository.advertised.append(subject)
    sign(repository, V1, subject, C, signed_at=WHEN)
    tag = simple_signing.signature_tag(subject.digest)
    present = repository.fetch_manifest(repository.resolve(tag))
    broken = write_whole(repository, b"broken", simple_signing.PAYLOAD_TYPE)
    repository.put_manifest(image_manifest(config=present.config, layers=[broken, *present.layers]), tag=tag)


def test_rubbish_beside_a_good_signature_never_hurts(repository, subject, policy):
    rubbish(repository, subject)
    sign(repository, V1, subject, A, signed_at=WHEN)

    verdict = check_trust(repository, V1, subject, policy(), now=NOW)

    assert [signer.name for signer in verdict.signers] == ["a"]
    assert len(verdict.rejections) >= 5


def test_rubbish_instead_of_a_signature_never_helps(repository, subject, policy):
    rubbish(repository, subject)

    with pytest.raises(InvalidSignatureError):
        check_trust(repository, V1, subject, policy(), now=NOW)


def test_a_legacy_signature_counts_although_somebody_elses_bundle_is_there(repository, subject, policy):
    # cosign 3 looks at nothing but bundles as soon as there is one, and fails here.
    sign(repository, V1, subject, A, signed_at=WHEN)
    repository.manifests = {
        digest: raw for digest, raw in repository.manifests.items() if BUNDLE_TYPE.encode() not in raw
    }
    sign(repository, V1, subject, C, signed_at=WHEN, legacy=False)

    assert check_trust(repository, V1, subject, policy(), now=NOW).formats == ("cosign-legacy",)


def test_a_registry_that_is_down_is_no_verdict(repository, subject, policy):
    def down(_):
        raise RegistryUnavailableError("no answer")

    repository.list_referrers = down
    with pytest.raises(RegistryUnavailableError):
        check_trust(repository, V1, subject, policy(), now=NOW)


def test_no_large_blob_is_read(repository, subject, policy):
    sign(repository, V1, subject, A, signed_at=WHEN)
    repository.reads.clear()

    check_trust(repository, V1, subject, policy(), now=NOW)

    weights = repository.fetch_manifest(subject).layers[0].digest
    assert repository.reads
    assert weights not in repository.reads


def test_a_receipt_comes_back_as_it_was_written(repository, subject, policy):
    rubbish(repository, subject)
    sign(repository, V1, subject, A, signed_at=WHEN, expires=NOW + timedelta(days=1))
    verdict = check_trust(repository, V1, subject, policy(), now=NOW)

    assert Verdict.from_json(json.loads(json.dumps(verdict.to_json()))) == verdict
    skipped = Verdict.skipped(V1, subject, now=NOW)
    assert Verdict.from_json(skipped.to_json()) == skipped
    assert not skipped.is_verified


@pytest.mark.parametrize(
    "change",
    [
        {"verified": False},
        {"signers": []},
        {"signers": None},
        {"digest": "x"},
        {"checkedAt": "yesterday"},
        {"checkedAt": 5},
        {"validUntil": "9999-12-31T23:59:59-23:59"},
        {"policy": 5},
        {"rejections": [1]},
    ],
)
def test_a_receipt_that_was_tampered_with_is_no_receipt(repository, subject, policy, change):
    sign(repository, V1, subject, A, signed_at=WHEN)
    verdict = check_trust(repository, V1, subject, policy(), now=NOW)

    with pytest.raises(InvalidContentError):
        Verdict.from_json({**verdict.to_json(), **change})
    with pytest.raises(InvalidContentError):
        Verdict.from_json({})


def test_a_receipt_holds_until_the_policy_changes_or_the_time_runs_out(repository, subject, policy):
    sign(repository, V1, subject, A, signed_at=WHEN, expires=NOW + timedelta(days=1))
    verdict = check_trust(repository, V1, subject, policy(), now=NOW)

    assert verdict.holds(policy(), now=NOW)
    assert verdict.holds(None, now=NOW)
    for rules in (policy(), None):
        assert not verdict.holds(rules, now=NOW + timedelta(days=1))
    assert not Verdict.skipped(V1, subject, now=NOW).holds(None, now=NOW)
    assert not verdict.holds(policy("require_ref = true"), now=NOW)
    assert not Verdict.skipped(V1, subject, now=NOW).holds(policy(), now=NOW)


def test_trust_works_over_the_local_store(tmp_path, policy):
    store_module = pytest.importorskip("modelpack.store", reason="the store is not written yet")
    repository = store_module.Store.open(tmp_path / "store").repository(V1.name)
    config = write_whole(repository, b"{}", "application/vnd.cncf.model.config.v1+json")
    layer = write_whole(repository, b"GGUF", "application/vnd.cncf.model.weight.v1.raw")
    repository.put_manifest(image_manifest(config=config, layers=[layer]), tag="v1")
    subject = repository.resolve("v1")

    with pytest.raises(UnsignedError):
        check_trust(repository, V1, subject, policy(), now=NOW)
    first = sign(repository, V1, subject, A, signed_at=WHEN)
    again = sign(repository, V1, subject, A, signed_at=NOW)

    assert (first.written, again.written) == (("bundle", "cosign-legacy"), ())
    assert check_trust(repository, V1, subject, policy(), now=NOW).is_verified
