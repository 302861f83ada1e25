"""JSON from strangers: what two readers could read differently is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpack.errors import InvalidContentError
from modelpack.oci import strict_json


@pytest.mark.parametrize(
    "raw",
    [rb'{"a":"\ud800"}', rb'{"a\uDFFF":1}', rb'{"a":[{"b":"x\udc00\ud800"}]}', rb'{"\ud800":1,"\ud801":2}'],
)
def test_half_of_a_character_is_refused(raw):
    with pytest.raises(InvalidContentError, match="half of a character"):
        strict_json.parse_object(raw, what="manifest")


def test_both_halves_are_a_character_and_a_backslash_is_none():
    assert strict_json.parse_object(rb'{"a":"\ud83d\ude00","b":"\\ud800"}', what="x") == {
        "a": "\U0001f600",
        "b": r"\ud800",
    }


@given(st.recursive(st.none() | st.booleans() | st.text(), lambda inner: st.dictionaries(st.text(), inner)))
def test_what_was_read_can_be_written_again(value):
    document = {"value": value}
    assert strict_json.parse_object(strict_json.canonical(document), what="x") == document
