"""Texts that a model is run on: named by a person, and never waited for."""

import os

import pytest

from modelpack.engine.task import read_text
from modelpack.errors import InvalidInputError


def test_a_text_is_a_file_in_utf_8_of_no_more_than_the_limit(tmp_path):
    text = tmp_path / "text"
    text.write_text("Grüße", encoding="utf-8")
    assert read_text(text) == "Grüße"

    (tmp_path / "latin").write_bytes("Grüße".encode("latin-1"))
    os.mkfifo(tmp_path / "fifo")
    for path, said in ((text, "longer than 3 bytes"), (tmp_path / "latin", "longer"), (tmp_path / "none", "no file")):
        with pytest.raises(InvalidInputError, match=said):
            read_text(path, limit=3)
    with pytest.raises(InvalidInputError, match="not text in UTF-8"):
        read_text(tmp_path / "latin")
    with pytest.raises(InvalidInputError, match="it is a pipe"):
        read_text(tmp_path / "fifo")
