"""Every parser of outside bytes, over its corpus and over mutations of it: the same ones on every machine."""

import random
import time
from pathlib import Path

import pytest
from fuzz.targets import TARGETS, run

CORPUS = Path(__file__).parent / "corpus"
MUTATIONS = 400
SECONDS = 2.0
"""For one input of a few KiB, on a busy machine."""

_TOKENS = (
    *(
        b'"',
        b"\\",
        b"{",
        b"}",
        b"[",
        b"]",
        b":",
        b",",
        b"\0",
        b"\n",
        b"\xff\xfe",
        b"../",
        b"%",
        b"{{",
        b"}}",
        b"{%",
        b"'",
    ),
    *(
        b"null",
        b"-1",
        b"1e999",
        b"NaN",
        b"9" * 5000,
        b"[" * 200,
        b'{"a":' * 100,
        b"sha256:",
        b"\xe2\x80\xae",
        b"__class__",
    ),
    *(number.to_bytes(8, "little") for number in (0, 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1)),
)


def mutate(data: bytes, chance: random.Random) -> bytes:
    content = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        start = chance.randrange(len(content) + 1)
        end = min(len(content), start + chance.choice((1, 2, 4, 8, 64)))
        match chance.randrange(6):
            case 0 if content:
                content[start % len(content)] ^= 1 << chance.randrange(8)
            case 1:
                del content[start:end]
            case 2:
                content[start:start] = chance.choice(_TOKENS)
            case 3:
                content[start:end] = chance.choice(_TOKENS)
            case 4:
                content[start:start] = content[chance.randrange(len(content) + 1) :][:256]
            case _:
                del content[start:]
    return bytes(content)


def corpus(name: str) -> list[Path]:
    return sorted((CORPUS / name).iterdir())


def test_every_target_has_a_corpus_and_every_corpus_a_target():
    assert sorted(path.name for path in CORPUS.iterdir()) == sorted(TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_a_parser_accepts_the_sound_part_of_its_corpus(name):
    assert any(run(name, path.read_bytes()) for path in corpus(name))


@pytest.mark.parametrize("name", TARGETS)
def test_a_parser_turns_mutations_away_with_our_errors_only_and_in_time(name):
    # A seed of its own for each target, and none of the interpreter's: a failure comes back when the test is run again.
    chance = random.Random(name)
    originals = [path.read_bytes() for path in corpus(name)]
    for _ in range(MUTATIONS):
        data = mutate(chance.choice(originals), chance)
        began = time.monotonic()
        try:
            run(name, data)
        except Exception as error:
            pytest.fail(f"{name} raised {type(error).__name__}: {error} for {data[:2000]!r}")
        assert time.monotonic() - began < SECONDS, f"{name} took too long for {data[:2000]!r}"
