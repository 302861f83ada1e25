import pytest

from modelpack.server.errors import RequestRefusedError
from modelpack.server.requests import prepare, wants_usage

KNOWN = ["grammar", "messages", "max_tokens", "model", "n", "prompt", "repeat_penalty", "stream", "temperature"]


def test_what_the_worker_knows_goes_through_and_the_rest_is_named():
    body = {"model": "tiny", "messages": [], "temperature": 0.5, "store": True, "stream_options": {}, "x\r\ny": 1}

    forwarded, ignored = prepare(body, KNOWN)

    assert forwarded == {"model": "tiny", "messages": [], "temperature": 0.5, "repeat_penalty": 1.0}
    assert ignored == ["store"]  # and nothing that could break a header


def test_the_newer_name_of_the_token_limit_is_understood():
    assert prepare({"max_completion_tokens": 5, "max_tokens": 9}, KNOWN)[0]["max_tokens"] == 5


def test_a_repetition_penalty_that_is_asked_for_stays():
    assert prepare({"repeat_penalty": 1.3}, KNOWN)[0]["repeat_penalty"] == 1.3
    assert "repeat_penalty" not in prepare({"input": "x"}, ["input"])[0]


@pytest.mark.parametrize(
    ("body", "parameter"),
    [
        ({"n": 2}, "n"),
        ({"best_of": 3}, "best_of"),
        ({"grammar": "(((("}, "grammar"),  # kills llama.cpp
        ({"grammar": ""}, "grammar"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 5}, "logprobs"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"encoding_format": "hex"}, "encoding_format"),
    ],
)
def test_what_would_be_ignored_in_silence_or_crash_is_refused(body: dict[str, object], parameter: str):
    with pytest.raises(RequestRefusedError) as refused:
        prepare(body, KNOWN)

    assert (refused.value.status, refused.value.param) == (400, parameter)


def test_usage_is_sent_only_when_asked_for():
    assert wants_usage({"stream_options": {"include_usage": True}})
    for body in ({}, {"stream_options": None}, {"stream_options": {"include_usage": "yes"}}, {"stream_options": []}):
        assert not wants_usage(body)
