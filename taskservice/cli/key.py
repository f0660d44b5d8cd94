"""`taskservice key`: the API keys of all users."""

import re

import click

from taskservice.cli.server_command import print_key, service
from taskservice.database import timestamps
from taskservice.queries import keys as key_queries
from taskservice.schemas.answers import key_schema
from taskservice.services import keys as key_service
from taskservice.terminal import print_rows

_UNITS = {"m": 60, "h": 3_600, "d": 86_400}


class Duration(click.ParamType[int]):
    """A number with a unit, such as 30m, 12h or 90d; converted to seconds."""

    name = "duration"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"([1-9][0-9]{0,5})([mhd])", value)
        if match is None:
            self.fail("must be a number with m, h or d, such as 90d", param, ctx)
        return int(match[1]) * _UNITS[match[2]]


@click.group("key")
def command() -> None:
    """API keys: what their bearers show in the apikey header."""


@command.command("add")
@click.argument("user")
@click.option("--name", required=True, help="Whose key it is: a person or a program.")
@click.option("--agent", help="Narrow the key to this agent.")
@click.option("--expires", type=Duration(), help="Valid for so long, such as 90d.")
def add(user: str, name: str, agent: str | None, expires: int | None) -> None:
    """Add a key to USER and print it, which is shown this once."""
    expires_at = None if expires is None else timestamps.now(expires)
    with service():
        print_key(lambda: key_service.add(user, name, agent, expires_at), user)


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def list_all(as_json: bool) -> None:
    """List the keys of all users, without their secrets."""
    with service():
        rows = [key_schema.dump(row) | {"user": row.user_name} for row in key_queries.list_all()]
        columns = ["user", "name", "hint", "agentId", "id", "createdAt", "expiresAt"]
        print_rows(rows, [*columns, "lastUsedAt", "revokedAt"], as_json)


@command.command("revoke")
@click.argument("key_id")
def revoke(key_id: str) -> None:
    """Revoke a key from the next request on."""
    with service():
        key_service.revoke_any(key_id)
