"""Writes the parts of documents that the code determines: commands, settings, the Python client."""

import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
from flask import Flask

from taskservice import api, cli, config
from taskservice.api.access import ALSO_FOR_READ_KEYS
from taskservice.cli.commands import CLIENT_COMMANDS, SERVER_COMMANDS
from taskservice.openapi.document import openapi_path
from taskservice.terms import API_PREFIX
from taskservice.web.request import Operation
from tests.support.client_reference import CLIENT_PAGES, client_reference

ROOT = Path(__file__).parent.parent
# Page -> the commands that it describes.
COMMANDS = {
    "docs/reference/cli.md": [name for name in CLIENT_COMMANDS if name != "task"],
    "docs/reference/cli-task.md": ["task"],
    "docs/reference/cli-server.md": list(SERVER_COMMANDS),
}
SETTINGS = "docs/reference/configuration.md"
ACCESS = "docs/background/security-model.md"
PAGES = (*COMMANDS, SETTINGS, ACCESS, *CLIENT_PAGES)
START, END = "<!-- generated -->", "<!-- end of what is generated -->"
_WIDTH = 118
# The values of these settings are described on their page, not by their check.
_VALUES = {
    "DATA": "a path",
    "CALLBACK_ALLOWED": "a list, separated by commas",
    "MAIL_FROM": "`tasks@example.org`, or with a name: `Tasks <tasks@example.org>`",
}


def written(page: str) -> str:
    """The page with its generated part as the code has it now."""
    before, _, rest = (ROOT / page).read_text().partition(START)
    _, end, after = rest.partition(END)
    assert end, f"{page} has no generated part"
    return f"{before}{START}\n\n{_generated(page)}\n\n{END}{after}"


def _generated(page: str) -> str:
    if page == SETTINGS:
        return _settings()
    if page == ACCESS:
        return _access()
    if page in CLIENT_PAGES:
        return client_reference(page, _WIDTH)
    return _commands(COMMANDS[page])


def _settings() -> str:
    rows = []
    for setting, (name, default, help) in zip(
        fields(config.Config), config.documented(), strict=True
    ):
        values = _VALUES.get(setting.name) or _refusal(setting.metadata["parse"])
        rows.append((f"`{name}`", f"`{default}`" if default else "", values, help))
    return _table(("name", "default", "values", "meaning"), rows)


# The kinds of keys, and whether the declaration of a route lets them call a method of it.
KINDS = ("user key", "agent key", "read key", "read key of an agent")


def allowed(operation: Operation, method: str, rule: str) -> tuple[bool, ...]:
    """Whether each of KINDS can call an operation."""
    is_for_agents = not operation.user_key
    can_read = method == "GET" and not operation.full_access
    can_read = can_read or (method, rule) in ALSO_FOR_READ_KEYS
    return True, is_for_agents, can_read, is_for_agents and can_read


def operations() -> Iterator[tuple[str, str, tuple[bool, ...]]]:
    """(method, rule, `allowed`) of each operation that needs a key."""
    app = Flask(__name__, static_folder=None)
    api.init_app(app)
    for rule in app.url_map.iter_rules():
        if rule.rule.startswith(API_PREFIX):
            view: Any = app.view_functions[rule.endpoint]
            for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
                yield method, rule.rule, allowed(view.operation, method, rule.rule)


def _access() -> str:
    """A row for all operations that the same kinds of keys can call."""
    operations_of: dict[tuple[bool, ...], list[str]] = {}
    for method, rule, kinds in operations():
        path = openapi_path(rule).removeprefix(API_PREFIX)
        operations_of.setdefault(kinds, []).append(f"{method} `{path}`")
    rows = [
        (*("yes" if is_allowed else "no" for is_allowed in kinds), ", ".join(names))
        for kinds, names in operations_of.items()
    ]
    return _table((*KINDS, "operations"), rows)


def _refusal(parse: object) -> str:
    """What a setting must be, in the words of its check."""
    assert callable(parse)
    try:
        parse("\0")
    except ValueError as error:
        return str(error).removeprefix("must be ")
    raise AssertionError("it accepts anything")


# An option as the help shows it, and its meaning.
Option = tuple[str, str]
# From this number on, options that an earlier command has too are not described again.
_MANY = 4


def _commands(names: Iterable[str]) -> str:
    top = click.Context(cli.main, info_name="taskservice")
    overview, sections = [], []
    described: dict[Option, str] = {}
    for name in names:
        command, context = _command(cli.main, name, top)
        leaves = [(command, context)]
        cell = _link(context.command_path, context.command_path)
        if isinstance(command, click.Group):
            leaves = [_command(command, inner, context) for inner in command.list_commands(context)]
            links = (_link(str(leaf.info_name), leaf.command_path) for _, leaf in leaves)
            cell = f"`{context.command_path}`: {', '.join(links)}"
        overview.append((cell, command.get_short_help_str(_WIDTH)))
        sections += [_section(*leaf, described) for leaf in leaves]
    return "\n\n".join([_table(("command", "does"), overview), *sections])


def _command(
    group: click.Group, name: str, parent: click.Context
) -> tuple[click.Command, click.Context]:
    command = group.get_command(parent, name)
    assert command is not None
    return command, click.Context(command, info_name=name, parent=parent)


def _link(text: str, path: str) -> str:
    return f"[`{text}`](#{path.replace(' ', '-')})"


def _section(command: click.Command, context: click.Context, described: dict[Option, str]) -> str:
    """The text about a command; `described` maps the options of earlier ones to the first."""
    options = _options(command, context)
    # The page describes --json once.
    others = [option for option in options if option[0] != "`--json`"]
    _, *arguments = command.collect_usage_pieces(context)
    words = ["[OPTIONS]"] * bool(others) + ["[--json]"] * (len(options) - len(others))
    parts = [f"### {context.command_path}"]
    if words or arguments:
        parts.append(f"`{' '.join([context.command_path, *words, *arguments])}`")
    for paragraph in (command.help or "").split("\n\n"):
        parts.append(_filled(_marked(" ".join(paragraph.split()))))
    shared = [option for option in others if option in described]
    if len(shared) >= _MANY:
        others = [option for option in others if option not in shared]
        names = ", ".join(f"{name.split()[0].rstrip('`')}`" for name, _ in shared)
        path = described[shared[0]]
        parts.append(f"{names}: as for {_link(path, path)}.")
    if others:
        parts.append("\n".join(f"- {names}: {meaning}" for names, meaning in others))
    for option in options:
        described.setdefault(option, context.command_path)
    *_, examples = re.split(r"Examples?:\n", command.epilog or "")
    lines = textwrap.dedent(examples).strip()
    if lines != context.command_path:
        parts.append(f"```sh\n{lines}\n```")
    return "\n\n".join(parts)


def _options(command: click.Command, context: click.Context) -> list[Option]:
    options = (option for option in command.params if isinstance(option, click.Option))
    records = filter(None, (option.get_help_record(context) for option in options))
    return [(f"`{names}`", _marked(" ".join(help.split()))) for names, help in records]


def _filled(paragraph: str) -> str:
    return textwrap.fill(paragraph, _WIDTH, break_long_words=False, break_on_hyphens=False)


def _marked(text: str) -> str:
    """The text for Markdown, with options, variables and stars as code."""
    pieces = re.split(r"(`[^`]*`)", text)
    code = re.compile(r"--[a-z][\w-]*|\$?\b[A-Z]+_[A-Z_]+\b|\$[A-Z_]+|\*{2,}")
    pieces[::2] = [code.sub(lambda match: f"`{match[0]}`", piece) for piece in pieces[::2]]
    return "".join(pieces)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(_row([cell.replace("|", r"\|") for cell in line]) for line in lines)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")


if __name__ == "__main__":
    for page in PAGES:
        (ROOT / page).write_text(written(page))
        print(page, file=sys.stderr)
