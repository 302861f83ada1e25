from hypothesis import given
from hypothesis import strategies as st

from modelpack.registry.challenges import Challenge, parse_challenges


def test_a_bearer_challenge_is_read_with_its_quoted_parameters() -> None:
    header = 'Bearer realm="https://auth.example/token",service="reg",scope="repository:a/b:pull,push"'

    assert parse_challenges([header]) == [
        Challenge(
            "bearer",
            {"realm": "https://auth.example/token", "service": "reg", "scope": "repository:a/b:pull,push"},
        )
    ]


def test_several_challenges_in_one_header_are_told_apart() -> None:
    header = 'Negotiate abc==, Basic realm="a, \\"b\\"", Bearer REALM=https://x/y, service=z'

    assert parse_challenges([header]) == [
        Challenge("negotiate", {}),
        Challenge("basic", {"realm": 'a, "b"'}),
        Challenge("bearer", {"realm": "https://x/y", "service": "z"}),
    ]


def test_challenges_in_several_headers_are_all_found() -> None:
    assert [one.scheme for one in parse_challenges(['Basic realm="x"', 'Bearer realm="y"'])] == ["basic", "bearer"]


@given(st.text())
def test_no_header_is_too_odd_to_read(header: str) -> None:
    for challenge in parse_challenges([header]):
        assert challenge.scheme == challenge.scheme.lower()


_VALUES = st.text(st.characters(min_codepoint=32, max_codepoint=126))


@given(st.dictionaries(st.sampled_from(["realm", "service", "scope", "error"]), _VALUES, min_size=1))
def test_what_is_quoted_is_read_back(parameters: dict[str, str]) -> None:
    def quote(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    header = "Bearer " + ", ".join(f"{name}={quote(value)}" for name, value in parameters.items())

    assert parse_challenges([header]) == [Challenge("bearer", parameters)]
