"""`taskservice user`: the users of the service."""

import click

from taskservice.cli.options import Text, examples, json_lines
from taskservice.cli.service_app import print_key, service_app
from taskservice.contract.terminal import print_rows
from taskservice.queries import users as user_queries
from taskservice.schemas.answers.users import user_schema
from taskservice.services import users as user_service


@click.group("user")
def command() -> None:
    """Users: the people or teams that tasks belong to."""


@command.command("add", epilog=examples("taskservice user add alice"))
@click.argument("name", type=Text())
def add(name: str) -> None:
    """Add a user and print the first API key; it can't be shown again."""
    with service_app(may_create=True):
        print_key(lambda: user_service.add(name), name)


@command.command("list", epilog=examples("taskservice user list --json"))
@json_lines
def list_all(as_json: bool) -> None:
    """List the users."""
    with service_app():
        rows = user_schema.dump(user_queries.list_all(), many=True)
        print_rows(rows, ["name", "id", "createdAt"], as_json)
