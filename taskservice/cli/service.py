"""What the commands on the server share: the settings, the app, and how they fail."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import click

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
def service() -> Iterator[None]:
    """The service's app context, on a migrated database; failures become one line."""
    config = load_config()
    try:
        app = create_app(config)
        with app.app_context():
            yield
        dispose(app)
    except DatabaseError as error:
        give_up(str(error))
    except Problem as problem:
        messages = [
            str(text) for texts in problem.more.get("errors", {}).values() for text in texts
        ]
        give_up("; ".join(messages) or problem.detail)


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
