"""`taskservice agent` and `mcp-config`: agents, and what connects a client of MCP to them."""

import os
from typing import Any

import click

from taskservice.cli.json_input import JsonInput
from taskservice.cli.options import Text, examples, json_lines
from taskservice.cli.service_client import WRONG_SETTING, agent_ids, find_agent_id, service_client
from taskservice.cli.task_text import local_time
from taskservice.client import Agent, SettingError
from taskservice.client.http import checked_url
from taskservice.quantities import percent, seconds_text
from taskservice.terminal import exit_with_error, print_json, print_line, print_table
from taskservice.terms import CANCELLED, CLIENTS, KEY_VARIABLE

HEADER = ("ID", "NAME", "SUCCESS", "OF", "LAST SUCCESS", "USUALLY")


@click.group("agent")
def agent_command() -> None:
    """The agents: the programs that work on tasks.

    AGENT_ID may be the beginning of an agent's id, if no other agent begins so.
    """


@agent_command.command("list", epilog=examples("taskservice agent list"))
@json_lines
def list_all(as_json: bool) -> None:
    """List agents, with the success rate and the usual duration of their last 30 tasks.

    Cancelled tasks do not count.
    """
    with service_client() as client:
        agents = client.agents(health=True)
    if as_json:
        for agent in agents:
            print_json(agent)
    else:
        print_table([HEADER, *map(_row, agents)])


@agent_command.command(
    "add",
    epilog=examples(
        "taskservice agent add summarizer",
        'taskservice agent add summarizer --name Summarizer --description "Sums up the mail."',
        "taskservice agent add summarizer --input-schema @input.json",
    ),
)
@click.argument("agent_id", metavar="ID", type=Text())
@click.option("--name", type=Text(), help="Its name; its id by default.")
@click.option("--description", type=Text(), help="What it does.")
@click.option(
    "--input-schema",
    type=JsonInput(),
    metavar="JSON",
    help="The JSON Schema of its tasks' input: an object, or @FILE with one; @- reads stdin.",
)
@click.option(
    "--annotations",
    type=JsonInput(),
    metavar="JSON",
    help='What it does, for MCP clients, such as {"readOnlyHint": true}, or @FILE.',
)
@click.option(
    "--tool/--no-tool",
    default=None,
    help="Whether MCP clients see it as a tool of its own; they do by default.",
)
def add(agent_id: str, **fields: Any) -> None:
    """Register an agent, or change what is given of one.

    By the schema of its input the service checks each unclaimed start and each rerun, and the
    dashboard and MCP clients know what to ask for.
    """
    with service_client() as client:
        client.register(agent_id, **fields)
    print_line(f"{agent_id} is registered")


@agent_command.command("delete", epilog=examples("taskservice agent delete summarizer"))
@click.argument("agent_id", type=Text())
def delete(agent_id: str) -> None:
    """Delete an agent that has no tasks, and its keys."""
    with service_client() as client:
        found = find_agent_id(agent_ids(client), agent_id)
        client.delete_agent(found)
    print_line(f"{found} is deleted")


def _row(agent: Agent) -> tuple[str, ...]:
    health = agent["health"]
    counted = [task for task in health["recent"] if task.get("errorType") != CANCELLED]
    rate, last, usual = health["successRate"], health["lastSuccessAt"], health["medianSeconds"]
    return (
        agent["id"],
        agent["name"],
        "-" if rate is None else percent(rate),
        str(len(counted)),
        local_time(last),
        "-" if usual is None else seconds_text(usual),
    )


# `taskservice mcp-config`: what tells a client of MCP of the service.

INTRODUCTION = f"""\
# Each client reads a user key from {KEY_VARIABLE}, except VS Code, which asks for it."""


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
def mcp_config_command(name: str | None) -> None:
    """Print what tells a client of MCP of the service, so that it has each agent as a tool.

    The address is TASKSERVICE_URL. The key itself is not printed.
    """
    try:
        url = checked_url(os.environ.get("TASKSERVICE_URL", ""))
    except SettingError as error:
        exit_with_error(str(error), WRONG_SETTING)
    text = INTRODUCTION if name is None else CLIENTS[name].text(url)
    if name is None:
        for client in CLIENTS.values():
            text += f"\n\n# {client.title}: {client.where}\n\n{client.text(url)}"
    for line in text.split("\n"):
        print_line(line)
