"""References: what users type, and what must never be guessed."""

import pytest

from modelpack.errors import MalformedReferenceError
from modelpack.oci.digest import Digest
from modelpack.oci.reference import FileReference, HubReference, LayoutReference, Reference, parse_location

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "registry", "repository", "tag", "digest"),
    [
        ("registry.acme.dev/models/support:1.4.0", "registry.acme.dev", "models/support", "1.4.0", None),
        ("oci://ghcr.io/a/b", "ghcr.io", "a/b", None, None),
        ("localhost/a:1", "localhost", "a", "1", None),
        ("localhost:5000/a/b:c", "localhost:5000", "a/b", "c", None),
        ("[::1]:5000/a", "[::1]:5000", "a", None, None),
        ("127.0.0.1:5000/a:v1@" + DIGEST, "127.0.0.1:5000", "a", "v1", DIGEST),
        ("tiny:v1", None, "tiny", "v1", None),
        ("team/tiny", None, "team/tiny", None, None),
    ],
)
def test_a_reference_is_read_into_its_parts_and_written_back(text, registry, repository, tag, digest):
    reference = Reference.parse(text)

    assert (reference.registry, reference.repository, reference.tag) == (registry, repository, tag)
    assert reference.digest == (Digest(digest) if digest else None)
    assert str(reference) == text.removeprefix("oci://")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "reg.io/a:b:c",
        "reg.io/a/..",
        "reg.io/../a",
        "reg.io/a@sha256:zz",
        "reg.io/a@md5:" + "0" * 32,
        "Reg/UPPER",
        "reg.io/Model:v1",
        "https://reg.io/a",
        "reg.io/a:" + "t" * 129,
        "reg.io/" + "a" * 300,
        "reg.io/a b",
        "reg.io/a:v1\n",
        "user@reg.io/a",
    ],
)
def test_what_is_not_a_reference_is_an_error_and_never_another_reference(text):
    with pytest.raises(MalformedReferenceError):
        Reference.parse(text)


def test_upper_case_is_named_as_the_reason():
    with pytest.raises(MalformedReferenceError, match="lower case"):
        Reference.parse("reg.io/Model")


def test_a_digest_wins_over_a_tag():
    assert Reference.parse(f"reg.io/a:v1@{DIGEST}").selector == DIGEST
    assert Reference.parse("reg.io/a:v1").selector == "v1"
    assert Reference.parse("reg.io/a").selector == "latest"


def test_every_kind_of_place_has_its_spelling(tmp_path):
    assert parse_location("hf://org/repo@v1.0") == HubReference("org/repo", "v1.0")
    assert parse_location("hf://org/repo") == HubReference("org/repo", "main")
    assert parse_location(f"oci-layout:{tmp_path}:v1") == LayoutReference(tmp_path, "v1")
    assert parse_location(f"oci-layout:{tmp_path}") == LayoutReference(tmp_path)
    assert parse_location(f"file:{tmp_path}/m.gguf") == FileReference(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    "text", ["hf://org", "hf://org/repo/x", "hf://org/repo@../../etc", "hf://../repo", "hf://a/b@"]
)
def test_malformed_hub_references_are_refused(text):
    with pytest.raises(MalformedReferenceError):
        parse_location(text)
