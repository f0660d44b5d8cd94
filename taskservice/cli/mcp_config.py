"""`taskservice mcp-config`: what tells a client of MCP of the service."""

import os

import click

from taskservice.cli.options import examples
from taskservice.cli.service_client import WRONG_SETTING
from taskservice.client.answers import SettingError
from taskservice.client.http import checked_url
from taskservice.terminal import exit_with_error, print_line
from taskservice.terms import CLIENTS, KEY_VARIABLE

INTRODUCTION = f"""\
# Each client reads a user key from {KEY_VARIABLE}, except VS Code, which asks for it.
# docs/mcp.md says more."""


@click.command(
    "mcp-config",
    short_help="Print what connects a client of MCP.",
    epilog=examples(
        "taskservice mcp-config",
        "taskservice mcp-config --client claude-code | sh",
        "taskservice mcp-config --client vscode | tee .vscode/mcp.json",
    ),
)
@click.option(
    "--client", "name", type=click.Choice(list(CLIENTS)), help="Only the lines of this one."
)
def command(name: str | None) -> None:
    """Print what tells a client of MCP of the service, so that it has each agent as a tool.

    The address is TASKSERVICE_URL. The key itself is not printed.
    """
    try:
        url = checked_url(os.environ.get("TASKSERVICE_URL", ""))
    except SettingError as error:
        exit_with_error(str(error), WRONG_SETTING)
    if name is not None:
        _print(CLIENTS[name].text(url))
        return
    _print(INTRODUCTION)
    for client in CLIENTS.values():
        _print(f"\n# {client.title}: {client.where}\n\n{client.text(url)}")


def _print(text: str) -> None:
    for line in text.split("\n"):
        print_line(line)
