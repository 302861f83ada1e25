"""pull, lock and run against a registry that offers old, moved and unsigned things; and keyless from end to end."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from fakes.artifacts import put_cncf_model
from fakes.servers import running_registry
from fakes.sigstore import ISSUER, FakeSigstore, token

from modelpack.lockfile import Lock
from modelpack.oci.reference import Reference
from modelpack.signing.keys import PrivateKey
from modelpack.signing.signature import sign
from modelpack.store import Store

RELEASE = "https://ci.example.com/acme/models/release.yml@refs/tags/v1"


class Publisher:
    """Somebody who puts models behind a registry's names and signs them, whenever it is said to have been."""

    def __init__(self, store, address, key):
        self.store, self.address, self.key = store, address, key
        self.reference = Reference.parse(f"{address}/team/tiny:v1")

    def publish(self, content: bytes, *, hours_ago: float | None = None, key: PrivateKey | None = None) -> str:
        manifest, _ = put_cncf_model(self.store, f"{self.reference.repository}:v1", content)
        repository = self.store.repository(self.reference.repository)
        if hours_ago is not None:
            when = datetime.now(UTC) - timedelta(hours=hours_ago)
            sign(repository, self.reference, repository.resolve("v1"), key or self.key, signed_at=when)
        return str(manifest.digest)


@pytest.fixture
def publisher(tmp_path, key_pair):
    store = Store.open(tmp_path / "far")
    with running_registry(store) as address:
        yield Publisher(store, address, PrivateKey.load(key_pair[0].read_bytes(), b""))


@pytest.fixture
def name(publisher):
    return str(publisher.reference)


@pytest.fixture
def trusted(modelpack, publisher, key_pair):
    result = modelpack("trust", "add", "team", key_pair[1], "--match", f"{publisher.address}/team/**")
    assert result.code == 0, result.stderr


def test_an_older_artifact_under_a_tag_is_refused_unless_it_is_wanted(modelpack, publisher, name, trusted):
    old = publisher.publish(b"GGUF old", hours_ago=2)
    assert modelpack("pull", name).code == 0
    new = publisher.publish(b"GGUF new", hours_ago=1)
    assert modelpack("pull", name, "--json").json("pull")["digest"] == new

    publisher.publish(b"GGUF old")
    refused = modelpack("pull", name)
    assert refused.code == 6
    for part in (old, new, "verified as this tag before", "nothing was downloaded", "--allow-rollback"):
        assert part in refused.stderr
    assert modelpack("pull", f"{name}@{old}").code == 0

    assert modelpack("pull", name, "--allow-rollback", "--json").json("pull")["digest"] == old
    assert modelpack("pull", name).code == 0


def test_what_was_signed_in_the_registry_since_comes_with_another_pull(modelpack, publisher, name, key_pair):
    digest = publisher.publish(b"GGUF")
    assert modelpack("pull", name, "--insecure-skip-verify").code == 0
    publisher.publish(b"GGUF", hours_ago=0)

    refused = modelpack("verify", name, "--trust-only", "--key", key_pair[1])
    assert refused.code == 6
    assert f"the registry was not asked: modelpack pull {name} brings signatures made since" in refused.stderr

    assert modelpack("pull", name, "--key", key_pair[1]).code == 0
    pinned = f"{publisher.reference.name}@{digest}"
    verified = modelpack("verify", pinned, "--trust-only", "--key", key_pair[1])
    assert verified.stdout.splitlines()[-1] == f"verified  {pinned}"  # no tag that nobody named


def test_a_frozen_pull_fetches_what_was_locked_wherever_the_tag_points(modelpack, publisher, name, trusted, tmp_path):
    locked = publisher.publish(b"GGUF locked", hours_ago=2)
    answer = modelpack("lock", name, "--json").json("lock")
    assert [one["digest"] for one in answer["artifacts"]] == [locked]
    entry = Lock.load(tmp_path / "modelpack.lock").find(publisher.reference)
    assert entry.signers == (publisher.key.public.id,)

    moved = publisher.publish(b"GGUF moved", hours_ago=1)
    assert modelpack("pull", name, "--json").json("pull")["digest"] == moved
    assert modelpack("pull", name, "--frozen", "--json").json("pull")["digest"] == locked
    listed = modelpack("list", "--json").json("list")["models"]
    assert [one["digest"] for one in listed] == [locked]


def test_a_frozen_pull_refuses_what_is_not_locked(modelpack, publisher, name, trusted, tmp_path):
    first = publisher.publish(b"GGUF", hours_ago=2)
    assert modelpack("lock", name).code == 0
    second = publisher.publish(b"GGUF second", hours_ago=1)

    for other in (f"{publisher.address}/team/tiny:v2", f"{name}@{second}"):
        refused = modelpack("pull", other, "--frozen")
        assert refused.code == 6
        assert "lock" in refused.stderr
    lock = tmp_path / "modelpack.lock"
    lock.write_text(lock.read_text().replace(first, second))
    assert modelpack("pull", name, "--frozen").code == 6  # a manifest of another size
    lock.unlink()
    assert modelpack("pull", name, "--frozen").code == 3
    assert modelpack("pull", name, "--frozen", "--insecure-skip-verify").code == 2
    assert modelpack("pull", name, "--lock", lock).code == 2


def test_lock_writes_nothing_about_what_is_not_trusted(modelpack, publisher, name, trusted, tmp_path):
    publisher.publish(b"GGUF")

    refused = modelpack("lock", name)

    assert refused.code == 6
    assert not (tmp_path / "modelpack.lock").exists()


def test_a_retired_key_counts_for_what_is_locked_and_for_running_it(modelpack, publisher, name, trusted, home):
    publisher.publish(b"GGUF", hours_ago=1)
    assert modelpack("lock", name).code == 0
    policy = home / ".config" / "modelpack" / "policy.toml"
    policy.write_text(policy.read_text().replace("[keys.team]", '[keys.team]\nstatus = "retired"'))

    refused = modelpack("pull", name)
    assert refused.code == 6
    assert "retired" in refused.stderr
    assert modelpack("pull", name, "--frozen").code == 0
    policy.write_text(policy.read_text().replace("[[rule]]", "[[rule]]\nthreshold = 1\nrequire_ref = true"))
    assert modelpack("verify", name, "--no-smoke").code == 0


def test_a_refusal_is_one_screen_that_says_what_to_ask_of_whom(modelpack, publisher, name, trusted):
    digest = publisher.publish(b"GGUF")

    refused = modelpack("pull", name)

    assert refused.code == 6
    tag = f"sha256-{digest.removeprefix('sha256:')}"
    for part in (
        f"{publisher.address}/team/**",
        "signers: team",
        "not signed",
        "referrers",
        tag,
        "nothing was downloaded",
        f"ask whoever publishes {publisher.address}/team/tiny to run: modelpack sign",
    ):
        assert part in refused.stderr
    assert len(refused.stderr.splitlines()) <= 24
    assert modelpack("list", "--json").json("list")["models"] == []

    publisher.publish(b"GGUF", hours_ago=1, key=PrivateKey.generate())
    stranger = modelpack("pull", name)
    assert stranger.code == 6
    assert "by another key, SHA256:" in stranger.stderr
    assert f"modelpack policy explain {name}" in stranger.stderr


def test_without_a_rule_the_refusal_has_the_command_that_makes_one(modelpack, publisher, name):
    publisher.publish(b"GGUF", hours_ago=1)

    refused = modelpack("pull", name)

    assert refused.code == 6
    assert f"modelpack trust add NAME KEY.pub --match '{publisher.address}/team/**'" in refused.stderr


def test_verify_local_asks_no_registry_and_finds_a_changed_byte(modelpack, publisher, name, trusted, home):
    publisher.publish(b"GGUF weights", hours_ago=1)
    assert modelpack("pull", name).code == 0
    assert modelpack("verify", "--local", "--no-smoke", name).code == 0
    assert modelpack("verify", "--local", "--trust-only", f"{publisher.address}/team/other:v1").code == 3

    blobs = home / ".local" / "share" / "modelpack" / "blobs" / "sha256"
    (weights,) = [path for path in blobs.iterdir() if path.read_bytes() == b"GGUF weights"]
    weights.chmod(0o600)
    weights.write_bytes(b"GGUF Weights")
    changed = modelpack("verify", "--local", "--no-smoke", name)
    assert changed.code == 6
    assert weights.name in changed.stderr


def test_a_missing_attestation_refuses_a_pull_and_says_which(modelpack, publisher, name, trusted, home):
    publisher.publish(b"GGUF", hours_ago=1)
    policy = home / ".config" / "modelpack" / "policy.toml"
    kind = "https://slsa.dev/provenance/v1"
    policy.write_text(f'{policy.read_text()}[[rule.attestation]]\ntype = "{kind}"\nsigners = ["team"]\n')

    refused = modelpack("pull", name)

    assert refused.code == 6
    for part in ("it is signed, but 0 of 1", kind, "signers: team", "nothing was downloaded"):
        assert part in refused.stderr


def test_keyless_from_a_ci_job_to_a_developer(modelpack, publisher, name, home, tmp_path):
    digest = publisher.publish(b"GGUF")
    settings = home / ".config" / "modelpack"
    settings.mkdir(parents=True)
    with FakeSigstore() as sigstore:
        (tmp_path / "trust-config.json").write_text(json.dumps(sigstore.trust_config()))
        (settings / "root.json").write_text(json.dumps(sigstore.trusted_root()))
        secret = token(RELEASE)
        job = {"GITLAB_CI": "true", "SIGSTORE_ID_TOKEN": secret}
        config = ("--trust-config", tmp_path / "trust-config.json")
        signed = modelpack("sign", f"{name}@{digest}", "--keyless", *config, "--json", env=job)
        assert signed.code == 0, signed.stderr
    document = signed.json("sign")
    assert document["key_id"] == f"{RELEASE} ({ISSUER})"
    assert document["log_index"] == 1
    assert "where they stay" in signed.stderr
    assert secret not in signed.stdout + signed.stderr
    (settings / "policy.toml").write_text(
        f'version = 1\n[sigstore]\ntrusted_root = "root.json"\n[identities.ci]\nissuer = "{ISSUER}"\n'
        'subject = "https://ci.example.com/acme/models/release.yml@refs/tags/*"\n'
        f'[[rule]]\nmatch = "{publisher.address}/team/**"\nsigners = ["ci"]\nrequire_ref = true\n'
    )

    pulled = modelpack("pull", name, "--json")

    assert pulled.code == 0, pulled.stderr
    assert pulled.json("pull")["trust"]["signers"] == [{"name": "ci", "keyId": f"{RELEASE} ({ISSUER})"}]
    assert modelpack("verify", "--local", "--no-smoke", name).code == 0
    policy = settings / "policy.toml"
    policy.write_text(policy.read_text().replace("refs/tags/*", "refs/heads/main"))
    refused = modelpack("verify", "--local", "--no-smoke", name)
    assert refused.code == 6
    assert "by another identity" in refused.stderr


def test_an_old_artifact_signed_again_for_another_tag_is_no_news_of_this_one(modelpack, publisher, name, trusted):
    old = publisher.publish(b"GGUF old", hours_ago=3)
    publisher.publish(b"GGUF new", hours_ago=2)
    assert modelpack("pull", name).code == 0
    publisher.publish(b"GGUF old")
    repository = publisher.store.repository(publisher.reference.repository)
    stable = publisher.reference.with_tag("stable")
    sign(repository, stable, repository.resolve("v1"), publisher.key, signed_at=datetime.now(UTC))

    refused = modelpack("pull", name)

    assert refused.code == 6, refused.stderr
    assert "was verified as this tag before" in refused.stderr
    assert "error[" in refused.stderr
    repository.put_manifest(repository.fetch_manifest(repository.resolve(old)), tag="stable")
    assert modelpack("pull", str(stable)).code == 0, "under the tag that it was signed for it is new"
