"""`taskservice mcp-config`: prints the configuration of MCP clients."""

import click

from taskservice.cli import options
from taskservice.cli.service_client import one_line_errors
from taskservice.client.http import checked_url, stored_settings
from taskservice.terminal import print_line
from taskservice.terms import CLIENTS, KEY_VARIABLE

INTRODUCTION = f"""\
# Each client reads a user key from {KEY_VARIABLE}, except VS Code, which asks for it."""


@options.command(
    "taskservice mcp-config",
    "",
    "--client claude-code | sh",
    "--client vscode | tee .vscode/mcp.json",
    short_help="Print the configuration of MCP clients.",
)
@click.option(
    "--client",
    "name",
    type=click.Choice(list(CLIENTS)),
    help="Print the configuration of this client only.",
)
def command(name: str | None) -> None:
    """Print the configuration that lets an MCP client call each agent as a tool.

    The URL of the service is TASKSERVICE_URL, or else the URL that `taskservice login` stored. The
    key is not printed.
    """
    with one_line_errors():
        url = checked_url(stored_settings()[0])
    text = INTRODUCTION if name is None else CLIENTS[name].text(url)
    if name is None:
        for client in CLIENTS.values():
            text += f"\n\n# {client.title}: {client.where}\n\n{client.text(url)}"
    for line in text.split("\n"):
        print_line(line)
