"""What the commands on the server share: the settings, the app, and how they fail."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError

from taskservice.app import create_app
from taskservice.config import Config, ConfigError, unknown_names
from taskservice.database.engine import dispose
from taskservice.database.migrations import DatabaseError
from taskservice.problems import Problem
from taskservice.terminal import give_up, remark


def load_config(may_create: bool = False) -> Config:
    """The settings; one line and exit code 2 when one of them cannot be used.

    What only looks, or changes what is there, makes neither a database nor its secret key.
    """
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
        give_up(f"The database said: {error.orig}")
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
