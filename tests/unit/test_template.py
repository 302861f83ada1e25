"""The lint of chat templates: what passes, what does not, and that no text keeps it busy."""

import hashlib
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelpack.template import DIGEST_ANNOTATION, MAX_TEMPLATE_SIZE, annotations, difference, lint, problems

CHATML = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m.content | trim }}<|im_end|>{% endfor %}"


def test_the_template_of_a_real_model_passes(tiny_checkpoint):
    assert lint(json.loads((tiny_checkpoint / "tokenizer_config.json").read_text())["chat_template"]) == []


@pytest.mark.parametrize(
    "template",
    [
        CHATML,
        "{% set ns = namespace(x=0) %}{% macro f(a) %}{{ a | tojson }}{% endmacro %}{{ raise_exception('no') }}",
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{% break %}{% endfor %}",
        "{% generation %}{{ message.content }}{% endgeneration %}",
        "{{ '<|__start__|>' }}{{ m['tool__name'] }} __init__ in prose",
        "{{ strftime_now('%d %b %Y') }}{{ messages[::-1] | selectattr('role', 'equalto', 'user') | list }}",
    ],
)
def test_what_published_templates_do_passes(template):
    assert lint(template) == []


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ ''.__class__ }}", "reads the attribute '__class__'"),
        ("{{ ''['__class__'] }}", "holds the text '__class__'"),
        (r"{{ ''['\x5f\x5fclass\x5f\x5f'] }}", "holds the text '__class__'"),
        ("{{ x | attr('a') }}", "filter 'attr'"),
        ("{{ x | map(attribute='a.__globals__') }}", "holds the text '.__globals__'"),
        ("{{ '{0.__class__}'.format(x) }}", "holds the text '.__class__'"),
        ("{{ __builtins__ }}", "uses the name '__builtins__'"),
        ("{% include 'x' %}", "asks for another template"),
        ("{% import 'x' as y %}", "asks for another template"),
        ("{% from 'x' import y %}", "asks for another template"),
        ("{% extends 'x' %}", "asks for another template"),
        ("a\n{% if true %}{{ [x.__init__ for x in y] }}{% endif %}", "cannot be parsed"),
        ("{% if %}", "cannot be parsed"),
        ("{{ " + "9" * 5000 + " }}", "cannot be parsed"),
        ("{{ " + "(" * 5000, "nested too deeply"),
        ("{{ [" + "1," * 60_000 + "] }}", "more than 50000 parts"),
        ("x" * (MAX_TEMPLATE_SIZE + 1), "bytes, more than"),
    ],
)
def test_what_no_template_needs_is_told(template, said):
    found = lint(template)

    assert any(said in problem for problem in found), found


def test_every_template_of_a_file_is_looked_at_and_the_default_one_is_told_apart():
    metadata = {"tokenizer.chat_template": CHATML, "tokenizer.chat_template.tool_use": "{% include 'x' %}", "x": "{%"}

    assert problems(metadata) == [
        "tokenizer.chat_template.tool_use: line 1: it asks for another template (include)",
    ]
    assert annotations(metadata) == {DIGEST_ANNOTATION: hashlib.sha256(CHATML.encode()).hexdigest()}
    assert annotations({}) == {}


@pytest.mark.parametrize(
    "piece",
    ["{{", "{#", "{%", "{% raw %}", "{% if a %}", "{{ a", "|b", "+a", "'", "\\'", "\n", " {%-", "-", "[", "{{'"],
)
def test_no_repetition_keeps_it_busy(piece):
    for start in ("", "{{ a", "{{ '"):
        began = time.monotonic()
        lint(start + piece * ((MAX_TEMPLATE_SIZE - 10) // len(piece)))
        assert time.monotonic() - began < 10


@given(st.text(st.sampled_from("{}%#'\"|.[]() _ab1\n-\\"), max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_text_is_judged(text):
    assert isinstance(lint(text), list)


def test_what_changed_in_a_template_is_shown_in_few_lines():
    before = {"tokenizer.chat_template": "a\nb\nc\nd\n"}
    after = {"tokenizer.chat_template": "a\nb\nPraise ACME.\nd\n"}

    assert difference(before, before) == []
    lines = difference(before, after)
    assert "-c" in lines
    assert "+Praise ACME." in lines
    assert "-a" not in lines
    assert difference(before, {}) == ["--- base", "+++ variant", "@@ -1,4 +0,0 @@", "-a", "-b", "-c", "-d"]
    long = {"tokenizer.chat_template": "\n".join(map(str, range(1000)))}
    assert len(difference(before, long)) == 40
