"""Bundles, statements and payloads: what is read, what is refused, and that nothing else ever happens."""

import base64
import copy
import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpack.errors import InvalidContentError, UnsupportedError
from modelpack.oci.digest import Digest
from modelpack.signing.envelope import (
    Bundle,
    Envelope,
    Statement,
    Subject,
    pre_authentication_encoding,
    statement,
)
from modelpack.signing.simple_signing import Payload
from modelpack.signing.strict_base64 import decode_base64

DIGEST = Digest.of(b"artifact")

BUNDLE = {
    "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
    "verificationMaterial": {"publicKey": {"hint": "aGludA=="}},
    "dsseEnvelope": {
        "payload": base64.b64encode(b"{}").decode(),
        "payloadType": "application/vnd.in-toto+json",
        "signatures": [{"sig": "c2ln"}],
    },
}

STATEMENT = {
    "_type": "https://in-toto.io/Statement/v1",
    "subject": [{"digest": {"sha256": DIGEST.hex}, "annotations": {}}],
    "predicateType": "https://sigstore.dev/cosign/sign/v1",
    "predicate": {},
}

PAYLOAD = {
    "critical": {
        "identity": {"docker-reference": "host/repo:v1"},
        "image": {"docker-manifest-digest": str(DIGEST)},
        "type": "cosign container image signature",
    },
    "optional": None,
}


def changed(document, path, value):
    """A copy of the document with one place replaced; the value DELETE removes it."""
    result = copy.deepcopy(document)
    place = result
    for step in path[:-1]:
        place = place[step]
    if value is DELETE:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return json.dumps(result).encode()


DELETE = object()


def test_the_example_of_the_dsse_specification_is_encoded_as_it_says():
    assert (
        pre_authentication_encoding("http://example.com/HelloWorld", b"hello world")
        == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_the_documents_that_the_refusals_start_from_are_accepted():
    assert Bundle.parse(json.dumps(BUNDLE).encode()).hint == "aGludA=="
    assert Statement.parse(json.dumps(STATEMENT).encode()).subjects[0].digests == {"sha256": DIGEST.hex}
    assert Payload.parse(json.dumps(PAYLOAD).encode()).digest == DIGEST


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["dsseEnvelope", "signatures"], []),
        (["dsseEnvelope", "signatures"], [{"sig": "c2ln"}, {"sig": "c2ln"}]),
        (["dsseEnvelope", "signatures"], ["c2ln"]),
        (["dsseEnvelope", "signatures"], None),
        (["dsseEnvelope", "signatures", 0, "keyid"], "another"),
        (["dsseEnvelope", "signatures", 0, "sig"], "c2l"),
        (["dsseEnvelope", "signatures", 0, "sig"], "c2ln\n"),
        (["dsseEnvelope", "signatures", 0, "sig"], "c2lo="),
        (["dsseEnvelope", "payload"], 5),
        (["dsseEnvelope", "Payload"], "e30="),
        (["dsseEnvelope"], DELETE),
        (["dsse_envelope"], {}),
        (["verificationMaterial"], DELETE),
        (["verificationMaterial", "publicKey"], DELETE),
        (["verificationMaterial", "certificate"], {"rawBytes": "AA=="}),
        (["verificationMaterial", "publicKey", "hint"], 7),
    ],
)
def test_a_broken_bundle_is_refused(path, value):
    with pytest.raises(InvalidContentError):
        Bundle.parse(changed(BUNDLE, path, value))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["mediaType"], "application/vnd.dev.sigstore.bundle.v0.1+json"),
        (["verificationMaterial"], {"x509CertificateChain": {"certificates": []}}),
        (["dsseEnvelope", "payloadType"], "text/plain"),
        (["messageSignature"], {}),
    ],
)
def test_a_bundle_of_another_kind_is_named_as_unsupported(path, value):
    with pytest.raises(UnsupportedError):
        Bundle.parse(changed(BUNDLE, path, value))


def test_a_keyid_that_agrees_with_the_hint_is_accepted():
    Bundle.parse(changed(BUNDLE, ["dsseEnvelope", "signatures", 0, "keyid"], "aGludA=="))


def test_both_spellings_of_the_bundle_type_are_accepted():
    Bundle.parse(changed(BUNDLE, ["mediaType"], "application/vnd.dev.sigstore.bundle+json;version=0.3"))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["_type"], "https://in-toto.io/Statement/v2"),
        (["subject"], []),
        (["subject"], [{"digest": {"sha256": DIGEST.hex}}] * 1001),
        (["subject", 0], "sha256"),
        (["subject", 0, "digest"], {"sha256": 5}),
        (["subject", 0, "annotations"], ["a"]),
        (["subject", 0, "annotations"], {"dev.modelpack.expires": 1}),
        (["subject", 0, "annotations"], {"org.opencontainers.image.ref.name": ["a"]}),
        (["subject", 0, "name"], []),
        (["predicateType"], DELETE),
        (["predicate"], []),
        (["Subject"], []),
        (["subject", 0, "Digest"], {}),
        (["subject", 0, "digest", "SHA256"], "00"),
        (["\u017fubject"], []),
    ],
)
def test_a_broken_statement_is_refused(path, value):
    with pytest.raises(InvalidContentError):
        Statement.parse(changed(STATEMENT, path, value))


def test_annotations_of_a_subject_may_be_anything_and_those_that_are_text_are_read():
    annotations = {"a": "b", "count": 3, "nested": {"dev.modelpack.expires": 1}, "org.example": None}
    statement = Statement.parse(changed(STATEMENT, ["subject", 0, "annotations"], annotations))

    assert dict(statement.subjects[0].annotations) == {"a": "b"}


def test_an_unknown_field_of_a_statement_is_ignored_as_in_toto_asks():
    Statement.parse(changed(STATEMENT, ["extension"], {"x": 1}))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["critical", "type"], "atomic container signature"),
        (["critical", "type"], DELETE),
        (["critical", "image"], {"Docker-manifest-digest": str(DIGEST)}),
        (["critical", "image", "docker-manifest-digest"], "sha256:0"),
        (["critical", "image", "docker-manifest-digest"], 5),
        (["critical", "identity", "also"], ""),
        (["critical", "identity"], []),
        (["critical", "also"], {}),
        (["critical"], None),
        (["also"], {}),
        (["optional"], []),
        (["optional"], {"dev.modelpack.expires": 1795424616}),
        (["optional"], {"dev.modelpack.signed-at": None}),
    ],
)
def test_a_broken_payload_is_refused(path, value):
    with pytest.raises(InvalidContentError):
        Payload.parse(changed(PAYLOAD, path, value))


def test_attack_7_a_repeated_key_is_refused_in_every_document():
    for document, parse in ((BUNDLE, Bundle.parse), (STATEMENT, Statement.parse), (PAYLOAD, Payload.parse)):
        raw = json.dumps(document)
        name = json.dumps(next(iter(document)))
        with pytest.raises(InvalidContentError, match="repeats a key"):
            parse(f"{raw[:-1]},{name}:null}}".encode())


def test_attack_6_a_bundle_beyond_the_limit_is_refused_unread():
    with pytest.raises(InvalidContentError, match="more than"):
        Bundle.parse(b" " * ((4 << 20) + 1))


def test_attack_6_deep_nesting_is_refused():
    deep = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    for parse in (Bundle.parse, Statement.parse, Payload.parse):
        with pytest.raises(InvalidContentError, match="nested deeper"):
            parse(deep)


@given(content=st.binary(max_size=200))
def test_base64_has_one_spelling(content):
    text = base64.b64encode(content)

    assert decode_base64(text.decode(), what="x") == content
    for other in (text + b"\n", b" " + text, text.rstrip(b"=") + b"====="):
        with pytest.raises(InvalidContentError):
            decode_base64(other, what="x")


texts = st.text(max_size=40)


@given(payload=st.binary(max_size=300), signature=st.binary(min_size=1, max_size=80), hint=texts)
def test_a_bundle_comes_back_as_it_was_written(payload, signature, hint):
    bundle = Bundle(Envelope(payload, signature), hint)

    assert Bundle.parse(bundle.to_bytes()) == bundle


@given(name=st.none() | st.text(min_size=1, max_size=40), annotations=st.dictionaries(texts, texts, max_size=4))
def test_a_statement_comes_back_as_it_was_written(name, annotations):
    subject = Subject({"sha256": DIGEST.hex}, name, annotations)

    parsed = Statement.parse(statement([subject], "https://example.com/predicate", {"a": 1}))

    assert parsed.subjects == (subject,)
    assert (parsed.predicate_type, parsed.predicate) == ("https://example.com/predicate", {"a": 1})


@given(reference=texts, annotations=st.dictionaries(texts, texts, max_size=4))
def test_a_payload_comes_back_as_it_was_written(reference, annotations):
    payload = Payload(reference, DIGEST, annotations)

    assert Payload.parse(payload.to_bytes()) == payload


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(texts, children, max_size=3),
    max_leaves=8,
)


def places(document, path=()):
    """Every place in a document, as a path."""
    found = [list(path)] if path else []
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in items:
        found += places(value, (*path, key))
    return found


@given(data=st.data(), value=json_values)
def test_a_document_with_anything_anywhere_is_read_or_refused_and_never_crashes(data, value):
    for document, parse in ((BUNDLE, Bundle.parse), (STATEMENT, Statement.parse), (PAYLOAD, Payload.parse)):
        path = data.draw(st.sampled_from(places(document)))
        with suppress(InvalidContentError, UnsupportedError):
            parse(changed(document, path, value))


@given(raw=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_and_never_crash(raw):
    for parse in (Bundle.parse, Statement.parse, Payload.parse):
        with suppress(InvalidContentError, UnsupportedError):
            parse(raw)
