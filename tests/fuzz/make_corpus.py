"""Makes tests/fuzz/corpus: a few small inputs for each target, most of them valid. Run it by hand; it is repeatable.

``python tests/fuzz/make_corpus.py``; what a fuzzer found is added beside them by hand, named after what it broke.
"""

import gzip
import io
import json
import struct
import sys
import tarfile
import zlib
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from modelpack.oci.digest import Digest  # noqa: E402

DATA = HERE.parent / "data"
SIGNING = DATA / "signing"
D = f"sha256:{'ab' * 32}"


def vector(pattern: str, *, containing: bytes = b"", limit: int = 20_000) -> bytes:
    """The first small file of the vectors by name that holds some bytes."""
    for path in sorted(SIGNING.glob(pattern)):
        content = path.read_bytes()
        if containing in content and len(content) <= limit:
            return content
    raise LookupError(pattern)


def compact(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def gguf(metadata: dict[str, bytes], tensors: bytes = b"", count: int = 0) -> bytes:
    """A GGUF header, version 3; a value is its type (uint32) and its bytes."""

    def string(text: str) -> bytes:
        return struct.pack("<Q", len(text)) + text.encode()

    body = b"".join(string(key) + value for key, value in metadata.items())
    head = b"GGUF" + struct.pack("<IQQ", 3, count, len(metadata)) + body + tensors
    return head + b"\0" * (-len(head) % 32)


def text_value(text: str) -> bytes:
    return struct.pack("<IQ", 8, len(text)) + text.encode()


def safetensors(header: dict[str, object], data: bytes) -> bytes:
    raw = compact(header)
    return struct.pack("<Q", len(raw)) + raw + data


def layer(kind: str, **annotations: str) -> dict[str, object]:
    return {"mediaType": kind, "digest": D, "size": 4, "annotations": annotations}


CNCF_CONFIG = compact({"descriptor": {"name": "m"}, "modelfs": {"type": "layers", "diffIds": [D]}, "config": {}})
CNCF = compact(
    {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": "application/vnd.cncf.model.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.cncf.model.config.v1+json",
            "digest": str(Digest.of(CNCF_CONFIG)),
            "size": len(CNCF_CONFIG),
        },
        "layers": [layer("application/vnd.cncf.model.weight.v1.raw", **{"org.cncf.model.filepath": "m.gguf"})],
        "annotations": {"org.opencontainers.image.created": "2026-01-01T00:00:00Z"},
    }
)
INDEX = compact(
    {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": D, "size": 9}],
        "subject": {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": D, "size": 9},
    }
)
POLICY = b"""version = 1
[default]
action = "deny"
[keys.a]
path = "a.pub"
[[rule]]
match = "registry.example.com/team/**"
signers = ["a"]
threshold = 1
[[revoked]]
digest = "sha256:%s"
""" % (b"ab" * 32)
PBES2 = bytes.fromhex(
    "3081a3305f06092a864886f70d01050d3052303106092a864886f70d01050c302404101bd5ff06c4a5b5d58b7f7d55a0cc1cd80202"
    "0800300c06082a864886f70d02090500301d060960864801650304012a0410ff1d3d2a48b7bfe4b1b4d8c1ee8a2f9b0440"
) + bytes(64)

# Deeper than Python recurses.
NESTED = b"a = " + b"[" * 3000
LOCK = b"""version = 1
[[artifact]]
reference = "registry.example.com/team/model:v1"
digest = "sha256:%s"
size = 1234
signers = []
verified_at = "2026-01-01T00:00:00Z"
""" % (b"ab" * 32)


def tar(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as made:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            made.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def folder_tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as made:
        folder = tarfile.TarInfo("d")
        folder.type = tarfile.DIRTYPE
        made.addfile(folder)
        link = tarfile.TarInfo("l")
        link.type, link.linkname = tarfile.SYMTYPE, "../x"
        made.addfile(link)
    return buffer.getvalue()


def sealed(form: str, *values: object) -> bytes:
    content = struct.pack(form, *values)
    return content + struct.pack("<I", zlib.crc32(content))


def tensor(name: str, size: int, offset: int) -> bytes:
    """The description of a vector in F32."""
    return struct.pack(f"<Q{len(name)}sIQIQ", len(name), name.encode(), 1, size, 0, offset)


NAME = "registry.example.com/team/model:v1"
VERDICT = {
    "reference": NAME,
    "digest": str(Digest.of(b"{}")),
    "verified": True,
    "rule": "registry.example.com/**",
    "policy": D,
    "signers": [{"name": "team", "keyId": "SHA256:x"}],
    "formats": ["bundle"],
    "signedAt": "2026-01-01T00:00:00Z",
    "validUntil": None,
    "checkedAt": "2026-01-02T00:00:00Z",
    "attestations": [{"type": "urn:x", "signers": []}],
    "rejections": [{"where": "referrers", "reason": "none", "foreign": True}],
}
JOURNAL = sealed("<4s32sQI", b"mpj1", bytes.fromhex("ab" * 32), 256, 16)
SHARD = (
    gguf(
        {
            "split.no": struct.pack("<IH", 2, 0),
            "split.count": struct.pack("<IH", 2, 2),
            "split.tensors.count": struct.pack("<Ii", 5, 2),
        },
        tensor("a", 8, 0),
        1,
    )
    + bytes(32)
)  # fmt: skip
TOKENIZER = {
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
    "added_tokens": [{"id": 3, "content": "<s>", "special": True}],
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    "normalizer": None,
}
LAYOUT_INDEX = compact(
    {
        "schemaVersion": 2,
        "manifests": [
            {
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": D,
                "size": 9,
                "annotations": {"org.opencontainers.image.ref.name": "registry.example.com/team/model:v1"},
            }
        ],
    }
)

CORPUS: dict[str, dict[str, bytes]] = {
    "reference": {
        "full": b"registry.example.com:5000/team/model:v1@" + D.encode(),
        "short": b"tiny:v1",
        "hub": b"hf://org/repo@" + b"ab" * 20,
        "layout": b"oci-layout:/tmp/x:v1",
        "file": b"file:model.gguf",
        "ipv6": b"[::1]:5000/a/b",
    },
    "manifest": {"image": CNCF, "index": INDEX, "cosign": vector("cosign2-sign-legacy-a/manifests/*")},
    "layout_index": {"one": LAYOUT_INDEX, "none": b'{"schemaVersion":2,"manifests":[]}'},
    "archive": {
        "oci": tar(
            **{
                "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
                "index.json": LAYOUT_INDEX,
                "blobs/sha256/" + "ab" * 32: b"x",
            }
        ),
        "long-names": tar(
            **{"x" * 200: b"", "oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": LAYOUT_INDEX}
        ),
    },
    "lock_file": {"one": LOCK, "nested": NESTED},
    "model": {
        "cncf": CNCF + b"\0" + CNCF_CONFIG,
        "docker": CNCF.replace(b"vnd.cncf.model.config.v1", b"vnd.docker.ai.model.config.v0.1")
        + b'\0{"config":{"format":"gguf","gguf":{"general.name":"x"},"context_size":4},"descriptor":{}}',
    },
    "bundle": {"cosign3": vector("cosign3-sign-bundle-a/blobs/*", containing=b"dsseEnvelope")},
    "attestation_envelope": {"cosign2": vector("cosign2-attest-*/blobs/*", containing=b"payloadType")},
    "statement": {
        "sign": compact(
            {
                "_type": "https://in-toto.io/Statement/v1",
                "subject": [{"name": "r/m:v1", "digest": {"sha256": "ab" * 32}, "annotations": {"env": "prod"}}],
                "predicateType": "https://sigstore.dev/cosign/sign/v1",
                "predicate": {},
            }
        )
    },
    "simple_signature": {"cosign2": vector("cosign2-sign-legacy-a/blobs/*", containing=b"docker-manifest-digest")},
    "policy": {"full": POLICY, "nested": NESTED},
    "gguf": {
        "empty": gguf({}),
        "text": gguf({"general.architecture": text_value("llama")}),
        "template": gguf({"tokenizer.chat_template": text_value("{{ messages[0].content }}")}),
        "array": gguf({"tokenizer.ggml.scores": struct.pack("<IIQff", 9, 6, 2, 1.0, 2.0)}),
        "tensor": gguf({}, struct.pack("<Q1sIQIQ", 1, b"a", 1, 8, 0, 0), 1) + bytes(32),
    },
    "safetensors": {
        "one": safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
        "two": safetensors(
            {
                "__metadata__": {"format": "pt"},
                "a": {"dtype": "BF16", "shape": [2, 1], "data_offsets": [0, 4]},
                "b": {"dtype": "U8", "shape": [], "data_offsets": [4, 5]},
            },
            bytes(5),
        ),
    },
    "challenge": {
        "bearer": b'Bearer realm="https://auth.example.com/token",service="r",scope="repository:a/b:pull,push"',
        "two": b'Basic realm="x", Bearer realm="y\\"z"',
        "token68": b"Negotiate abc123==, Basic realm=r",
    },
    "refusal": {
        "denied": b'1\n{"errors":[{"code":"DENIED","message":"no","detail":{"x":[1]}}]}',
        "page": b"\x02\n<html>",
    },
    "location": {
        "path": b"/v2/a/tags/list?n=1&last=x",
        "relative": b"../x?y=http://z",
        "same": b"https://registry.example.com:443/v2/x",
        "other": b"https://other.example.com/v2/x",
        "bracket": b"http://[x",  # ValueError from urljoin
    },
    "byte_range": {
        "first": b"\x40bytes=0-9",
        "last": b"\x40bytes=-5",
        "from": b"\x40bytes=9-",
        "beyond": b"\x40bytes=64-",
    },
    "receipt": {
        "verdict": compact({"reference": "registry.example.com/team/model:v1", "locked": False, "verdict": VERDICT}),
        "built": compact({"reference": "tiny:v1", "locked": False, "built": True}),
        "view": compact({"reference": "tiny:v1-slim", "locked": True, "viewOf": f"tiny:v1@{D}"}),
    },
    "memory": {
        "newer": compact({NAME: {"digest": D, "signedAt": "2026-01-01T00:00:00Z"}}),
        "no-digest": compact({NAME: {"signedAt": "2026-01-01T00:00:00Z"}}),  # KeyError
        "unknown": compact({NAME: {"digest": D, "signedAt": None}, "tiny:v1": {}}),
    },
    "journal": {"two": JOURNAL + sealed("<II", 0, 1) + sealed("<II", 15, 2), "cut": JOURNAL + sealed("<II", 3, 4)[:-1]},
    "tar_members": {"files": tar(a=b"1", **{"b/c": b"2" * 600, "x" * 200: b""}), "folder": folder_tar()},
    "compressed": {"gzip": gzip.compress(b"GGUF" * 400, mtime=0), "two": gzip.compress(b"a", mtime=0) * 2},
    "importance_matrix": {
        "legacy": struct.pack("<ii1sii2fi", 1, 1, b"a", 2, 2, 1.0, 2.0, 7) + struct.pack("<i4s", 4, b"text"),
        "gguf": gguf(
            {"general.type": text_value("imatrix"), "imatrix.chunk_count": struct.pack("<II", 4, 7)},
            tensor("a.in_sum2", 2, 0) + tensor("a.counts", 1, 32),
            2,
        )
        + struct.pack("<2f24xf28x", 1.0, 2.0, 3.0),
    },
    "shards": {"first": SHARD, "whole": gguf({"split.count": struct.pack("<IH", 2, 0)})},
    "sentencepiece": {"piece": bytes.fromhex("0a0a0a0161150000803f1801") + bytes.fromhex("1205180120ff01")},
    "tokenizer": {"bpe": compact(TOKENIZER)},
    "model_card": {
        "card": b"---\nlicense: apache-2.0\nbase_model:\n- org/base\ntags: [a, b]\n---\n# Card\n",
        "anchors": b"---\na: &a [x]\nb: *a\nc: {<<: {d: e}}\n---\n",
    },
    "smoke_suite": {"capital": (DATA / "tiny-llama" / "smoke.toml").read_bytes(), "nested": NESTED},
    "chat_template": {
        "chatml": b"{% for m in messages %}{{ '<|im_start|>' + m['role'] }}\n{{ m.content | trim }}{% endfor %}",
        "generation": b"{%- if x is defined %}{% generation %}{{ x }}{% endgeneration %}{% endif -%}",
        "hostile": b"{{ ''.__class__.__mro__ }}{% include 'x' %}{{ x|attr('a') }}",
        "macro": b"{% macro f(a, b=1) %}{% set ns = namespace(x=[1, 2.5, 'a']) %}{% endmacro %}{{ f(1)[::-1] }}",
    },
    "key_file": {
        "public": (SIGNING / "keys" / "a.pub").read_bytes(),
        "rsa": (SIGNING / "keys" / "rsa.pub").read_bytes(),
        "sealed": (SIGNING / "keys" / "a.key").read_bytes(),
    },
    "encrypted_pkcs8": {"pbkdf2": PBES2},
    "token_uri": {"full": b"pkcs11:token=a%20b;object=k;id=%01?module-path=/lib/x.so", "bare": b"pkcs11:"},
}


def main() -> None:
    for name, inputs in CORPUS.items():
        folder = HERE / "corpus" / name
        folder.mkdir(parents=True, exist_ok=True)
        for title, content in inputs.items():
            (folder / title).write_bytes(content)


if __name__ == "__main__":
    main()
