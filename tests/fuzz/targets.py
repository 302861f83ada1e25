"""What is fuzzed: every parser of bytes that come from outside.

A target takes any bytes. It may turn them away with one of our errors, and nothing else; where it accepts them it also
holds a property that must be true of whatever was accepted.
"""

import functools
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from modelpack import compression, tar, template
from modelpack.archive import Archive
from modelpack.convert import protobuf, vocabulary
from modelpack.convert.bounded_tokenizer import check_growth, check_sizes
from modelpack.convert.model_card import parse_model_card
from modelpack.convert.safetensors import read_tensors
from modelpack.convert.splitting import name_by_rule
from modelpack.embedded_registry.errors import RefusedError
from modelpack.embedded_registry.requests import parse_range
from modelpack.errors import InvalidContentError, ModelpackError
from modelpack.formats import CODECS
from modelpack.gguf_header import read_header
from modelpack.gguf_shards import read_headers, shard_name
from modelpack.imatrix import ImportanceMatrix
from modelpack.lockfile import Lock
from modelpack.oci import strict_json
from modelpack.oci.digest import Digest
from modelpack.oci.manifest import IMAGE_MANIFEST, Descriptor, Manifest
from modelpack.oci.reference import Reference, parse_location
from modelpack.policy import Policy
from modelpack.receipt import read_receipt
from modelpack.registry.address import Origin, stay_at
from modelpack.registry.challenges import parse_challenges
from modelpack.registry.refusal import Refusal
from modelpack.rollback import remember, require_no_rollback
from modelpack.signing import envelope, kdf, pkcs11, simple_signing
from modelpack.signing.keys import PrivateKey, PublicKey, is_encrypted, is_private
from modelpack.smoke import suite
from modelpack.store import Store
from modelpack.store.index import Index
from modelpack.store.journal import Journal
from modelpack.trust import Signer, Verdict

Target = Callable[[bytes], None]

TARGETS: dict[str, Target] = {}
_NOW = datetime(2026, 11, 22, tzinfo=UTC)
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


@functools.cache
def _store() -> Store:
    return Store.open(Path(_SCRATCH.name) / "store")


@target
def reference(data: bytes) -> None:
    place = parse_location(_text(data))
    if isinstance(place, Reference):
        assert Reference.parse(str(place)) == place
        assert ".." not in place.name.split("/")
        assert Reference.parse(place.plain_name).plain_name == place.plain_name


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
def location(data: bytes) -> None:
    """Where a registry continues a list, an upload or a download."""
    here = Origin.of("https://registry.example.com")
    there = stay_at(here, "https://registry.example.com/v2/a/tags/list?n=1", data.decode("latin-1"))
    assert there is None or Origin.of(there) == here


@target
def byte_range(data: bytes) -> None:
    """What a client of the registry that comes with modelpack wants of a blob; the first byte is its size."""
    size = data[0] if data else 0
    try:
        wanted = parse_range(data[1:].decode("latin-1"), size)
    except RefusedError:
        return
    if wanted:
        assert 0 <= wanted[0] < wanted[1] <= size


@target
def receipt(data: bytes) -> None:
    """What lies in the store beside an artifact; whatever it is, it is a receipt or none."""
    store = _store()
    subject = Descriptor.of(b"{}", IMAGE_MANIFEST)
    (store.note_folders[0] / f"{subject.digest.hex}.json").write_bytes(data)
    found = read_receipt(store, subject)
    if found is None:
        raise InvalidContentError("no receipt")
    assert found.verdict is None or Verdict.from_json(found.verdict.to_json()).digest == subject.digest
    require_no_rollback(store, found.reference, found.verdict or Verdict.skipped(found.reference, subject, now=_NOW))


@target
def memory(data: bytes) -> None:
    """What the store remembers of tags."""
    store = _store()
    (store.root / "memory.json").write_bytes(data)
    reference = Reference.parse("registry.example.com/team/model:v1")
    verdict = Verdict(str(reference), Digest.of(b""), "r", None, _NOW, signers=(Signer("a", "SHA256:"),))
    require_no_rollback(store, reference, verdict)
    remember(store, reference, verdict)


@target
def journal(data: bytes) -> None:
    """What an interrupted pull left of a blob of 256 bytes in segments of 16."""
    path = _file(data, "journal")
    opened = Journal(path, Descriptor("application/octet-stream", Digest("sha256:" + "ab" * 32), 256), segment_size=16)
    try:
        assert 0 <= opened.frontier() <= opened.size
        assert all(0 <= opened.length(segment) <= 16 for segment in opened.missing())
        for segment in opened.checksums:
            opened.bounds(segment)
        is_kept = not opened.is_new
    finally:
        opened.close()
    if not is_kept:
        raise InvalidContentError("begun anew")


@target
def tar_members(data: bytes) -> None:
    stream = tar.ChunkStream(iter([data]))
    for member in tar.read_members(stream):
        assert member.name or member.kind is not tar.Kind.FILE
        assert ".." not in member.name.split("/")
        for _ in tar.content(stream, member) if member.kind is tar.Kind.FILE else ():
            pass


@target
def compressed(data: bytes) -> None:
    assert sum(map(len, compression.decompressed(iter([data]), "gzip", limit=1 << 20))) <= 1 << 20


@target
def importance_matrix(data: bytes) -> None:
    matrix = ImportanceMatrix.load(_file(data, "imatrix.gguf"))
    for entry in matrix.entries.values():
        assert len(entry.importance) == entry.sums.size


@target
def shards(data: bytes) -> None:
    """The first shard; the same bytes with the next number and its tensor ``a`` called ``b`` are the second."""
    first = _file(data, shard_name("fuzzed", 1, 2))
    second = data.replace(b"split.no\x02\0\0\0\0", b"split.no\x02\0\0\0\1", 1)
    _file(second.replace(b"\1\0\0\0\0\0\0\0a", b"\1\0\0\0\0\0\0\0b", 1), shard_name("fuzzed", 2, 2))
    assert 1 <= len(read_headers(first)) <= 2


@target
def sentencepiece(data: bytes) -> None:
    """tokenizer.model as far as it is read without the library; ValueError is how that reader says no."""
    try:
        for _number, value in protobuf.parse(data):
            assert isinstance(value, (int, bytes))
    except ValueError as error:
        raise InvalidContentError(str(error)) from error


@target
def tokenizer(data: bytes) -> None:
    """tokenizer.json, as far as it is read without the library."""
    document = strict_json.parse_object(data, what="tokenizer.json")
    entries = vocabulary.token_ids(vocabulary.as_dict(document.get("model")))
    assert vocabulary.vocabulary_size(document, entries) > 0
    vocabulary.read_merges(vocabulary.as_dict(document.get("model")))
    vocabulary.prepends_space(document)
    check_sizes(document)
    check_growth(document)
    name_by_rule(document)


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
