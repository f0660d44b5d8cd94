"""`taskservice hook`: the addresses that are notified of events."""

import sys
from functools import reduce
from typing import Any

import click

from taskservice.cli import options
from taskservice.cli.service_client import find_agent_id, service_client
from taskservice.cli.task_text import SHORT_ID, id_length
from taskservice.client import Client, Hook
from taskservice.event_kinds import DEFAULT_EVENTS, EVENTS
from taskservice.terminal import (
    local_time,
    notice,
    print_fields,
    print_json,
    print_line,
    print_table,
)
from taskservice.terms import ACTIVE, HOOK_FORMATS, MAX_AFTER, OFF
from taskservice.webhooks.hook_targets import without_secret

HEADER = (
    "ID", "STATE", "ADDRESS", "NAME", "FORMAT", "EVENTS", "AGENT", "LABEL", "LAST DELIVERED",
    "REASON",
)  # fmt: skip
COLOURS = {"failing": "31", "off": "31"}
# Columns that are left out on a narrow terminal, in this order.
OPTIONAL = ("LAST DELIVERED", "LABEL", "AGENT", "EVENTS", "FORMAT", "NAME")
DELIVERY_HEADER = ("HAPPENED", "EVENT", "AGENT", "TASK", "STATE", "NEXT ATTEMPT", "LAST OUTCOME")
DELIVERY_OPTIONAL = ("NEXT ATTEMPT", "TASK", "AGENT")

hook_argument = click.argument("hook_id", type=options.text)


@click.group("hook", cls=options.Group)
def command() -> None:
    """Manage hooks, which notify people and programs of events.

    HOOK_ID can be any unique prefix of a hook's ID.
    """


def _fields(function: Any) -> Any:
    """The options of `hook add` and `hook edit`, named after the fields of the API."""
    in_order = (
        options.text_option(
            "--name", help="Display name (default: the address without its secret part)."
        ),
        click.option(
            "--format",
            type=click.Choice(HOOK_FORMATS),
            help="Format of the messages (default: `mail` for mailto:, `slack` for hooks.slack.com "
            "and paths that end in /slack, `ntfy` for ntfy.sh, otherwise `standard`, a signed "
            "webhook).",
        ),
        click.option(
            "--event",
            "events",
            type=click.Choice(EVENTS),
            multiple=True,
            callback=lambda ctx, param, events: events or None,
            help=f"Event to send. Repeatable (default: {', '.join(DEFAULT_EVENTS)}).",
        ),
        options.agent_option("agentId", help="Only events of this agent; '' for all agents."),
        click.option(
            "--label",
            type=_label,
            metavar="K=V",
            help="Only events of tasks with this label; '' for all tasks.",
        ),
        click.option(
            "--token-file",
            "token",
            type=click.File(errors="replace"),
            callback=lambda ctx, param, file: file and file.read().strip(),
            metavar="FILE",
            help="File with the access token of an ntfy server; - reads stdin.",
        ),
        click.option(
            "--answer-links/--no-answer-links",
            "answerLinks",
            default=None,
            help="Whether messages about questions contain a link that lets anyone answer without "
            "a key (default: no).",
        ),
        click.option(
            "--after",
            type=click.IntRange(1, MAX_AFTER),
            metavar="N",
            help="Send agent.broken only after N failures in a row (default: 1).",
        ),
    )
    return reduce(lambda inner, add: add(inner), reversed(in_order), function)


def _label(text: str) -> str:
    return text and ":".join(options.key_value(text))


def _named(client: Client, fields: dict[str, Any]) -> dict[str, Any]:
    """The fields whose options were given; a prefix of an agent's ID becomes the whole ID."""
    named = {name: value for name, value in fields.items() if value is not None}
    if agent_id := named.get("agentId"):
        warning = f"no agent {agent_id} is registered yet"
        named["agentId"] = find_agent_id(client, agent_id, lambda text: notice(warning + text))
    return named | {name: None for name in ("agentId", "label") if named.get(name) == ""}


@command.command(
    "add",
    "https://ntfy.sh/my-secret-topic",
    "https://ntfy.example.org/alerts --format ntfy --token-file token.txt",
    "mailto:ann@example.org --event agent.broken --label env=prod",
)
@click.argument("target", type=options.text)
@_fields
@options.json_object
def add(target: str, as_json: bool, **fields: Any) -> None:
    """Add a hook, and print its ID.

    TARGET is mailto:ADDRESS, or the URL of an ntfy topic, of a program, or of an incoming webhook
    of Slack, Mattermost or Discord.
    """
    with service_client() as client:
        named = _named(client, fields)
        of_client = {"agent_id": named.pop("agentId", None)}
        of_client["answer_links"] = named.pop("answerLinks", False)
        hook = client.add_hook(target, **named, **of_client)
    print_json(hook) if as_json else print_line(hook["id"])
    notice(f"send a test with: taskservice hook test {hook['id']}")


@command.command(
    "edit", "01a20e63-9249-713c --event agent.broken --agent ''", "01a20e63-9249-713c --name Phone"
)
@hook_argument
@options.text_option("--target", help="New address, as for `hook add`; the format stays the same.")
@_fields
@options.json_object
def edit(hook_id: str, as_json: bool, **fields: Any) -> None:
    """Change fields of a hook.

    A field whose option is not given stays unchanged. If the host or the format changes, the access
    token is removed unless it is given again.
    """
    with service_client() as client:
        changes = _named(client, fields)
        if not changes:
            raise click.UsageError("Give at least one option.")
        hook = client.update_hook(_find(client, hook_id)["id"], **changes)
    print_json(hook) if as_json else print_line(f"{hook['id']} is changed")


@command.command("list")
@options.json_lines
def list_all(as_json: bool) -> None:
    """List hooks, oldest first, with the reason if a hook fails or was turned off.

    An address is shown without its secret, and a name only if it differs from the address.
    """
    with service_client() as client:
        hooks = client.hooks()
    if as_json:
        for hook in hooks:
            print_json(hook)
    else:
        length = id_length([hook["id"] for hook in hooks])
        rows = (_row(hook, length) for hook in hooks)
        print_table([HEADER, *rows], colours={"STATE": COLOURS}, optional=OPTIONAL)


@command.command("show", "01a20e63-9249-713c")
@hook_argument
@options.json_object
def show(hook_id: str, as_json: bool) -> None:
    """Show a hook and the outcomes of its last deliveries."""
    with service_client() as client:
        hook = _find(client, hook_id)
        deliveries = client.hook_deliveries(hook["id"])
    if as_json:
        print_json({**hook, "deliveries": deliveries})
        return
    print_fields({**hook, "events": " ".join(hook["events"])})
    print_line()
    print_table([DELIVERY_HEADER, *map(_delivery_row, deliveries[:10])], optional=DELIVERY_OPTIONAL)


@command.command("test", "01a20e63-9249-713c")
@hook_argument
@options.json_object
def test(hook_id: str, as_json: bool) -> None:
    """Send a test message to a hook, and print the outcome.

    The message contains sample data for one of the hook's events. A user can send ten tests a
    minute, and at most one test every 10 s to the same address. The exit status is 1 if the message
    was not delivered.
    """
    with service_client() as client:
        outcome = client.test_hook(_find(client, hook_id)["id"])
    print_json(outcome) if as_json else print_line(outcome["message"])
    sys.exit(0 if outcome["delivered"] else 1)


@command.command("on", "01a20e63-9249-713c")
@hook_argument
@options.json_object
def turn_on(hook_id: str, as_json: bool) -> None:
    """Turn on a hook that was turned off.

    Messages that have been pending for less than a day are sent.
    """
    _set_state(hook_id, as_json, ACTIVE, "on")


@command.command("off", "01a20e63-9249-713c")
@hook_argument
@options.json_object
def turn_off(hook_id: str, as_json: bool) -> None:
    """Turn off a hook. Pending messages are retained for up to a day."""
    _set_state(hook_id, as_json, OFF, "off")


def _set_state(hook_id: str, as_json: bool, state: str, word: str) -> None:
    with service_client() as client:
        hook = client.update_hook(_find(client, hook_id)["id"], state=state)
    print_json(hook) if as_json else print_line(f"{hook['id']} is {word}")


@command.command("delete", "01a20e63-9249-713c")
@hook_argument
@options.json_object
def delete(hook_id: str, as_json: bool) -> None:
    """Delete a hook. Pending messages are discarded."""
    with service_client() as client:
        hook = _find(client, hook_id)
        client.delete_hook(hook["id"])
    print_json(hook) if as_json else print_line(f"{hook['id']} is deleted")


def _find(client: Client, text: str) -> Hook:
    """The only hook whose ID has this prefix."""
    hooks = {hook["id"]: hook for hook in client.hooks()}
    ids = [hook_id for hook_id in hooks if options.has_prefix(hook_id, text)]
    return hooks[options.only_match(ids, "hook", text)]


def _row(hook: Hook, length: int) -> tuple[str, ...]:
    is_default = set(hook["events"]) == set(DEFAULT_EVENTS)
    address = without_secret(hook["target"], hook["format"])
    return (
        hook["id"][:length],
        "failing" if hook.get("failingSince") else hook["state"],
        address,
        "-" if hook["name"] == address else hook["name"],
        hook["format"],
        "default" if is_default else " ".join(hook["events"]),
        hook["agentId"] or "-",
        hook["label"] or "-",
        local_time(hook["lastDeliveredAt"]),
        hook["reason"] or "-",
    )


def _delivery_row(delivery: dict[str, Any]) -> tuple[str, ...]:
    attempts = delivery["attempts"]
    return (
        local_time(delivery["createdAt"], "seconds"),
        delivery["event"],
        delivery["agentId"],
        (delivery["taskId"] or "-")[:SHORT_ID],
        delivery["state"],
        local_time(delivery["nextAttemptAt"], "seconds"),
        attempts[-1]["message"] if attempts else "-",
    )
