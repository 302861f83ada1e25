"""Chat templates (Jinja) as they come from strangers: what they are told apart by, and what none of them needs.

A template is rendered by llama-cpp-python alone, in a child process, in Jinja's sandbox. The lint is the wall before
that one: it parses, and never compiles or renders (CVE-2024-34359, CVE-2026-5760). What a template makes a model say is
no business of a lint: for that its digest is recorded, so that a changed template cannot pass for the old one.
"""

import difflib
import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment, nodes

DIGEST_ANNOTATION = "dev.modelpack.template-sha256"
MAX_TEMPLATE_SIZE = 256 << 10
"""Bytes; the longest that are published have some 20 KiB."""
MAX_NODES = 50_000

_MAX_COMPARED = 2_000

_KEY = "tokenizer.chat_template"
_DUNDER = re.compile(r"(?:^|[.\[({])\s*__\w+__")
# Reaching other templates, and other attributes by names made at run time: no chat template needs either.
_FORBIDDEN_TAGS = ("Include", "Import", "FromImport", "Extends")
_FORBIDDEN_FILTERS = ("attr",)


def templates(metadata: Mapping[str, object]) -> dict[str, str]:
    """The chat templates in a GGUF's metadata by their keys: the default one and the named ones."""
    return {
        key: text
        for key, text in sorted(metadata.items())
        if (key == _KEY or key.startswith(f"{_KEY}.")) and isinstance(text, str)
    }


def digests(metadata: Mapping[str, object]) -> dict[str, str]:
    """The sha256 of each of these templates by its key, in hexadecimal digits."""
    return {key: hashlib.sha256(text.encode()).hexdigest() for key, text in templates(metadata).items() if text}


def difference(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    """What changed in the default chat template: lines of a unified diff, 40 at most; none where nothing did."""
    one, other = (templates(metadata).get(_KEY, "") for metadata in (before, after))
    if one == other:
        return []
    if max(one.count("\n"), other.count("\n")) > _MAX_COMPARED:
        return [f"the templates differ, and have more than {_MAX_COMPARED} lines"]
    lines = difflib.unified_diff(one.splitlines(), other.splitlines(), "base", "variant", n=1, lineterm="")
    return list(itertools.islice(lines, 40)) or ["the templates differ in how their lines end"]


def annotations(metadata: Mapping[str, object]) -> dict[str, str]:
    """How an artifact tells which default chat template it has; nothing where it has none."""
    digest = digests(metadata).get(_KEY)
    return {DIGEST_ANNOTATION: digest} if digest else {}


def problems(metadata: Mapping[str, object]) -> list[str]:
    """Why the chat templates in a GGUF's metadata are not to be rendered; empty when they pass."""
    return [f"{key}: {problem}" for key, text in templates(metadata).items() for problem in lint(text)]


def lint(template: str) -> list[str]:
    """What is wrong with a template, one sentence each; empty when it passes. Bounded in time by the size limit."""
    size = len(template.encode("utf-8", "surrogatepass"))
    if size > MAX_TEMPLATE_SIZE:
        return [f"the template has {size} bytes, more than {MAX_TEMPLATE_SIZE}"]
    from jinja2 import TemplateError

    try:
        found: dict[str, None] = {}
        for count, node in enumerate(_walk(_environment().parse(template))):
            if count > MAX_NODES:
                return [f"the template has more than {MAX_NODES} parts"]
            found |= dict.fromkeys(_check(node))
        return list(found)[:20]
    except TemplateError as error:
        return [f"the template cannot be parsed: {str(error.message).splitlines()[0]:.200}"]
    except RecursionError:
        return ["the template is nested too deeply"]
    except ValueError as error:  # a number with too many digits
        return [f"the template cannot be parsed: {error!s:.200}"]


def _environment() -> "Environment":
    """As transformers sets it up: with loop controls, and with the tag that marks what an assistant said."""
    from jinja2 import Environment, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012  Jinja's own way

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    # Nothing is rendered, so nothing needs escaping.
    return Environment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation], autoescape=False)  # noqa: S701


def _walk(root: "nodes.Node") -> "Iterator[nodes.Node]":
    waiting = [root]
    while waiting:
        node = waiting.pop()
        yield node
        waiting.extend(node.iter_child_nodes())


def _check(node: "nodes.Node") -> Iterator[str]:
    from jinja2 import nodes

    kind = type(node).__name__
    if kind in _FORBIDDEN_TAGS:
        yield f"line {node.lineno}: it asks for another template ({kind.lower()})"
    elif isinstance(node, nodes.Filter) and node.name in _FORBIDDEN_FILTERS:
        yield f"line {node.lineno}: it reads attributes by the filter {node.name!r}"
    elif isinstance(node, nodes.Getattr) and node.attr.startswith("__"):
        yield f"line {node.lineno}: it reads the attribute {node.attr[:80]!r}"
    elif isinstance(node, nodes.Name) and node.name.startswith("__"):
        yield f"line {node.lineno}: it uses the name {node.name[:80]!r}"
    elif isinstance(node, nodes.Const) and isinstance(node.value, str) and (found := _DUNDER.search(node.value)):
        yield f"line {node.lineno}: it holds the text {found.group()[:80]!r}, the name of a Python attribute"
