"""`taskservice callback` and `delivery`: test webhooks, and list and repeat deliveries."""

import sys
from typing import Any

import click

from taskservice.cli import options
from taskservice.cli.serve import service_app
from taskservice.database import clock
from taskservice.database.transactions import reading
from taskservice.errors import require
from taskservice.schemas import strict_json
from taskservice.schemas.tasks import delivery_schema
from taskservice.services import attempts, users
from taskservice.services import deliveries as delivery_service
from taskservice.terminal import print_fields, print_json, print_line, print_rows
from taskservice.terms import DELIVERY_STATES
from taskservice.webhooks import signing
from taskservice.webhooks.messages import Message

SAMPLE = {
    "id": "00000000-0000-7000-8000-000000000000",
    "name": "callback test",
    "logs": ["This is a sample, sent by `taskservice callback test`."],
    "output": {},
    "status": "complete",
}


@click.group("callback", cls=options.Group)
def command() -> None:
    """Test the delivery of webhooks."""


@command.command(
    "test", "https://hooks.example.org/tasks", "https://hooks.example.org/tasks --user alice"
)
@click.argument("url", type=options.text)
@options.text_option(
    "--user", metavar="NAME", help="Sign with this user's secret instead of a temporary secret."
)
def test(url: str, user: str | None) -> None:
    """Send a sample webhook to URL, and print the result.

    The exit status is 0 if the receiver returned 2xx, otherwise 1.
    """
    with service_app():
        secrets = [signing.new_secret()]
        if user is not None:
            with reading() as connection:
                user_id = users.get_id(connection, user)
            secrets = users.callback_secrets(user_id, overlap=0)
        body = strict_json.dumps(SAMPLE | {"callback": url, "finishedAt": clock.now()})
        outcome = attempts.send(Message(url, body, id=clock.new_id(), secrets=secrets))
    print_line(outcome.message)
    sys.exit(0 if outcome.delivered else 1)


LIST_COLUMNS = ("id", "state", "user", "taskId", "callback", "createdAt", "nextAttemptAt")


@click.group("delivery", cls=options.Group)
def delivery_command() -> None:
    """List, show and repeat webhook deliveries.

    ID can be any unique prefix of a delivery's ID.
    """


@delivery_command.command("list", "--state failed")
@click.option("--state", type=click.Choice(DELIVERY_STATES), help="Only deliveries in this state.")
@options.limit_option(default=100, show_default=True, help="Maximum number of deliveries.")
@options.json_lines
def list_all(state: str | None, limit: int, as_json: bool) -> None:
    """List the deliveries of all users, newest first."""
    with service_app():
        rows = [_dump(row) for row in delivery_service.list_all(state, limit)]
        print_rows(rows, LIST_COLUMNS, as_json)


@delivery_command.command("show", "01a20e63-92c4-7f10-b3a5-9e1d6c2f4b80")
@click.argument("delivery_id", metavar="ID")
@options.json_object
def show(delivery_id: str, as_json: bool) -> None:
    """Show a delivery and its attempts."""
    with service_app():
        row = delivery_service.find(_whole_id(delivery_id))
        delivery = _dump(require(row, "delivery"))
    if as_json:
        print_json(delivery)
        return
    print_fields({name: delivery[name] for name in LIST_COLUMNS})
    print_line()
    print_rows(delivery["attempts"], ("at", "durationMs", "statusCode", "message"), as_json=False)


@delivery_command.command("redeliver", "01a20e63-92c4-7f10-b3a5-9e1d6c2f4b80")
@click.argument("delivery_id", metavar="ID")
def redeliver(delivery_id: str) -> None:
    """Schedule a delivery to be sent now.

    `serve` or `background` sends it within a few seconds.
    """
    with service_app():
        delivery_service.redeliver_any(_whole_id(delivery_id))


def _dump(row: Any) -> dict[str, Any]:
    return {**delivery_schema.dump(row), "taskId": row.task_id, "user": row.user_name}


def _whole_id(prefix: str) -> str:
    return options.only_match(delivery_service.matching_ids(prefix), "delivery", prefix)
