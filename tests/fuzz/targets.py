"""What is fuzzed: every parser of bytes that come from outside.

A target takes any bytes. It may turn them away with one of our errors, and nothing else; where it accepts them it also
holds a property that must be true of whatever was accepted.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

from modelpack import template
from modelpack.archive import Archive
from modelpack.convert.model_card import parse_model_card
from modelpack.convert.safetensors import read_tensors
from modelpack.errors import ModelpackError
from modelpack.formats import CODECS
from modelpack.gguf_header import read_header
from modelpack.lockfile import Lock
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import Manifest
from modelpack.oci.reference import Reference, parse_location
from modelpack.policy import Policy
from modelpack.registry.challenges import parse_challenges
from modelpack.registry.refusal import Refusal
from modelpack.signing import envelope, kdf, pkcs11, simple_signing
from modelpack.signing.keys import PrivateKey, PublicKey, is_encrypted, is_private
from modelpack.smoke import suite
from modelpack.store.index import Index

Target = Callable[[bytes], None]

TARGETS: dict[str, Target] = {}
_SCRATCH = tempfile.TemporaryDirectory(prefix="modelpack-fuzz-")


def target(function: Target) -> Target:
    TARGETS[function.__name__] = function
    return function


def run(name: str, data: bytes) -> bool:
    """Whether the target accepted the bytes. Anything but one of our errors passes through."""
    try:
        TARGETS[name](data)
    except ModelpackError as error:
        if not str(error):
            raise AssertionError("an error without a sentence") from error
        return False
    return True


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _file(data: bytes, name: str) -> Path:
    path = Path(_SCRATCH.name) / name
    path.write_bytes(data)
    return path


@target
def reference(data: bytes) -> None:
    location = parse_location(_text(data))
    if isinstance(location, Reference):
        assert Reference.parse(str(location)) == location
        assert ".." not in location.name.split("/")


@target
def manifest(data: bytes) -> None:
    parsed = Manifest.parse(data)
    assert parsed.raw == data
    assert parsed.digest == Digest.of(data)
    assert not (parsed.layers and parsed.manifests)
    if parsed.subject:
        assert parsed.subject.size >= 0


@target
def layout_index(data: bytes) -> None:
    parsed = Index.parse(data, Path("index.json"))
    assert Index.parse(parsed.encode(), Path("index.json")) == parsed


@target
def archive(data: bytes) -> None:
    Archive.open(_file(data, "fuzzed.tar"))


@target
def lock_file(data: bytes) -> None:
    assert all(Lock.load(_file(data, "modelpack.lock")).entries)


@target
def model(data: bytes) -> None:
    """A manifest, a zero byte, and the config that it names."""
    raw, _, config = data.partition(b"\0")
    parsed = Manifest.parse(raw)
    for codec in CODECS:
        if codec.reads(parsed):
            for file in codec.decode(parsed, config).files:
                assert "/" not in file.name
                assert file.name not in ("", ".", "..")


@target
def bundle(data: bytes) -> None:
    parsed = envelope.Bundle.parse(data)
    assert envelope.Bundle.parse(parsed.to_bytes()) == parsed
    statement(parsed.envelope.payload)


@target
def attestation_envelope(data: bytes) -> None:
    parsed = envelope.Envelope.parse(data)
    assert envelope.Envelope.parse(parsed.to_bytes()) == parsed


@target
def statement(data: bytes) -> None:
    parsed = envelope.Statement.parse(data)
    assert 0 < len(parsed.subjects) <= envelope.MAX_SUBJECTS


@target
def simple_signature(data: bytes) -> None:
    parsed = simple_signing.Payload.parse(data)
    assert simple_signing.Payload.parse(parsed.to_bytes()) == parsed


@target
def policy(data: bytes) -> None:
    key = Path(_SCRATCH.name) / "a.pub"
    if not key.exists():
        key.write_bytes((Path(__file__).parents[1] / "data" / "signing" / "keys" / "a.pub").read_bytes())
    parsed = Policy.parse(data, key.with_name("policy.toml"))
    assert parsed.digest


@target
def gguf(data: bytes) -> None:
    header = read_header(_file(data, "fuzzed.gguf"))
    assert header.file_size == len(data)
    assert header.parameters >= 0
    template.problems(header.metadata)


@target
def safetensors(data: bytes) -> None:
    for tensor in read_tensors(_file(data, "fuzzed.safetensors")).values():
        assert 8 <= tensor.offset <= tensor.offset + tensor.size <= len(data)


@target
def challenge(data: bytes) -> None:
    for parsed in parse_challenges([data.decode("latin-1")]):
        assert parsed.scheme == parsed.scheme.lower()


@target
def refusal(data: bytes) -> None:
    status, _, body = data.partition(b"\n")
    number = 400 + int.from_bytes(status[:1], "little") % 200
    parsed = Refusal.parse(number, {"Retry-After": _text(status)}, body)
    assert str(parsed.error("blob")).isprintable()


@target
def model_card(data: bytes) -> None:
    card = parse_model_card(data.decode("utf-8", "replace"))
    assert all(isinstance(base, str) for base in card.base_models)


@target
def smoke_suite(data: bytes) -> None:
    assert suite.load(_file(data, "smoke.toml")).cases


@target
def chat_template(data: bytes) -> None:
    problems = template.lint(data.decode("utf-8", "replace"))
    assert all("\n" not in problem for problem in problems)


@target
def key_file(data: bytes) -> None:
    if not is_private(data):
        PublicKey.load(data)
    elif not is_encrypted(data):  # opening one costs half a second by design
        PrivateKey.load(data)


@target
def encrypted_pkcs8(data: bytes) -> None:
    kdf.check_kdf(data)


@target
def token_uri(data: bytes) -> None:
    assert pkcs11.KeyAddress.parse(_text(data), module="/lib/x.so").module
