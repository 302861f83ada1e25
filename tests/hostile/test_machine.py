"""What lies on the machine itself, the store, keys, and what is printed about them: attacks 20 to 22."""

import base64
import json
import os
import shutil

import pytest
from evil_manifests import NAME
from fakes.registry import FakeRegistry

from modelpack.cli.main import COMMANDS

CANARY = "c4nary"


def test_row_20_a_store_that_others_can_write_is_not_used(modelpack, tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    assert modelpack("list", "--store", tmp_path / "open").code == 4
    if os.geteuid() == 0:
        (tmp_path / "foreign").mkdir()
        os.chown(tmp_path / "foreign", 12345, 12345)
        assert modelpack("list", "--store", tmp_path / "foreign").code == 4


def test_row_20_a_link_in_the_place_of_a_blob_or_a_partial_file_is_not_followed(
    published, pull, developer, store, tmp_path
):
    victim = tmp_path / "victim"
    victim.write_text(f"{CANARY} and more")
    store()
    # Planted before the pull: whatever is unfinished would be written through it.
    for name in (published.weights.hex, f"{published.weights.hex}.partial"):
        (tmp_path / "developer-store" / "partial" / name).symlink_to(victim)
    pull(published.reference)
    assert victim.read_text() == f"{CANARY} and more"
    for path in (tmp_path / "developer-store" / "partial").iterdir():
        if path.is_symlink():
            path.unlink()
    assert pull(published.reference).code == 0

    blob = store().blob_path(published.weights)
    blob.unlink()
    blob.symlink_to(victim)
    for command in (("verify", published.reference, "--no-smoke"), ("run", published.reference, "hello")):
        refused = developer(*command)
        assert refused.code not in (0, 70), refused.stderr
        assert CANARY not in refused.stdout + refused.stderr


# What each command is given here. One that is not listed gets the reference alone; each gets -v.
ARGUMENTS = {
    "build": ["CHECKPOINT", "-t", "REF"],
    "push": ["REF", "--sign", "KEY"],
    "pull": ["REF", "--key", "PUB"],
    "verify": ["REF", "--no-smoke", "--key", "PUB"],
    "run": ["REF", "hello"],
    "keygen": ["--out", "TMP/new"],
    "key": ["info", "KEY"],
    "sign": ["REF", "--key", "KEY"],
    "attest": ["REF", "--type", "https://example.com/x", "--predicate", "EMPTY", "--key", "KEY"],
    "trust": ["add", "author", "PUB", "--match", "HOST/**"],
    "policy": ["check"],
    "login": ["HOST", "-u", "alice", "--password-stdin"],
    "list": [],
    "tag": ["REF", "other:v1"],
    "rm": ["nothing:v1"],
    "df": [],
    "prune": [],
    "fsck": [],
    "copy": ["REF", "HOST/demo/copy:v1"],
    "bundle": ["save", "REF", "-o", "TMP/bundle.tar"],
    "tags": ["HOST/demo/tiny"],
    "index": ["show", "REF"],
    "registry": ["--help"],
    "serve": ["--help"],
    "status": [],
    "completion": ["bash"],
    "version": [],
    "logout": ["HOST"],
}
ORDER = ("login", "keygen", "key", "build", "push", "trust", "pull")


def test_row_21_no_command_shows_or_keeps_a_secret(modelpack, home, checkpoint, tmp_path):
    """Passwords, tokens, signed URLs and proxies' passwords, in what is printed, logged (-v) and kept."""
    password = f"{CANARY}-registry-password"
    with FakeRegistry(auth="token") as registry, FakeRegistry() as storage:
        registry.users = {"alice": password}
        registry.content_host = storage
        env = {
            "MODELPACK_PASSWORD": f"{CANARY}-key-password",
            "HF_TOKEN": f"hf_{CANARY}",
            "https_proxy": f"http://alice:{CANARY}@127.0.0.1:9",
            "no_proxy": "127.0.0.1",
        }
        words = {
            "REF": f"{registry.address}/{NAME}:v1",
            "HOST": registry.address,
            "CHECKPOINT": str(checkpoint),
            "KEY": str(tmp_path / "new.key"),
            "PUB": str(tmp_path / "new.pub"),
            "EMPTY": str(tmp_path / "empty.json"),
            "TMP": str(tmp_path),
        }
        (tmp_path / "empty.json").write_text("{}")
        seen: dict[str, int] = {}
        for name in (*ORDER, *(name for name in COMMANDS if name not in (*ORDER, "logout")), "logout"):
            arguments = ARGUMENTS.get(name, ["REF"])
            for word, meaning in words.items():
                arguments = [argument.replace(word, meaning) for argument in arguments]
            flags = [] if "--help" in arguments else ["-v"]
            result = modelpack(name, *arguments, *flags, env=env, stdin=f"{password}\n")
            seen[name] = result.code
            assert result.code != 70, (name, result.stderr)
            assert CANARY not in result.stdout + result.stderr, (name, result.stdout, result.stderr)
            signatures = storage.signatures
            assert not [text for text in signatures if text in result.stdout + result.stderr], name
            if name == "login":
                config = home / ".docker" / "config.json"
                assert base64.b64encode(f"alice:{password}".encode()).decode() in config.read_text()
        secrets = [CANARY.encode(), base64.b64encode(f"alice:{password}".encode()), *(s.encode() for s in signatures)]
        secrets += [token.encode() for token in registry.tokens]
        kept = [path for path in tmp_path.rglob("*") if path.is_file() and any(s in path.read_bytes() for s in secrets)]

    assert kept == []
    # The walk means something only if it gets there: with credentials, through signed URLs.
    assert {name: seen[name] for name in ("login", "build", "push", "pull", "sign", "tags", "copy")} == dict.fromkeys(
        ("login", "build", "push", "pull", "sign", "tags", "copy"), 0
    )
    assert registry.tokens


def test_row_21_a_url_with_a_password_in_it_is_not_repeated(modelpack):
    for arguments in (
        ["pull", f"alice:{CANARY}@registry.example.com/a/b:v1"],
        ["login", f"https://alice:{CANARY}@registry.example.com"],
        ["build", "hf://a/b", "-t", "x:v1"],
    ):
        env = {"HF_ENDPOINT": f"http://alice:{CANARY}@127.0.0.1:9", "HF_HUB_DISABLE_XET": "1"}
        result = modelpack(*arguments, "-v", env=env, stdin="password\n")
        assert result.code not in (0, 70), (arguments, result.stderr)
        if arguments[0] == "build":
            assert CANARY not in result.stdout + result.stderr


@pytest.mark.parametrize("params", [{"N": 1 << 30, "r": 8, "p": 1}, {"N": 65536, "r": 1 << 20, "p": 1}])
def test_row_22_a_key_file_that_asks_for_all_memory_is_refused_and_a_loose_one_is_told(modelpack, key_pair, params):
    private = key_pair[0]
    lines = private.read_text().splitlines()
    document = json.loads(base64.b64decode("".join(lines[1:-1])))
    document["kdf"]["params"] = params
    body = base64.b64encode(json.dumps(document).encode()).decode()
    bomb = private.with_name("bomb.key")
    bomb.write_text(f"{lines[0]}\n{body}\n{lines[-1]}\n")
    bomb.chmod(0o644)

    refused = modelpack("key", "info", bomb, env={"MODELPACK_PASSWORD": "x"})

    assert refused.code == 2
    assert "only scrypt with N of" in refused.stderr
    shutil.copy(private, private.with_name("loose.key"))
    private.with_name("loose.key").chmod(0o644)
    told = modelpack("key", "info", private.with_name("loose.key"))
    assert told.code == 0
    assert "others may read the private key" in told.stderr
