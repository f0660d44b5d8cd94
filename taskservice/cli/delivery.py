"""`taskservice delivery`: the webhooks of all users, and what became of them."""

from typing import Any, NoReturn

import click

from taskservice.cli.server_command import service
from taskservice.contract.terms import DELIVERY_STATES
from taskservice.queries import deliveries as delivery_queries
from taskservice.schemas.answers import delivery_schema
from taskservice.schemas.fields import parse_id
from taskservice.services import deliveries as delivery_service
from taskservice.terminal import give_up, print_json, print_line, print_rows

LIST_COLUMNS = ("id", "state", "user", "taskId", "callback", "createdAt", "nextAttemptAt")
ATTEMPT_COLUMNS = ("at", "durationMs", "statusCode", "message")


@click.group("delivery")
def command() -> None:
    """Deliveries: the webhooks of finished tasks."""


@command.command("list")
@click.option("--state", type=click.Choice(DELIVERY_STATES), help="Only those in this state.")
@click.option(
    "--limit", type=click.IntRange(1), default=100, show_default=True, help="At most so many."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def list_all(state: str | None, limit: int, as_json: bool) -> None:
    """List the deliveries of all users, newest first."""
    with service():
        rows = [_dumped(row) for row in delivery_queries.list_all(state, limit)]
        print_rows(rows, LIST_COLUMNS, as_json)


@command.command("show")
@click.argument("delivery_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
def show(delivery_id: str, as_json: bool) -> None:
    """Show a delivery with each attempt to post it."""
    with service():
        row = delivery_queries.find(_known(delivery_id))
        if row is None:
            _give_up_on(delivery_id)
        delivery = _dumped(row)
    if as_json:
        print_json(delivery)
        return
    for name in LIST_COLUMNS:
        print_line(f"{name + ':':15}{delivery[name] or '-'}")
    print_line()
    print_rows(delivery["attempts"], ATTEMPT_COLUMNS, as_json=False)


@command.command("redeliver")
@click.argument("delivery_id", metavar="ID")
def redeliver(delivery_id: str) -> None:
    """Make a delivery due now: whoever serves or works posts it within 20 seconds."""
    with service():
        delivery_service.redeliver_any(_known(delivery_id))


def _dumped(row: Any) -> dict[str, Any]:
    dumped: dict[str, Any] = delivery_schema.dump(row)
    return dumped | {"taskId": row.task_id, "user": row.user_name}


def _known(delivery_id: str) -> str:
    return parse_id(delivery_id) or _give_up_on(delivery_id)


def _give_up_on(delivery_id: str) -> NoReturn:
    give_up(f"No such delivery: {delivery_id}")
