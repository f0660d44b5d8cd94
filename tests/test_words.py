"""The words of messages, help texts, docstrings and comments: each is plain English."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import click
from flask import Flask

from taskservice import cli
from tests.support import documents
from tests.support.documents import DOCUMENTS, ROOT
from tests.support.marks import one_database
from tests.support.words import FILLERS, odd_phrases

PACKAGE = ROOT / "taskservice"
SUFFIXES = {".css", ".html", ".js", ".py"}
# A help text or a description begins with a noun or a verb.
ODD_START = re.compile(r"(?:Its|It|Which of|Whose|What)\b")


def prose(path: Path) -> Iterator[str]:
    """The comments, docstrings and messages of a file, without the code that they quote."""
    source = path.read_text()
    if path.suffix == ".py":
        yield from comments(source)
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
    elif path.suffix == ".html":
        yield re.sub(r"\{%.*?%\}|\{\{.*?\}\}|<[^>]*>", " ", source, flags=re.DOTALL)
    else:
        yield from re.findall(r"/\*.*?\*/", source, re.DOTALL)
        for block in re.findall(r"(?:^[ \t]*//.*\n)+", source, re.MULTILINE):
            yield block.replace("//", "")


def comments(source: str) -> Iterator[str]:
    """The comments of Python code; those on consecutive lines are one text."""
    lines: list[str] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            lines.append(token.string.lstrip("# "))
        elif token.type != tokenize.NL and lines:
            yield " ".join(lines)
            lines = []


def docstrings(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef):
            yield ast.get_docstring(node) or ""


def test_code_has_plain_words() -> None:
    texts = {
        str(path.relative_to(PACKAGE)): prose(path)
        for path in PACKAGE.rglob("*")
        if path.suffix in SUFFIXES and PACKAGE / "help" not in path.parents
    }
    assert {name: odd for name in texts if (odd := odd_phrases(texts[name]))} == {}


def test_comments_of_tests_have_plain_words() -> None:
    sources = {
        str(path.relative_to(ROOT)): path.read_text()
        for folder in ("tests", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
    }
    texts = {name: [*comments(source), *docstrings(source)] for name, source in sources.items()}
    assert {name: odd for name in texts if (odd := odd_phrases(texts[name]))} == {}


def test_documents_have_plain_words() -> None:
    # Without the addresses of links, and comments.
    omitted = re.compile(r"(?<=\])\([^)]*\)|<!--.*?-->", re.DOTALL)
    texts = {name: [omitted.sub("", documents.prose(name))] for name in DOCUMENTS}
    assert {name: odd for name in texts if (odd := odd_phrases(texts[name]))} == {}


def assigned_names(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.FunctionDef):
            yield node.name


def test_names_say_what_they_hold() -> None:
    fillers = {
        f"{path.relative_to(ROOT)}: {name}"
        for folder in ("taskservice", "tests", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        for name in FILLERS.intersection(assigned_names(path.read_text()))
    }
    assert fillers == set()


def helps(command: click.Command) -> Iterator[str]:
    """The texts of a command, its options and the commands below it."""
    yield from filter(None, (command.help, command.short_help))
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.help:
            yield parameter.help
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from helps(inner)


def descriptions(value: object) -> Iterator[str]:
    """The descriptions and summaries in an OpenAPI document."""
    if isinstance(value, dict):
        texts = (value.get(key) for key in ("description", "summary"))
        yield from (text for text in texts if isinstance(text, str))
        for inner in value.values():
            yield from descriptions(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from descriptions(inner)


@one_database
def test_help_begins_with_a_noun_or_a_verb(app: Flask) -> None:
    texts = {
        "--help": helps(cli.main),
        "/openapi.json": descriptions(app.test_client().get("/openapi.json").json),
    }
    odd = {name: sorted(set(filter(ODD_START.match, lines))) for name, lines in texts.items()}
    assert odd == {"--help": [], "/openapi.json": []}
