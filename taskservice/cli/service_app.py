"""The service's app for the server commands, whose errors become one line."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError

from taskservice.app import create_app
from taskservice.config import Config, ConfigError, unknown_names
from taskservice.database.engine import dispose
from taskservice.database.files import keep_owner_permissions
from taskservice.database.migrations import DatabaseError
from taskservice.errors import Problem
from taskservice.terminal import exit_with_error, notice, open_standard_files


def load_config(may_create: bool = False) -> Config:
    """The settings; an invalid one is printed in one line, and the exit code is 2.

    With `may_create`, a missing secret key is created.
    """
    open_standard_files()
    keep_owner_permissions()
    for name in unknown_names():
        notice(f"{name} is not a known setting; check the spelling")
    try:
        return Config.from_environment(may_create=may_create)
    except ConfigError as error:
        exit_with_error(str(error), 2)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn an error of the database or the service into one line and a nonzero exit code."""
    try:
        yield
    except DatabaseError as error:
        exit_with_error(str(error))
    except DBAPIError as error:
        exit_with_error(f"The database refused a statement: {error.orig}")
    except Problem as problem:
        errors = problem.more.get("errors", {})
        messages = [str(message) for texts in errors.values() for message in texts]
        exit_with_error("; ".join(messages) or problem.detail)


@contextmanager
def service_app(may_create: bool = False) -> Iterator[None]:
    """The service's app context, on a migrated database; an error becomes one line."""
    config = load_config(may_create)
    with one_line_errors():
        app = create_app(config, may_create)
        with app.app_context():
            yield
        dispose(app)
