"""`taskservice user` and `taskservice key`: the users of the service, and their API keys."""

import sys
import time
from collections.abc import Iterator

import click

from taskservice.background import removal
from taskservice.cli import options
from taskservice.cli.serve import service_app
from taskservice.database import clock
from taskservice.schemas.users import key_schema, user_schema
from taskservice.services import users as user_service
from taskservice.terminal import exit_with_error, print_line, print_rows, replace_line
from taskservice.terms import FULL, READ


@click.group("user", cls=options.Group)
def command() -> None:
    """Manage users: the people or teams that own tasks."""


@command.command("add", "alice")
@click.argument("name", type=options.text)
def add(name: str) -> None:
    """Add a user, and print the user's first API key, which can't be shown again."""
    with service_app(may_create=True):
        print_line(user_service.add(name).text)


@command.command("delete", "alice", short_help="Delete a user with all tasks, agents and keys.")
@click.argument("name", type=options.text)
@options.flag("--yes", help="Delete without asking for confirmation.")
@options.flag("--now", help="Delete the keys at once; programs may continue without a task.")
def delete(name: str, yes: bool, now: bool) -> None:
    """Permanently delete a user with all tasks, agents, keys and secrets.

    You need not stop the service. The tasks are deleted first, so that `taskservice run` stops
    their programs; the keys are deleted a minute later, since a client with an invalid key lets its
    program continue. No webhooks are sent. If the command is interrupted, run it again.
    """
    with service_app(makes_space=True):
        if not yes and click.prompt(f"Type the name to delete user {name}", err=True) != name:
            exit_with_error("Nothing was deleted: the names are different")
        try:
            count = removal.remove_user(name, () if now else _countdown())
        except KeyboardInterrupt:
            exit_with_error(
                f"user {name} is only partly deleted: keys still work, and no webhooks are sent; "
                "run the command again to finish",
                130,
            )
        print_line(f"user {name} and {count} task{'' if count == 1 else 's'} deleted")


# Clients make a request at least every 5 s, and a program has 10 s to end after SIGTERM.
COUNTDOWN_SECONDS = 60


def _countdown() -> Iterator[None]:
    """Count down the seconds on stderr: in place on a terminal, otherwise with a single line."""
    is_terminal = sys.stderr.isatty()
    try:
        for seconds in range(COUNTDOWN_SECONDS, 0, -1):
            if is_terminal or seconds == COUNTDOWN_SECONDS:
                text = f"tasks deleted, programs stop; keys will be deleted in {seconds} s"
                if is_terminal:
                    replace_line(f"{text} ")
                else:
                    print_line(text, err=True)
            time.sleep(1)
            yield
    finally:
        if is_terminal:
            print_line(err=True)


@command.command("list", "--json")
@options.json_lines
def list_all(as_json: bool) -> None:
    """List the users."""
    with service_app():
        rows = user_schema.dump(user_service.list_all(), many=True)
        print_rows(rows, ["name", "id", "createdAt"], as_json)


KEY_COLUMNS = (
    "user", "name", "hint", "agentId", "access", "login", "id", "createdAt", "expiresAt",
    "lastUsedAt", "revokedAt",
)  # fmt: skip


@click.group("key", cls=options.Group)
def key_command() -> None:
    """Add, list and revoke API keys.

    KEY_ID can be any unique prefix of a key's ID.
    """


@key_command.command(
    "add",
    "alice --name laptop --expires 90d",
    "alice --name machine --agent summarizer",
    "alice --name wall-screen --read",
    "alice --name ann@example.org --login",
)
@click.argument("user", type=options.text)
@options.text_option(
    "--name", required=True, help="Name of the person or program that uses the key."
)
@options.text_option("--agent", metavar="ID", help="Limit the key to the tasks of this agent.")
@options.flag("--read", help="Create a key that can only read.")
@options.flag(
    "--login",
    help="Print no key; instead, let the person whom the proxy calls NAME sign in to the dashboard "
    "(see TASKSERVICE_LOGIN_HEADER).",
)
@click.option(
    "--expires",
    type=options.Duration(minimum=1, maximum=36_500 * 86_400, needs_unit=True),
    help="Time until the key expires, such as 12h or 90d (default: never).",
)
def add_key(
    user: str, name: str, agent: str | None, read: bool, login: bool, expires: int | None
) -> None:
    """Add a key for USER, and print it; the key can't be shown again."""
    expires_at = None if expires is None else clock.now(expires)
    access = READ if read else FULL
    with service_app():
        key = user_service.add_key(user, name, agent, expires_at, access, login=login)
        print_line(f"{name} can sign in as {user}" if login else key.text)


@key_command.command("list")
@options.json_lines
def list_keys(as_json: bool) -> None:
    """List the keys of all users, without their secrets."""
    with service_app():
        rows = [key_schema.dump(row) | {"user": row.user_name} for row in user_service.list_keys()]
        print_rows(rows, KEY_COLUMNS, as_json)


@key_command.command("revoke", "01a20e63-921a-7c04-8f6e-52a1d0b7c3e9", "--user alice")
@click.argument("key_id", type=options.text, required=False)
@options.text_option("--user", metavar="NAME", help="Revoke all keys of this user.")
def revoke(key_id: str | None, user: str | None) -> None:
    """Revoke a key, or all keys of a user. Requests with a revoked key are refused."""
    if (key_id is None) == (user is None):
        raise click.UsageError("Give KEY_ID or --user.")
    with service_app():
        if key_id is not None:
            ids = user_service.matching_key_ids(key_id)
            user_service.revoke_any_key(options.only_match(ids, "key", key_id))
        elif user is not None:
            count = user_service.revoke_keys(user)
            print_line(f"{count} key{'' if count == 1 else 's'} revoked")
