"""Internals that HTTP does not show: all routes, and all rows."""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from typing import Any
from uuid import uuid4

import pytest
from flask import Flask
from sqlalchemy import Engine, event, insert, select, text, update
from sqlalchemy.pool import QueuePool
from werkzeug.routing import Rule

from taskservice import resources
from taskservice.database import clock
from taskservice.database.connections import KeptConnections
from taskservice.database.engine import Database, dispose
from taskservice.database.models import ApiKey, Task
from taskservice.database.transactions import reading, transaction
from taskservice.database.types import db
from taskservice.services import events
from taskservice.terms import ERROR, SERVICE, TIMEOUT

PREFIX = "/api/v1"

# Routes that refuse a request without a body before they read the task.
FITTING_BODIES: dict[tuple[str, str], Any] = {
    ("POST", "/task/<task_id>/logs"): {"logs": ["a line"]},
    ("PUT", "/task/<task_id>/logs"): {"logs": ["a line"]},
    ("POST", "/task/<task_id>/question"): {"message": "May I?"},
    ("POST", "/task/<task_id>/question/<question_id>/answer"): {"action": "decline"},
}

# Before `set_clock` replaces it.
true_now = clock.now


def rules(app: Flask) -> Iterator[tuple[str, str]]:
    """(method, rule) of each route of the API; the rule without `/api/v1`."""
    for rule in app.url_map.iter_rules():
        if rule.rule.startswith(PREFIX):
            for method in sorted(rule.methods or ()):
                yield method, rule.rule.removeprefix(PREFIX).replace("<task:", "<")


def is_page(rule: Rule) -> bool:
    """Whether a rule is for a person's browser, not for a program."""
    return str(rule.endpoint).startswith(("dashboard.", "docs.static"))


def is_document(rule: Rule) -> bool:
    """Whether a rule is for the built documents."""
    return str(rule.endpoint).startswith("help.")


def filled(rule: str, **values: str) -> str:
    """The path of a rule with these values in it, and unknown IDs for all others."""
    return re.sub(r"<(?:.*?:)?(.*?)>", lambda match: values.get(match[1], str(uuid4())), rule)


def rows(app: Flask) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table, in the order of its primary key."""
    with app.app_context(), reading() as connection:
        return {
            name: [
                tuple(row)
                for row in connection.execute(select(table).order_by(*table.primary_key.columns))
            ]
            for name, table in db.metadata.tables.items()
        }


def column(app: Flask, task: dict[str, Any], name: str) -> Any:
    """One column of a task."""
    with app.app_context(), reading() as connection:
        return connection.scalar(select(getattr(Task, name)).where(Task.id == task["id"]))


def set_columns(app: Flask, task: dict[str, Any], **values: Any) -> None:
    """Change values that no request can change, such as the start of a task."""
    with app.app_context(), transaction() as connection:
        connection.execute(update(Task).where(Task.id == task["id"]).values(values))


def in_use(connections: KeptConnections) -> int:
    """The number of used ones."""
    assert isinstance(connections.engine.pool, QueuePool)
    return connections.engine.pool.checkedout() - len(connections._kept)


Statement = tuple[str, Any]


def run_sql(app: Flask, statement: str) -> None:
    with app.app_context(), transaction() as connection:
        connection.exec_driver_sql(statement)


def before_reads(app: Flask, act: Callable[[str, Any], None]) -> AbstractContextManager[None]:
    """Call `act` with each statement that is about to read, and its parameters."""
    return _before_statements(resources.find(Database, app).reads.engine, act)


def is_waiting_for_a_lock(app: Flask) -> bool:
    """Whether a transaction of this PostgreSQL database waits for another one."""
    waiting = (
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    with app.app_context(), reading() as connection:
        return bool(connection.exec_driver_sql(waiting).scalar_one())


def is_writer_waiting(app: Flask) -> bool:
    """Whether a writer waits for another one: on SQLite in the queue, on PostgreSQL for a lock."""
    queue = resources.find(Database, app).writer_queue
    return is_waiting_for_a_lock(app) if queue is None else queue._waiting > 0


def before_writes(app: Flask, act: Callable[[str, Any], None]) -> AbstractContextManager[None]:
    """Call `act` with each statement of a transaction that may write, and its parameters."""
    with app.app_context():
        return _before_statements(db.engine, act)


@contextmanager
def _before_statements(engine: Engine, act: Callable[[str, Any], None]) -> Iterator[None]:
    def before(*call: Any) -> None:
        act(call[2], call[3])

    event.listen(engine, "before_cursor_execute", before)
    try:
        yield
    finally:
        event.remove(engine, "before_cursor_execute", before)


def reads(app: Flask, deed: Callable[[], Any]) -> list[Statement]:
    """The statements with which an action reads, and their parameters."""
    statements: list[Statement] = []
    with before_reads(app, lambda *statement: statements.append(statement)):
        deed()
    return statements


def plan_of(app: Flask, sql: str, parameters: Any = ()) -> list[str]:
    """How SQLite finds the rows of a statement, step by step."""
    with app.app_context(), reading() as connection:
        rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", parameters)
        return [row.detail for row in rows]


def copy_task(app: Flask, task: dict[str, Any], count: int) -> list[str]:
    """Add copies of a task without its log; returns their IDs, oldest first."""
    ids = [clock.new_id() for _ in range(count)]
    with app.app_context(), transaction() as connection:
        of_task = select(Task.__table__).where(Task.id == task["id"])
        row = dict(connection.execute(of_task).mappings().one())
        connection.execute(insert(Task), [row | {"id": task_id} for task_id in ids])
    return ids


def end_for_silence(app: Flask, task: dict[str, Any]) -> None:
    """Do what maintenance does to a task whose agent is silent, without its callback."""
    now = clock.now()
    values = {
        "status": ERROR, "error_type": TIMEOUT, "error_message": "Its agent fell silent",
        "ended_by": SERVICE, "finished_at": now, "updated_at": now, "version": Task.version + 1,
    }  # fmt: skip
    with app.app_context(), transaction() as connection:
        ended = update(Task).where(Task.id == task["id"]).values(values)
        events.record_ends(connection, connection.execute(ended.returning(Task.__table__)).all())


def hang(app: Flask, task: dict[str, Any]) -> None:
    """Do what maintenance does to a task that hangs, without its events."""
    reason = "runs for 3 h, longer than its maximum of 1 h"
    set_columns(app, task, hanging_since=clock.now(), hanging_reason=reason)


def expire(app: Flask, key: dict[str, Any]) -> None:
    """Let a key have expired a second ago."""
    with app.app_context(), transaction() as connection:
        expired = update(ApiKey).where(ApiKey.id == key["id"])
        connection.execute(expired.values(expires_at=clock.now(-1)))


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def set_clock(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Set the clock of this process, not the database's, this many seconds ahead."""
    monkeypatch.setattr(clock, "now", lambda offset=0.0: true_now(seconds + offset))


def set_for_database(app: Flask, setting: str, value: str) -> None:
    """Set something for all connections to a PostgreSQL database, as an operator may."""
    with app.app_context(), reading() as connection:
        name = connection.scalar(text("SELECT current_database()"))
        # Otherwise the statement that ends it would be refused.
        connection.exec_driver_sql("SET default_transaction_read_only = off")
        connection.exec_driver_sql(f"ALTER DATABASE {name} SET {setting} = {value}")
    # It applies to new connections.
    dispose(app)
