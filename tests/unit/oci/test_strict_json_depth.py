"""How deep a JSON document is, found out fast: the same answer as a parser gives, whatever its strings hold."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpack.errors import InvalidContentError
from modelpack.oci import strict_json

tricky = st.text('[]{}"\\ab\n\u00e9', max_size=6)
documents = st.recursive(
    tricky | st.integers() | st.none(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(tricky, inner, max_size=4),
    max_leaves=60,
)


def depth(value: Any) -> int:
    if not isinstance(value, (dict, list)):
        return 0
    return 1 + max(map(depth, value.values() if isinstance(value, dict) else value), default=0)


@given(documents, st.integers(1, 8), st.booleans())
def test_documents_up_to_a_depth_are_parsed_and_deeper_ones_refused(value: Any, most: int, is_ascii: bool) -> None:
    raw = json.dumps({"value": value}, ensure_ascii=is_ascii).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strict_json, "MAX_DEPTH", most)
        if depth({"value": value}) <= most:
            assert strict_json.parse_object(raw, what="it") == {"value": value}
        else:
            with pytest.raises(InvalidContentError, match="nested deeper"):
                strict_json.parse_object(raw, what="it")


@pytest.mark.parametrize("deep", [b"[" * 100_000, b"[{" * 50_000, b'{"a":' * 100_000])
def test_deep_documents_are_refused_before_a_parser_sees_them(deep: bytes) -> None:
    with pytest.raises(InvalidContentError, match="nested deeper"):
        strict_json.parse_object(deep, what="it")
