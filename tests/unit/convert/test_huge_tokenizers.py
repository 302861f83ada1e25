"""Tokenizer files in which one thing is huge, or slow: refused before anything grows with it."""

import base64
import io
import json
import resource
import time
from pathlib import Path
from typing import Any

import pytest
from fakes.tokenizers import byte_level, split, trained
from sentencepiece import SentencePieceTrainer

from modelpack.convert import Checkpoint, bounded_tokenizer, parity
from modelpack.convert.bounded_tokenizer import BoundedTokenizer
from modelpack.convert.model_card import parse_model_card
from modelpack.convert.tokenizer import byte_level_bpe, sentencepiece
from modelpack.errors import InvalidCheckpointError

HUGE = "x" * (50 << 20)

Json = dict[str, Any]


@pytest.fixture(scope="module")
def gpt2_like() -> Json:
    return trained(byte_level(use_regex=True))


def refused(document: Json, match: str) -> None:
    content = json.dumps(document).encode()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()

    with pytest.raises(InvalidCheckpointError, match=match):
        BoundedTokenizer(content)

    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 << 10  # KiB
    assert time.monotonic() - started < 20


def with_model(document: Json, **changes: object) -> Json:
    return {**document, "model": {**document["model"], **changes}}


def added(content: str, **flags: object) -> Json:
    usual = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": 0, "content": content, **usual, **flags}


def test_a_huge_token_is_refused(gpt2_like: Json) -> None:
    document = with_model(gpt2_like, vocab={**gpt2_like["model"]["vocab"], HUGE: 9999})

    refused(document, r"tokenizer\.json has a token of 52428800 characters")


def test_a_huge_merge_is_refused_with_the_token_that_it_makes(gpt2_like: Json) -> None:
    vocabulary = {**gpt2_like["model"]["vocab"], HUGE: 9998, HUGE + "x": 9999}
    merges = [*gpt2_like["model"]["merges"], [HUGE, "x"]]

    refused(with_model(gpt2_like, vocab=vocabulary, merges=merges), "has a token of 52428801 characters")


def test_a_huge_merge_without_its_token_is_refused(gpt2_like: Json) -> None:
    refused(with_model(gpt2_like, merges=[*gpt2_like["model"]["merges"], [HUGE, HUGE]]), "cannot be loaded|characters")


@pytest.mark.parametrize("name", ["continuing_subword_prefix", "end_of_word_suffix"])
def test_what_is_put_beside_every_character_may_not_be_huge(gpt2_like: Json, name: str) -> None:
    refused(with_model(gpt2_like, **{name: HUGE}), f"{name} has more than 64 characters")


def test_a_huge_added_token_is_refused(gpt2_like: Json) -> None:
    refused({**gpt2_like, "added_tokens": [added(HUGE)]}, "an added token of more than 1024 characters")


def test_too_many_added_tokens_are_refused(gpt2_like: Json, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_tokenizer, "MAX_ADDED_TOKENS", 10)

    refused({**gpt2_like, "added_tokens": [added(f"<{number}>") for number in range(11)]}, "more than 10 added tokens")


def test_added_tokens_that_are_normalized_slowly_are_refused_before_they_are(gpt2_like: Json) -> None:
    normalizer = {"type": "Replace", "pattern": {"Regex": "(a|aa)+$"}, "content": ""}
    tokens = [added("a" * 30 + str(number), normalized=True) for number in range(100)]

    refused({**gpt2_like, "normalizer": normalizer, "added_tokens": tokens}, "characters of added tokens to normalize")


def test_a_unigram_piece_that_is_huge_is_refused(gpt2_like: Json) -> None:
    model = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], [HUGE, -1.0]], "byte_fallback": False}

    refused({**gpt2_like, "model": model}, "has a token of 52428800 characters")


def test_a_post_processor_that_multiplies_is_refused(gpt2_like: Json) -> None:
    special = {"[X]": {"id": "[X]", "ids": [0] * 10_000, "tokens": ["a"] * 10_000}}
    part = {"SpecialToken": {"id": "[X]", "type_id": 0}}
    whole = {"Sequence": {"id": "A", "type_id": 0}}
    template = {
        "type": "TemplateProcessing",
        "single": [whole, *[part] * 10_000],
        "pair": [],
        "special_tokens": special,
    }

    refused({**gpt2_like, "post_processor": template}, "adds more than 1024 tokens to every text")
    refused({**gpt2_like, "post_processor": {"type": "Sequence", "processors": [template]}}, "adds more than 1024")


def test_more_steps_than_any_tokenizer_has_are_refused(gpt2_like: Json) -> None:
    steps = {"type": "Sequence", "pretokenizers": [split("x")] * 100}

    refused({**gpt2_like, "pre_tokenizer": steps}, "pre_tokenizer has more than 64 steps")


def test_an_absurd_charsmap_is_refused_before_it_is_unpacked(gpt2_like: Json) -> None:
    charsmap = base64.b64encode(bytes(20 << 20)).decode()

    refused(
        {**gpt2_like, "normalizer": {"type": "Precompiled", "precompiled_charsmap": charsmap}}, "larger than 16 MiB"
    )


@pytest.mark.parametrize(
    "decoder",
    [
        {"type": "Strip", "content": "a", "start": 1 << 40, "stop": 1 << 40},
        {"type": "Replace", "pattern": {"Regex": "(?:a|aa)+$x"}, "content": ""},
    ],
)
def test_a_decoder_that_never_ends_is_refused_or_ends(tmp_path: Path, gpt2_like: Json, decoder: Json) -> None:
    started = time.monotonic()
    document = {**gpt2_like, "decoder": decoder, "added_tokens": [added("a" * 60)]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))

    with pytest.raises(InvalidCheckpointError, match=r"cannot be loaded"):
        byte_level_bpe(Checkpoint(tmp_path, {}, {}, parse_model_card("")), None)

    assert time.monotonic() - started < 20


@pytest.mark.parametrize("texts", [["a" * 64] * 1000, ["a" * 2000]], ids=["many-texts", "inside-one-text"])
def test_a_regular_expression_that_is_slow_at_every_place_runs_out_of_time(
    gpt2_like: Json, monkeypatch: pytest.MonkeyPatch, texts: list[str]
) -> None:
    monkeypatch.setattr(bounded_tokenizer, "MAX_SECONDS", 1)
    slow = split("(?=(a|aa){1,18}c)")  # below the limit of ten million steps at each place
    tokenizer = BoundedTokenizer(json.dumps({**gpt2_like, "pre_tokenizer": slow}).encode())
    started = time.monotonic()

    with pytest.raises(InvalidCheckpointError, match=r"takes more than 1 s for a few hundred texts"):
        tokenizer.encode(texts)

    assert time.monotonic() - started < 10


def test_a_tokenizer_that_wants_more_memory_than_any_ends_its_own_process(
    gpt2_like: Json, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_tokenizer, "MEMORY_LIMIT", 128 << 20)
    vocabulary = {**gpt2_like["model"]["vocab"], **{f"{number:064}": 1000 + number for number in range(1 << 20)}}
    document = with_model(gpt2_like, vocab=vocabulary)

    with pytest.raises(
        InvalidCheckpointError, match=r"cannot be loaded: (tokenizers, which may own .* by SIGABRT|.*memory)"
    ):
        BoundedTokenizer(json.dumps(document).encode(), document)


def test_the_process_of_a_tokenizer_ends_with_it(gpt2_like: Json) -> None:
    tokenizer = BoundedTokenizer(json.dumps(gpt2_like).encode())
    child = tokenizer._child
    assert child.poll() is None

    del tokenizer

    assert child.poll() is not None


def sentencepiece_model() -> bytes:
    content = io.BytesIO()
    texts = [text for text in parity.texts() if text.isascii()]
    SentencePieceTrainer.Train(
        sentence_iterator=iter(texts), model_writer=content, model_type="bpe", vocab_size=300, minloglevel=2
    )
    return content.getvalue()


def field(number: int, content: bytes) -> bytes:
    """Of a protocol buffer; one that is there already goes on where it ended."""
    length, encoded = len(content), bytearray([number << 3 | 2])
    while length > 0x7F:
        encoded.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([*encoded, length]) + content


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (field(1, field(1, b"x" * (40 << 20))), "a piece of more than 32768 bytes"),
        (field(3, field(2, bytes(20 << 20))), r"charsmap of tokenizer\.model is larger than 16 MiB"),
        (field(3, field(2, bytes(4) + b"y" * 1000)), "may make more than 256 bytes of one"),
        (field(3, field(2, bytes(4) + b"y" * 1000)) + field(3, b""), "may make more than 256 bytes of one"),
    ],
    ids=["piece", "charsmap", "replacement", "replacement-in-the-first-of-two"],
)
def test_a_sentencepiece_model_with_something_huge_is_refused(tmp_path: Path, more: bytes, reason: str) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model() + more)

    with pytest.raises(InvalidCheckpointError, match=reason):
        sentencepiece(Checkpoint(tmp_path, {}, {}, parse_model_card("")), None)
