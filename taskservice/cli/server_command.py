"""What the commands on the server share: the settings, the app, and how they fail."""

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy.exc import DBAPIError

from taskservice.app import create_app
from taskservice.config import Config, ConfigError, unknown_names
from taskservice.database.engine import dispose
from taskservice.database.migrations import DatabaseError
from taskservice.problems import Problem
from taskservice.terminal import give_up, has_stdout, open_standard_files, put_on_stdout, remark


def load_config(may_create: bool = False) -> Config:
    """The settings; one line and exit code 2 when one of them cannot be used.

    What only looks, or changes what is there, makes neither a database nor its secret key.
    """
    open_standard_files()
    for name in unknown_names():
        remark(f"{name} is no setting; is it misspelt?")
    try:
        return Config.from_environment(may_create=may_create)
    except ConfigError as error:
        give_up(str(error), 2)


@contextmanager
def one_line_failures() -> Iterator[None]:
    """What the database or the service refuses becomes one line and exit code 1."""
    try:
        yield
    except DatabaseError as error:
        give_up(str(error), error.exit_code)
    except DBAPIError as error:
        give_up(f"The database refused a statement: {error.orig}")
    except Problem as problem:
        errors = problem.more.get("errors", {})
        messages = [str(message) for texts in errors.values() for message in texts]
        give_up("; ".join(messages) or problem.detail)


@contextmanager
def service(may_create: bool = False) -> Iterator[None]:
    """The service's app context, on a migrated database; failures become one line."""
    config = load_config(may_create)
    with one_line_failures():
        app = create_app(config, may_create)
        with app.app_context():
            yield
        dispose(app)


def print_key(add: Callable[[], Any], user: str) -> None:
    """Add a key of this user and print it alone, or say in one line how to get another.

    Where stdout is closed nothing is added.
    """
    if not has_stdout:
        give_up("Nothing was added: stdout is closed, and a key is shown only once")
    key = add()
    try:
        put_on_stdout(key.text)
    except OSError as error:
        give_up(
            f"The key {key.name} of user {user} was added, but not printed: {error.strerror}; "
            f"`taskservice key revoke {key.id}` revokes it, "
            f"`taskservice key add {shlex.quote(user)} --name NAME` prints another"
        )
