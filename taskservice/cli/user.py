"""`taskservice user`: the users of the service."""

import click

from taskservice.background import removal
from taskservice.cli.options import Text, examples, json_lines
from taskservice.cli.service_app import print_key, service_app
from taskservice.schemas.users import user_schema
from taskservice.services import users as user_service
from taskservice.terminal import exit_with_error, print_line, print_rows


@click.group("user")
def command() -> None:
    """Users: the people or teams that tasks belong to."""


@command.command("add", epilog=examples("taskservice user add alice"))
@click.argument("name", type=Text())
def add(name: str) -> None:
    """Add a user and print the first API key; it can't be shown again."""
    with service_app(may_create=True):
        print_key(lambda: user_service.add(name), name)


@command.command(
    "delete",
    short_help="Delete a user with everything of theirs.",
    epilog=examples("taskservice user delete alice", "taskservice user delete alice --yes"),
)
@click.argument("name", type=Text())
@click.option("--yes", is_flag=True, help="Do not ask for the name again.")
def delete(name: str, yes: bool) -> None:
    """Delete a user with all tasks, agents, keys and secrets, for good.

    The service may run meanwhile. The tasks go first, so that their agents stop; no webhook is
    sent. The command can be interrupted and repeated.
    """
    with service_app():
        if not yes and click.prompt(f"Type the name to delete user {name}", err=True) != name:
            exit_with_error("Nothing was deleted: the name is another one")
        count = removal.remove_user(name)
        print_line(f"user {name} and {count} task{'' if count == 1 else 's'} deleted")


@command.command("list", epilog=examples("taskservice user list --json"))
@json_lines
def list_all(as_json: bool) -> None:
    """List the users."""
    with service_app():
        rows = user_schema.dump(user_service.list_all(), many=True)
        print_rows(rows, ["name", "id", "createdAt"], as_json)
