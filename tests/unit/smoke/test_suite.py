from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpack.errors import InvalidInputError, NotFoundError
from modelpack.smoke.suite import Case, Expectation, Suite, default_suite, load, parse

SUITE = """
schema = 1
timeout = "2m"

[[case]]
name = "capital"
messages = [{ role = "user", content = "What is the capital of France?" }]
max_tokens = 16
expect = { icontains = "paris", finish = "stop" }

[[case]]
name = "fox"
prompt = "The quick brown"
"""


def write(directory: Path, text: str | bytes) -> Path:
    path = directory / "smoke.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_suite_is_read_from_toml(tmp_path: Path):
    suite = load(write(tmp_path, SUITE))

    question = {"role": "user", "content": "What is the capital of France?"}
    capital = Case("capital", (question,), None, 16, Expectation(icontains="paris", finish="stop"))
    assert suite == Suite((capital, Case("fox", prompt="The quick brown")), timeout=120.0)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("schema = 1", "schema = 2", "schema"),
        ("max_tokens = 16", "max_token = 16", "max_token"),
        ("icontains", "includes", "includes"),
        ('name = "fox"', 'name = "capital"', "two cases are named 'capital'"),
        ('prompt = "The quick brown"', "", "case[1]"),
        ('prompt = "The', 'messages = []\nprompt = "The', "case[1]"),
        ('icontains = "paris"', 'regex = "("', "not a regular expression"),
        ('timeout = "2m"', 'timeout = "soon"', "timeout"),
        ("max_tokens = 16", "max_tokens = 0", "max_tokens"),
    ],
)
def test_a_malformed_suite_is_refused_with_the_place(tmp_path: Path, old: str, new: str, complaint: str):
    assert old in SUITE

    with pytest.raises(InvalidInputError) as refused:
        load(write(tmp_path, SUITE.replace(old, new, 1)))

    assert complaint in str(refused.value)


@pytest.mark.parametrize("body", [b"\xff", b"= 1", b"x" * (1 << 20) + b"y"], ids=["not UTF-8", "not TOML", "huge"])
def test_what_is_not_a_suite_at_all_is_refused(tmp_path: Path, body: bytes):
    with pytest.raises(InvalidInputError):
        load(write(tmp_path, body))


def test_a_missing_suite_is_not_found(tmp_path: Path):
    with pytest.raises(NotFoundError):
        load(tmp_path / "smoke.toml")


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=10), values, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(["schema", "case", "seed", "timeout", "other"]), _json))
def test_any_document_is_a_suite_or_invalid_input(document: dict[str, object]):
    try:
        suite = parse(document)
    except InvalidInputError:
        return
    assert suite.cases


def test_the_default_suite_asks_for_no_particular_answer():
    for case in default_suite().cases:
        expect = case.expect
        assert (expect.equals, expect.contains, expect.icontains, expect.regex) == (None, None, None, None)
