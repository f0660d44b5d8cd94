"""`taskservice user`: the users of the service."""

import click

from taskservice.cli.server_command import print_key, service
from taskservice.queries import users as user_queries
from taskservice.schemas.answers import user_schema
from taskservice.services import users as user_service
from taskservice.terminal import print_rows


@click.group("user")
def command() -> None:
    """Users: the people or teams that tasks belong to."""


@command.command("add")
@click.argument("name")
def add(name: str) -> None:
    """Add a user and print the first API key, which is shown this once."""
    with service(may_create=True):
        print_key(lambda: user_service.add(name), name)


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def list_all(as_json: bool) -> None:
    """List the users."""
    with service():
        rows = user_schema.dump(user_queries.list_all(), many=True)
        print_rows(rows, ["name", "id", "createdAt"], as_json)
