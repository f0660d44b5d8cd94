"""`taskservice key`: the API keys of all users."""

import click

from taskservice.cli.options import Duration, Text, examples, json_lines
from taskservice.cli.service_app import print_key, service_app
from taskservice.database import clock
from taskservice.schemas.users import key_schema
from taskservice.services import keys as key_service
from taskservice.terminal import print_line, print_rows

# A hundred years.
MAX_EXPIRY_SECONDS = 36_500 * 86_400


@click.group("key")
def command() -> None:
    """API keys, which requests send in the `apikey` header."""


@command.command(
    "add",
    epilog=examples(
        "taskservice key add alice --name laptop --expires 90d",
        "taskservice key add alice --name machine --agent summarizer",
    ),
)
@click.argument("user", type=Text())
@click.option("--name", type=Text(), required=True, help="The person or program that uses the key.")
@click.option("--agent", type=Text(), help="Limit the key to the tasks of this agent.")
@click.option(
    "--expires",
    type=Duration(minimum=1, maximum=MAX_EXPIRY_SECONDS, needs_unit=True),
    help="Time until it expires, such as 12h or 90d; never by default.",
)
def add(user: str, name: str, agent: str | None, expires: int | None) -> None:
    """Add a key to USER and print it; it can't be shown again."""
    expires_at = None if expires is None else clock.now(expires)
    with service_app():
        print_key(lambda: key_service.add(user, name, agent, expires_at), user)


@command.command("list", epilog=examples("taskservice key list"))
@json_lines
def list_all(as_json: bool) -> None:
    """List the keys of all users, without their secrets."""
    with service_app():
        rows = [key_schema.dump(row) | {"user": row.user_name} for row in key_service.list_all()]
        columns = ["user", "name", "hint", "agentId", "id", "createdAt", "expiresAt"]
        print_rows(rows, [*columns, "lastUsedAt", "revokedAt"], as_json)


@command.command(
    "revoke",
    epilog=examples(
        "taskservice key revoke 01a20e63-921a-7c04-8f6e-52a1d0b7c3e9",
        "taskservice key revoke --user alice",
    ),
)
@click.argument("key_id", type=Text(), required=False)
@click.option("--user", type=Text(), metavar="NAME", help="Revoke all keys of this user.")
def revoke(key_id: str | None, user: str | None) -> None:
    """Revoke a key, or all of a user: the service refuses it from the next request."""
    if (key_id is None) == (user is None):
        raise click.UsageError("Give KEY_ID or --user.")
    with service_app():
        if key_id is not None:
            key_service.revoke_any(key_id)
        elif user is not None:
            count = key_service.revoke_all(user)
            print_line(f"{count} key{'' if count == 1 else 's'} revoked")
