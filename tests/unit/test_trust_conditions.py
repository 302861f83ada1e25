"""What a rule may want beside a plain signature: attestations with content, licences, mirrors, identities."""

import hashlib
import json
import struct
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from fakes.artifacts import put_cncf_model
from fakes.sigstore import ISSUER, FakeSigstore, token
from fakes.vectors import MemoryRepository

from modelpack.errors import InvalidSignatureError, NotFoundError, PolicyRefusedError, UnsignedError
from modelpack.mirror import mirror
from modelpack.oci.reference import Reference
from modelpack.policy import Policy
from modelpack.receipt import Receipt, require_trusted, write_receipt
from modelpack.signing import envelope, places
from modelpack.signing.attestation import attest
from modelpack.signing.candidate import rfc3339
from modelpack.signing.keyless import KeylessSigner
from modelpack.signing.keys import PrivateKey
from modelpack.signing.signature import sign
from modelpack.store import Store
from modelpack.trust import Attested, Signer, Verdict, check_trust, require_templates

A, B, C = (PrivateKey.generate() for _ in range(3))
V1 = Reference.parse("registry.example.com/team/tiny:v1")
WHEN = datetime(2026, 11, 1, 10, 0, 0, tzinfo=UTC)
NOW = datetime(2026, 11, 22, 10, 0, 0, tzinfo=UTC)
TEST_RESULT = "https://in-toto.io/attestation/test-result/v0.1"
RELEASE = "https://ci.example.com/acme/models/release.yml@refs/tags/v1"


@pytest.fixture
def repository():
    return MemoryRepository()


@pytest.fixture
def subject(repository):
    descriptor = repository.add_artifact()
    sign(repository, V1, descriptor, A, signed_at=WHEN)
    return descriptor


@pytest.fixture
def policy(tmp_path):
    """Makes a policy with the keys a and b; ``rule`` is added to the one rule, ``rest`` to the top."""

    def make(
        rule: str = "", *, rest: str = "", signers: str = '["a"]', match: str = V1.name, status="active"
    ) -> Policy:
        for name, key in (("a", A), ("b", B)):
            (tmp_path / f"{name}.pub").write_bytes(key.public.pem)
        (tmp_path / "policy.toml").write_text(
            f'version = 1\n{rest}\n[keys.a]\npath = "a.pub"\n[keys.b]\npath = "b.pub"\nstatus = "{status}"\n'
            f'[[rule]]\nmatch = "{match}"\nsigners = {signers}\n{rule}\n'
        )
        return Policy.load(tmp_path / "policy.toml")

    return make


def attest_result(repository, subject, key, result="PASSED", *, kind=TEST_RESULT, created=WHEN, **also):
    predicate = {"result": result, "configuration": [{"name": "suite", "digest": {"sha256": "0" * 64}}], **also}
    attest(repository, V1, subject, key, predicate_type=kind, predicate=predicate, created=created)


def wants(where: str = '{ result = "PASSED" }', signers: str = '["b"]', more: str = "") -> str:
    return f'[[rule.attestation]]\ntype = "{TEST_RESULT}"\nsigners = {signers}\nwhere = {where}\n{more}'


def check(repository, subject, policy, reference=V1, **also) -> Verdict:
    return check_trust(repository, reference, subject, policy, now=NOW, **also)


# Attestations


def test_an_attestation_that_says_what_is_wanted_is_found_and_in_the_verdict(repository, subject, policy):
    attest_result(repository, subject, B)

    verdict = check(repository, subject, policy(wants()))

    assert verdict.attestations == (Attested(TEST_RESULT, (Signer("b", B.public.id),)),)
    assert Verdict.from_json(json.loads(json.dumps(verdict.to_json()))) == verdict


def test_a_missing_attestation_refuses_what_is_signed_and_says_what_of_whom(repository, subject, policy):
    with pytest.raises(PolicyRefusedError) as caught:
        check(repository, subject, policy(wants()))

    for part in ("it is signed, but 0 of 1", TEST_RESULT, "signers: b", f"sha256-{subject.digest.hex}.att"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ('{ result = "WARNED" }', "its result is 'PASSED', not 'WARNED'"),
        ('{ "configuration.0.name" = "other" }', "its configuration.0.name is 'suite'"),
        ('{ "configuration.1.name" = "suite" }', "its configuration.1.name is None"),
        ('{ "result.deeper" = "PASSED" }', "its result.deeper is None"),
        ("{ count = true }", "its count is 1, not True"),
        ('{ count = "1" }', "its count is 1, not '1'"),
        ('{ result = "passed" }', "not 'passed'"),
    ],
)
def test_a_predicate_that_says_something_else_does_not_count(repository, subject, policy, where, reason):
    attest_result(repository, subject, B, count=1)

    with pytest.raises(PolicyRefusedError) as caught:
        check(repository, subject, policy(wants(where)))
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "where",
    ['{ result = ["WARNED", "PASSED"] }', '{ "configuration.0.name" = "suite" }', "{ count = 1 }", "{}"],
)
def test_a_predicate_that_says_what_is_wanted_counts(repository, subject, policy, where):
    attest_result(repository, subject, B, count=1)

    assert check(repository, subject, policy(wants(where))).is_verified


def test_somebody_elses_attestation_does_not_count(repository, subject, policy):
    attest_result(repository, subject, C)
    attest_result(repository, subject, A)

    with pytest.raises(PolicyRefusedError, match="0 of 1"):
        check(repository, subject, policy(wants()))


def test_attack_13_an_attestation_of_another_type_does_not_count(repository, subject, policy):
    attest_result(repository, subject, B, kind=TEST_RESULT + "0")
    attest_result(repository, subject, B, kind=TEST_RESULT.replace("v0.1", "v0.2"))

    with pytest.raises(PolicyRefusedError, match="0 of 1"):
        check(repository, subject, policy(wants()))


def test_an_attestation_about_another_artifact_does_not_count(repository, subject, policy):
    other = repository.add_artifact(b"GGUF other", tag="other")
    attest_result(repository, other, B)
    for referrer in repository.list_referrers(other.digest):
        layer = repository.fetch_manifest(referrer).layers[0]
        kind = layer.media_type
        repository.add_referrer(subject, repository.blobs[layer.digest], kind, artifact_type=kind)

    with pytest.raises(PolicyRefusedError) as caught:
        check(repository, subject, policy(wants()))
    assert any("another digest" in reason for _, reason in caught.value.rejections)


def test_an_attestation_counts_until_it_expires(repository, subject, policy):
    def attest_until(expires):
        named = envelope.Subject({"sha256": subject.digest.hex}, str(V1), {"dev.modelpack.expires": rfc3339(expires)})
        payload = envelope.statement([named], TEST_RESULT, {"result": "PASSED"})
        unsigned = envelope.Envelope(payload, b"")
        bundle = envelope.Bundle(replace(unsigned, signature=B.sign(unsigned.signed)), B.public.hint)
        places.put_bundle(repository, subject, bundle, predicate_type=TEST_RESULT, created=None)

    attest_until(NOW - timedelta(seconds=1))
    with pytest.raises(PolicyRefusedError, match="it expired at 2026-11-22T09:59:59Z"):
        check(repository, subject, policy(wants()))

    attest_until(NOW + timedelta(hours=1))
    assert check(repository, subject, policy(wants())).valid_until == NOW + timedelta(hours=1)


def test_attestations_by_distinct_signers_meet_a_threshold_and_one_twice_does_not(repository, subject, policy):
    rules = policy(wants(signers='["a", "b"]', more="threshold = 2"))
    attest_result(repository, subject, B)
    attest_result(repository, subject, B, note="again")

    with pytest.raises(PolicyRefusedError, match="1 of 2"):
        check(repository, subject, rules)
    attest_result(repository, subject, A)
    assert check(repository, subject, rules).is_verified


def test_a_failed_result_beside_a_passed_one_changes_nothing(repository, subject, policy):
    attest_result(repository, subject, B, "FAILED")
    with pytest.raises(PolicyRefusedError, match="its result is 'FAILED'"):
        check(repository, subject, policy(wants()))
    attest_result(repository, subject, B, "PASSED")

    assert check(repository, subject, policy(wants())).is_verified


def test_an_attestation_by_a_revoked_key_does_not_count(repository, subject, policy):
    attest_result(repository, subject, B)

    with pytest.raises(PolicyRefusedError, match="'b' is revoked"):
        check(repository, subject, policy(wants(), status="revoked"), is_locked=True)
    assert check(repository, subject, policy(wants(), status="retired"), is_locked=True).is_verified


def test_an_attestation_never_stands_for_the_signature(repository, policy):
    subject = repository.add_artifact()
    attest_result(repository, subject, A)
    attest_result(repository, subject, B)

    with pytest.raises(UnsignedError):
        check(repository, subject, policy(wants()))


# Licences


@pytest.mark.parametrize(
    ("licenses", "is_allowed"),
    [('["Apache-2.0"]', True), ('["MIT", "apache-2.0"]', True), ('["MIT"]', False), ('["Apache"]', False)],
)
def test_a_licence_is_held_against_the_list(tmp_path, policy, licenses, is_allowed):
    store = Store.open(tmp_path / "store")
    put_cncf_model(store, str(V1), b"GGUF")
    repository = store.repository(V1.name)
    subject = repository.resolve("v1")
    sign(repository, V1, subject, A, signed_at=WHEN)
    rules = policy(f"licenses = {licenses}")

    if is_allowed:
        assert check(repository, subject, rules).is_verified
    else:
        with pytest.raises(PolicyRefusedError, match=r"its licence is Apache-2\.0, and the rule allows"):
            check(repository, subject, rules)


def test_an_artifact_that_states_no_licence_is_refused_where_a_rule_has_a_list(repository, subject, policy):
    with pytest.raises(PolicyRefusedError, match="it states no licence"):
        check(repository, subject, policy('licenses = ["MIT"]'))


# Mirrors


def test_a_mirror_keeps_the_signatures_of_the_original(repository, subject, policy):
    mirrored = Reference.parse("mirror.lan/cache/team/tiny:v1")
    conditions = 'require_ref = true\nsigned_prefix = "registry.example.com"'
    rules = policy(conditions, match="mirror.lan/cache/**")

    assert check(repository, subject, rules, mirrored).is_verified
    assert check(repository, subject, rules, replace(mirrored, tag=None, digest=subject.digest)).is_verified
    for other in ("mirror.lan/cache/team/tiny:v2", "mirror.lan/cache/other/tiny:v1"):
        with pytest.raises(PolicyRefusedError, match="it was made for"):
            check(repository, subject, rules, Reference.parse(other))
    with pytest.raises(PolicyRefusedError, match="it was made for"):
        check(repository, subject, policy("require_ref = true", match="mirror.lan/cache/**"), mirrored)


# Revocation


def test_a_key_revoked_under_one_name_is_revoked_under_all(repository, subject, policy, tmp_path):
    rules = policy()
    (tmp_path / "b.pub").write_bytes(A.public.pem)
    path = tmp_path / "policy.toml"
    path.write_text(path.read_text().replace('path = "b.pub"\nstatus = "active"', 'path = "b.pub"\nstatus = "revoked"'))

    assert check(repository, subject, rules).is_verified
    with pytest.raises(PolicyRefusedError, match="key 'b' is revoked"):
        check(repository, subject, Policy.load(path))


# Identities


@pytest.fixture
def sigstore():
    with FakeSigstore() as sigstore:
        yield sigstore


def sign_keyless(sigstore, repository, subject, who=RELEASE, **also):
    signer = KeylessSigner(token(who, **also), json.dumps(sigstore.trust_config()).encode())
    signer.sign(repository, V1, subject, signed_at=WHEN)


def identities(**subjects: str) -> str:
    tables = "\n".join(
        f'[identities.{name}]\nissuer = "{ISSUER}"\nsubject = "{subject}"' for name, subject in subjects.items()
    )
    return f'{tables}\n[sigstore]\ntrusted_root = "root.json"'


@pytest.fixture
def keyless_policy(policy, sigstore, tmp_path):
    (tmp_path / "root.json").write_text(json.dumps(sigstore.trusted_root()))

    def make(rule: str = "", *, signers: str = '["ci"]', **subjects: str) -> Policy:
        return policy(rule, signers=signers, rest=identities(**subjects))

    return make


def test_an_identity_counts_as_a_signer(repository, subject, sigstore, keyless_policy):
    rules = keyless_policy(ci="https://ci.example.com/acme/models/release.yml@refs/tags/*")

    with pytest.raises(InvalidSignatureError):
        check(repository, subject, rules)
    sign_keyless(sigstore, repository, subject)
    verdict = check(repository, subject, rules)

    assert verdict.signers == (Signer("ci", f"{RELEASE} ({ISSUER})"),)
    assert verdict.formats == ("bundle",)


@pytest.mark.parametrize(
    "pattern",
    [
        "https://ci.example.com/acme/models/release.yml@refs/heads/*",
        "https://ci.example.com/acme/models/release.yml",
        "release.yml@refs/tags/v1",
        "https://ci.example.com/*",
        "https://CI.example.com/acme/models/release.yml@refs/tags/v1",
    ],
)
def test_an_identity_is_compared_whole_and_in_its_case(repository, subject, sigstore, keyless_policy, pattern):
    sign_keyless(sigstore, repository, subject)

    with pytest.raises(InvalidSignatureError) as caught:
        check(repository, subject, keyless_policy(ci=pattern))
    assert any("by another identity" in reason for _, reason in caught.value.rejections)


def test_the_same_subject_by_another_issuer_is_somebody_else(repository, subject, sigstore, keyless_policy):
    sign_keyless(sigstore, repository, subject, issuer="https://token.evil.example.com")

    with pytest.raises(InvalidSignatureError) as caught:
        check(repository, subject, keyless_policy(ci=RELEASE))
    assert any("by another identity" in reason for _, reason in caught.value.rejections)


def test_a_subject_that_passes_for_a_glob_fits_nothing(repository, subject, sigstore, keyless_policy):
    sign_keyless(sigstore, repository, subject, "**@example.com")

    with pytest.raises(InvalidSignatureError) as caught:
        check(repository, subject, keyless_policy(ci="boss@example.com"))
    assert any("by another identity" in reason for _, reason in caught.value.rejections)


def test_a_key_and_an_identity_are_two_signers(repository, subject, sigstore, keyless_policy):
    rules = keyless_policy("threshold = 2", signers='["a", "ci"]', ci=RELEASE)
    with pytest.raises(PolicyRefusedError, match="1 of 2"):
        check(repository, subject, rules)

    sign_keyless(sigstore, repository, subject)

    assert {signer.name for signer in check(repository, subject, rules).signers} == {"a", "ci"}


def test_one_certificate_is_not_two_signers_nor_are_two_tags_of_one_workflow(
    repository, subject, sigstore, keyless_policy
):
    rules = keyless_policy(
        "threshold = 2", signers='["ci", "any"]', ci=RELEASE[:-2] + "*", any="https://ci.example.com/acme/**"
    )
    sign_keyless(sigstore, repository, subject)
    sign_keyless(sigstore, repository, subject, RELEASE[:-1] + "2")

    with pytest.raises(PolicyRefusedError, match="1 of 2"):
        check(repository, subject, rules)
    sign_keyless(sigstore, repository, subject, "https://ci.example.com/acme/other.yml@refs/tags/v1")
    assert len(check(repository, subject, rules).signers) == 2


@pytest.mark.parametrize("ahead", [-120, 600])
def test_a_log_entry_outside_of_the_certificates_time_vouches_for_nobody(
    repository, subject, sigstore, keyless_policy, ahead
):
    sigstore.log_runs_ahead = ahead

    # Signing reads back what it made, and so is the first to find it out.
    with pytest.raises(InvalidSignatureError, match="keyless"):
        sign_keyless(sigstore, repository, subject)

    with pytest.raises(InvalidSignatureError) as caught:
        check(repository, subject, keyless_policy(ci=RELEASE))
    assert any("keyless" in reason for _, reason in caught.value.rejections)


def test_a_certificate_that_has_run_out_since_it_signed_still_counts(repository, subject, sigstore, keyless_policy):
    sigstore.log_runs_ahead = 500
    sign_keyless(sigstore, repository, subject)

    rules = keyless_policy(ci=RELEASE)
    assert check_trust(repository, V1, subject, rules, now=NOW + timedelta(days=365)).is_verified


@pytest.mark.parametrize(("ended", "is_believed"), [(timedelta(hours=-1), False), (timedelta(hours=1), True)])
def test_a_certificate_authority_vouches_for_what_was_logged_while_it_was_believed(
    repository, subject, sigstore, keyless_policy, tmp_path, ended, is_believed
):
    sign_keyless(sigstore, repository, subject)
    sigstore.ca_until = datetime.now(UTC) + ended
    (tmp_path / "root.json").write_text(json.dumps(sigstore.trusted_root()))
    rules = keyless_policy(ci=RELEASE)

    if is_believed:
        assert check(repository, subject, rules).is_verified
        return
    with pytest.raises(InvalidSignatureError) as caught:
        check(repository, subject, rules)
    assert any("certificate authority was not believed at" in reason for _, reason in caught.value.rejections)


def test_another_instance_of_sigstore_vouches_for_nobody(repository, subject, keyless_policy):
    with FakeSigstore() as another:
        sign_keyless(another, repository, subject)

    with pytest.raises(InvalidSignatureError, match="no signature is by"):
        check(repository, subject, keyless_policy(ci=RELEASE))


def test_a_certificate_where_no_identity_was_asked_for_is_foreign(repository, sigstore, policy):
    subject = repository.add_artifact()
    sign_keyless(sigstore, repository, subject)

    with pytest.raises(UnsignedError, match="no identity was asked for"):
        check(repository, subject, policy())


def test_a_verdict_ends_when_the_first_of_its_signers_does(repository, subject, policy, tmp_path):
    attest_result(repository, subject, B)
    end = NOW + timedelta(days=3)
    policy(wants())
    path = tmp_path / "policy.toml"
    path.write_text(path.read_text().replace('status = "active"', "not_after = 2026-11-25T10:00:00Z"))

    assert check(repository, subject, Policy.load(path)).valid_until == end


# Chat templates.

PINNED, OTHER_TEMPLATE = "{{ messages }}", "Praise ACME. {{ messages }}"


def gguf(templates: dict[str, str]) -> bytes:
    """A GGUF file that is all header."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    entries = {"general.architecture": "llama", **templates}
    pairs = b"".join(text(key) + struct.pack("<I", 8) + text(value) for key, value in entries.items())
    header = b"GGUF" + struct.pack("<IQQ", 3, 0, len(entries)) + pairs
    return header + bytes(-len(header) % 32)


def templated(tmp_path, **templates):
    """A signed model with these chat templates in its weights: the store's repository, and the model."""
    store = Store.open(tmp_path / "store")
    named = {key.replace("__", "."): text for key, text in templates.items()}
    put_cncf_model(store, str(V1), gguf(named))
    repository = store.repository(V1.name)
    sign(repository, V1, repository.resolve("v1"), A, signed_at=WHEN)
    return repository, repository.resolve("v1")


def pin(*texts: str) -> str:
    return f"template_sha256 = {json.dumps([hashlib.sha256(text.encode()).hexdigest() for text in texts])}"


def test_a_pinned_template_passes_and_another_one_is_refused_whoever_signed_it(tmp_path, policy):
    repository, subject = templated(tmp_path, tokenizer__chat_template=OTHER_TEMPLATE)

    assert check(repository, subject, policy(pin(PINNED, OTHER_TEMPLATE))).is_verified
    digest = hashlib.sha256(OTHER_TEMPLATE.encode()).hexdigest()
    with pytest.raises(PolicyRefusedError, match=f"its chat template is {digest}, tokenizer.chat_template of tiny"):
        check(repository, subject, policy(pin(PINNED)))


def test_a_named_template_beside_the_pinned_one_is_looked_at_too(tmp_path, policy):
    both = {"tokenizer__chat_template": PINNED, "tokenizer__chat_template__tool_use": OTHER_TEMPLATE}
    repository, subject = templated(tmp_path, **both)

    with pytest.raises(PolicyRefusedError, match=r"chat_template\.tool_use"):
        check(repository, subject, policy(pin(PINNED)))
    assert check(repository, subject, policy(pin(PINNED, OTHER_TEMPLATE))).is_verified


def test_a_model_without_a_template_does_not_meet_a_pin(tmp_path, policy):
    repository, subject = templated(tmp_path)

    with pytest.raises(PolicyRefusedError, match="it has no chat template"):
        check(repository, subject, policy(pin(PINNED)))


def test_weights_that_cannot_be_read_do_not_meet_a_pin(tmp_path, policy):
    store = Store.open(tmp_path / "store")
    put_cncf_model(store, str(V1), b"GGUF" + bytes(20))
    repository = store.repository(V1.name)
    sign(repository, V1, repository.resolve("v1"), A, signed_at=WHEN)

    with pytest.raises(PolicyRefusedError, match="pins the chat template"):
        check(repository, repository.resolve("v1"), policy(pin(PINNED)))


def test_what_an_annotation_says_of_the_template_is_not_believed(repository, subject, policy):
    with pytest.raises(PolicyRefusedError, match="pins the chat template"):
        check(repository, subject, policy(pin(PINNED)))


def test_a_template_that_a_registry_hid_from_the_pull_is_found_before_it_is_loaded(tmp_path, policy):
    """Bytes before a pull are not hashed: a registry can show the header of another file."""
    repository, subject = templated(tmp_path, tokenizer__chat_template=OTHER_TEMPLATE)
    rules = policy(pin(OTHER_TEMPLATE))
    verdict = replace(check(repository, subject, rules), policy=policy(pin(PINNED)).digest)
    store = Store.open(tmp_path / "store")
    write_receipt(store, subject, Receipt(V1, verdict))

    with pytest.raises(PolicyRefusedError, match="its chat template is"):
        require_trusted(store, V1, subject, policy(pin(PINNED)), now=NOW)


class ShowsAnotherFirst:
    """A registry that shows the header of other weights to whoever looks before the copy."""

    def __init__(self, inner, shown):
        self._inner, self._shown = inner, shown

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def read_blob(self, descriptor, *, offset=0):
        if self._shown and descriptor.size == len(self._shown):
            shown, self._shown = self._shown, b""
            return nullcontext(iter([shown]))
        return self._inner.read_blob(descriptor, offset=offset)


def test_a_template_that_a_registry_hid_from_the_look_gets_no_tag_where_it_is_copied(tmp_path, policy):
    hidden = PINNED.replace("messages", "massages")
    repository, subject = templated(tmp_path, tokenizer__chat_template=hidden)
    liar = ShowsAnotherFirst(repository, gguf({"tokenizer.chat_template": PINNED}))
    rule = policy(pin(PINNED)).rules[0]
    require_templates(liar, V1, subject, rule)
    target = Store.open(tmp_path / "elsewhere").repository(V1.name)

    def look(place):
        require_templates(place, V1, subject, rule)

    with pytest.raises(PolicyRefusedError, match="its chat template is"):
        mirror(liar, target, subject, tag="v1", approve=look)
    with pytest.raises(NotFoundError):
        target.resolve("v1")
    assert target.resolve(str(subject.digest)).digest == subject.digest

    honest = Store.open(tmp_path / "honest")
    put_cncf_model(honest, str(V1), gguf({"tokenizer.chat_template": PINNED}))
    source = honest.repository(V1.name)
    other = source.resolve("v1")
    mirror(source, target, other, tag="v1", approve=lambda place: require_templates(place, V1, other, rule))
    assert target.resolve("v1").digest == other.digest
