"""What the commands on the server share: the settings, the app, and how they fail."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import click
from sqlalchemy.exc import DBAPIError

from taskservice.app import create_app
from taskservice.config import Config, ConfigError, unknown_names
from taskservice.db import dispose
from taskservice.migrations import DatabaseError
from taskservice.problems import Problem


def load_config() -> Config:
    """The settings; one line and exit code 2 when one of them cannot be used."""
    for name in unknown_names():
        click.echo(f"taskservice: {name} is no setting; is it misspelt?", err=True)
    try:
        return Config.from_environment()
    except ConfigError as error:
        give_up(str(error), 2)


def give_up(message: str, code: int = 1) -> NoReturn:
    click.echo(f"taskservice: {message}", err=True)
    sys.exit(code)


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
def service() -> Iterator[None]:
    """The service's app context, on a migrated database; failures become one line."""
    config = load_config()
    with one_line_failures():
        app = create_app(config)
        with app.app_context():
            yield
        dispose(app)


def print_rows(rows: Iterable[dict[str, Any]], columns: Sequence[str], as_json: bool) -> None:
    """Rows on stdout: one JSON object a line, or a table with aligned columns."""
    if as_json:
        for row in rows:
            click.echo(json.dumps(row))
        return
    table = [list(columns)] + [[str(row[name] or "-") for name in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        padded = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        click.echo("  ".join(padded).rstrip())
