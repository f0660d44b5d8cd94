"""`taskservice callback`: test the address of a callback."""

import sys

import click

from taskservice.cli.options import Text, examples
from taskservice.cli.service_app import service_app
from taskservice.database import clock
from taskservice.errors import no_such_user
from taskservice.schemas import strict_json
from taskservice.services import attempts, users
from taskservice.terminal import print_line
from taskservice.webhooks import signing

SAMPLE = {
    "id": "00000000-0000-7000-8000-000000000000",
    "name": "callback test",
    "logs": ["This is a sample, sent by `taskservice callback test`."],
    "output": {},
    "status": "complete",
}


@click.group("callback")
def command() -> None:
    """Callbacks: the addresses that webhooks are sent to."""


@command.command(
    "test",
    epilog=examples(
        "taskservice callback test https://hooks.example.org/tasks",
        "taskservice callback test https://hooks.example.org/tasks --user alice",
    ),
)
@click.argument("url", type=Text())
@click.option(
    "--user", type=Text(), help="Sign with this user's secret instead of a throw-away one."
)
def test(url: str, user: str | None) -> None:
    """Send a sample webhook to URL and print the result in one sentence.

    The exit code is 0 if the receiver answered 2xx, else 1.
    """
    with service_app():
        secrets = [signing.new_secret()] if user is None else _secrets_of(user)
        sample = SAMPLE | {"callback": url, "finishedAt": clock.now()}
        outcome = attempts.post(url, secrets, clock.new_id(), strict_json.dumps(sample))
    print_line(outcome.message)
    sys.exit(0 if outcome.delivered else 1)


def _secrets_of(name: str) -> list[str]:
    user = next((user for user in users.list_all() if user.name == name), None)
    if user is None:
        raise no_such_user(name)
    return list(users.callback_secrets(user.id, clock.now()))
