"""Clocks that a test sets or advances: this machine's, the monotonic one, the database's."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import event

from taskservice import resources
from taskservice.background import timeouts
from taskservice.background.maintenance import Maintenance
from taskservice.database.engine import Database, dispose
from taskservice.database.transactions import transaction
from taskservice.database.types import db
from tests.support.internals import set_clock, set_for_database

STEP_SECONDS = 50.0
SHADOW = """
CREATE SCHEMA IF NOT EXISTS shifted;
CREATE TABLE shifted.clock (seconds float);
INSERT INTO shifted.clock VALUES (0);
CREATE FUNCTION shifted.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS
    'SELECT pg_catalog.clock_timestamp() + make_interval(secs => seconds) FROM shifted.clock';
"""


class Clocks:
    """Real clocks, and how many seconds each is ahead."""

    def __init__(self, app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
        self._app, self._monkeypatch = app, monkeypatch
        self._machine = self._monotonic = self._database = 0.0
        shifted = SimpleNamespace(monotonic=lambda: time.monotonic() + self._monotonic)
        monkeypatch.setattr(timeouts, "time", shifted)

    def set_machine(self, seconds: float) -> None:
        """Set the clock of this process this many seconds ahead of the real one."""
        self._machine = seconds
        set_clock(self._monkeypatch, seconds)

    def set_database(self, seconds: float) -> None:
        """Set the database's clock this many seconds ahead of the real one."""
        self._database = seconds
        with self._app.app_context():
            is_postgresql = db.engine.dialect.name == "postgresql"
        if is_postgresql:
            with self._app.app_context(), transaction() as connection:
                connection.exec_driver_sql("UPDATE shifted.clock SET seconds = %s", (seconds,))

    def go_on(self, seconds: float) -> None:
        """Let this time pass."""
        self._monotonic += seconds
        self.set_machine(self._machine + seconds)
        self.set_database(self._database + seconds)

    def go_on_with(self, *loops: Maintenance, seconds: float) -> None:
        """Let this time pass, with a round of each loop at least once a minute."""
        while seconds > 0:
            self.go_on(min(seconds, STEP_SECONDS))
            seconds -= STEP_SECONDS
            for loop in loops:
                loop.do_round()

    @contextmanager
    def shown_by_database(self) -> Iterator[None]:
        """The database asks this object for the time."""
        with self._app.app_context():
            is_sqlite = db.engine.dialect.name == "sqlite"
        with self._shown_by_sqlite() if is_sqlite else self._shown_by_postgresql():
            yield

    @contextmanager
    def _shown_by_postgresql(self) -> Iterator[None]:
        with self._app.app_context(), transaction() as connection:
            connection.exec_driver_sql(SHADOW)
        set_for_database(self._app, "search_path", "shifted, pg_catalog, public")
        yield
        set_for_database(self._app, "search_path", "public")
        with self._app.app_context(), transaction() as connection:
            connection.exec_driver_sql("DROP SCHEMA shifted CASCADE")

    @contextmanager
    def _shown_by_sqlite(self) -> Iterator[None]:
        """SQLite asks the machine, so its function is replaced on each connection."""
        real = sqlite3.connect(":memory:", check_same_thread=False)

        def strftime(form: str, moment: str, *modifiers: str) -> str:
            shifted = (f"{self._database} seconds",) if moment == "now" else ()
            values = (form, moment, *shifted, *modifiers)
            marks = ", ".join("?" * len(values))
            return str(real.execute(f"SELECT strftime({marks})", values).fetchone()[0])

        def prepare(connection: Any, _record: Any) -> None:
            connection.create_function("strftime", -1, strftime)

        with self._app.app_context():
            engines = (db.engine, resources.find(Database, self._app).reads.engine)
        dispose(self._app)
        for engine in engines:
            event.listen(engine, "connect", prepare)
        yield
        for engine in engines:
            event.remove(engine, "connect", prepare)
        dispose(self._app)
        real.close()
