"""`taskservice agent`: named programs and workflows."""

import sys
import time
from collections.abc import Collection
from typing import Any

import click

from taskservice.cli import options
from taskservice.cli.service_client import registered_agent_id, service_client
from taskservice.client import Agent, Client
from taskservice.client.responses import AGENT, NUMBERS
from taskservice.client.spool import rfc3339
from taskservice.client.task import path_to, register_agent
from taskservice.quantities import percent, seconds_text
from taskservice.terminal import local_time, print_fields, print_json, print_line, print_table
from taskservice.terms import BROKEN, CANCELLED, HANGING, LATE, MAX_MUTE_DAYS, MAX_TIMEOUT

DAY_SECONDS = 86_400
HEADER = ("ID", "NAME", "STATE", "SUCCESS", "OF", "LAST SUCCESS", "USUALLY", "NEXT RUN")
# Columns that are omitted on a narrow terminal, in this order.
OPTIONAL = ("OF", "USUALLY", "LAST SUCCESS", "NEXT RUN")
# ANSI colours: red, yellow and grey.
COLOURS = {HANGING: "31", BROKEN: "31", LATE: "33", "muted": "90"}


@click.group("agent", cls=options.Group)
def command() -> None:
    """Register, list, mute and delete agents.

    An agent is a named program or workflow; each execution of it is a task. AGENT_ID can be any
    unique prefix of an agent's ID.
    """


@command.command("list")
@options.json_lines
def list_all(as_json: bool) -> None:
    """List agents, with the outcomes of their last 30 tasks.

    STATE is "ok", or one or more of "muted", "hanging", "broken" (the last task failed or timed
    out) and "late". SUCCESS is the percentage of tasks that completed, and OF is the number of
    tasks; cancelled tasks are not counted. USUALLY is the median duration, and NEXT RUN is the time
    of the next expected task. With --json, `numbers` lists the paths of the numbers in the outputs
    of the agent's last 100 tasks, with the last number at each path.
    """
    with service_client() as client:
        agents = client.agents(health=True)
        if as_json:
            for agent in agents:
                path = f"/agent/{agent['id']}/numbers"
                numbers = client.connection.call("GET", path, NUMBERS).data["paths"]
                print_json({**agent, "numbers": numbers})
        else:
            hanging = {item["agentId"] for item in client.attention() if item["kind"] == HANGING}
            table = [HEADER, *(_row(agent, agent["id"] in hanging) for agent in agents)]
            if all(agent["name"] == agent["id"] for agent in agents):
                table = [row[:1] + row[2:] for row in table]
            print_table(table, colours={"STATE": COLOURS}, optional=OPTIONAL)


@command.command(
    "add",
    'summarizer --name Summarizer --description "Summarizes email."',
    "summarizer --input-schema @input.json",
    "backup --every 25h --max-duration 2h",
    'backup --cron "0 2 * * 1-5" --time-zone Europe/Berlin --grace 30m',
)
@click.argument("agent_id", metavar="ID", type=options.text)
@options.text_option("--name", help="Display name (default: the ID).")
@options.text_option("--description", help="Description for people and for MCP clients.")
@options.json_option(
    "--input-schema",
    help="JSON Schema of the tasks' input: a JSON object, or @FILE to read a file (@- for stdin).",
)
@options.json_option(
    "--annotations", help='MCP tool hints, such as {"readOnlyHint": true}, or @FILE.'
)
@click.option(
    "--tool/--no-tool",
    default=None,
    help="Whether MCP clients get a tool for the agent (default: yes if a worker was seen in "
    "the last 30 days).",
)
@click.option(
    "--every",
    type=options.Duration(maximum=MAX_TIMEOUT),
    help="Maximum time between the starts of two tasks, such as 25h; 0 if no tasks are expected.",
)
@options.text_option(
    "--cron", help="When tasks are expected, as a cron expression with five fields."
)
@options.text_option("--time-zone", "timeZone", help="Time zone of --cron (default: UTC).")
@click.option(
    "--grace",
    type=options.Duration(),
    help="Time from an expected start until the agent is late (default: 1h).",
)
@click.option(
    "--max-duration",
    "maxDuration",
    type=options.Duration(),
    help="Time after which a running task counts as hanging, such as 2h (default: computed from "
    "the schedule and the usual duration).",
)
def add(agent_id: str, **fields: Any) -> None:
    """Register an agent, or update the given fields of an existing agent.

    The input schema validates the input of reruns and of tasks for workers, and defines the forms
    in the dashboard and in MCP clients.

    With --every or --cron, an agent is late if it starts no task in time. --every 0 removes the
    schedule and the maximum duration.
    """
    names = ("every", "cron", "timeZone", "grace", "maxDuration")
    values = {name: fields.pop(name) for name in names}
    expect = {name: value for name, value in values.items() if value is not None}
    with service_client() as client:
        if expect == {"every": 0}:
            fields["expect"] = {}
        elif expect:
            fields["expect"] = _kept(client, agent_id, expect) | expect
        client.register_agent(agent_id, **fields)
    print_line(f"{agent_id} is registered")


def _kept(client: Client, agent_id: str, changes: Collection[str]) -> dict[str, Any]:
    """The agent's expectations that stay the same; they are sent again with the `changes`.

    A new schedule replaces the old schedule.
    """
    agents = {agent["id"]: agent.get("expect") or {} for agent in client.agents()}
    has_schedule = "every" in changes or "cron" in changes
    expect = agents.get(agent_id, {}).items()
    return {name: value for name, value in expect if name == "maxDuration" or not has_schedule}


@command.command("show", "summarizer")
@click.argument("agent_id", type=options.text)
@options.json_object
def show(agent_id: str, as_json: bool) -> None:
    """Show an agent, its health, and the end of its mute."""
    with service_client() as client:
        path = path_to("agent", registered_agent_id(client, agent_id))
        agent = client.connection.call("GET", path, AGENT, params={"expand": "health"}).data
    if as_json:
        print_json(agent)
        return
    health = agent.pop("health")
    del health["recent"]
    print_fields(agent | health)


@command.command("mute", "summarizer 8h")
@click.argument("agent_id", type=options.text)
@click.argument(
    "duration",
    type=options.Duration(minimum=1, maximum=MAX_MUTE_DAYS * DAY_SECONDS, needs_unit=True),
)
def mute(agent_id: str, duration: int) -> None:
    """Pause messages to people about an agent.

    DURATION is a time with a unit, such as 8h or 7d. Questions are still sent, and programs still
    receive all events. If a problem begins while the agent is muted and still exists when the mute
    ends, the message about it is sent then.
    """
    _set_muted(agent_id, rfc3339(round((time.time() + duration) * 1000)))


@command.command("unmute", "summarizer")
@click.argument("agent_id", type=options.text)
def unmute(agent_id: str) -> None:
    """Resume messages to people about an agent.

    Messages about problems that began while the agent was muted and still exist are sent now.
    """
    _set_muted(agent_id, None)


def _set_muted(agent_id: str, until: str | None) -> None:
    with service_client() as client:
        whole_id = registered_agent_id(client, agent_id)
        register_agent(client.connection, whole_id, {"mutedUntil": until})
    state = f"muted until {local_time(until)}" if until else "not muted"
    print_line(f"{whole_id} is {state}")


@command.command("delete", "summarizer")
@click.argument("agent_id", type=options.text)
@options.flag("--yes", help="Delete without asking for confirmation.")
def delete(agent_id: str, yes: bool) -> None:
    """Delete an agent and its keys. The agent must have no tasks.

    On a terminal, the command asks for confirmation.
    """
    with service_client() as client:
        whole_id = registered_agent_id(client, agent_id)
        if not yes and sys.stdin.isatty():
            click.confirm(f"Delete agent {whole_id} and its keys?", abort=True, err=True)
        client.delete_agent(whole_id)
    print_line(f"{whole_id} is deleted")


def _row(agent: Agent, is_hanging: bool) -> tuple[str, ...]:
    health = agent["health"]
    marks = {
        "muted": agent.get("mutedUntil"),
        HANGING: is_hanging,
        BROKEN: health.get("state") == BROKEN,
        LATE: health.get("lateSince"),
    }
    rate, last, usual = health["successRate"], health["lastSuccessAt"], health["medianSeconds"]
    return (
        agent["id"],
        agent["name"],
        ", ".join(mark for mark in marks if marks[mark]) or health.get("state") or "-",
        "-" if rate is None else percent(rate),
        str(sum(task.get("errorType") != CANCELLED for task in health["recent"])),
        local_time(last),
        "-" if usual is None else seconds_text(usual),
        local_time(health.get("dueAt")),
    )
