"""Statements that are sent to PostgreSQL together."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from taskservice.database.postgresql import MAX_WAITING, BatchingConnection
from tests.support.databases import Databases

HOSTILE = "☃ \\ 'one' \"two\" %s %% ; COMMIT; --"


@pytest.fixture
def url(databases: Databases) -> str:
    url = databases.new_postgresql()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE notes (id integer PRIMARY KEY, text text NOT NULL)")
    return url


@pytest.fixture
def batching(url: str) -> Iterator[BatchingConnection]:
    with BatchingConnection.connect(url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def trips(batching: BatchingConnection) -> list[Any]:
    """One element for each wait for the server."""
    waits: list[Any] = []
    wait = batching.wait

    def counted(*arguments: Any, **options: Any) -> Any:
        waits.append(arguments)
        return wait(*arguments, **options)

    batching.wait = counted  # type: ignore[method-assign]
    return waits


def add(connection: BatchingConnection, number: int, text: str | None = HOSTILE) -> None:
    connection.execute_later(
        "INSERT INTO notes VALUES (%(id)s, %(text)s)", {"id": number, "text": text}
    )


def stored(url: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute("SELECT id, text FROM notes ORDER BY id").fetchall()


def test_transaction_of_two_inserts_and_a_read_takes_two_round_trips(
    url: str, batching: BatchingConnection, trips: list[Any]
) -> None:
    batching.execute_later("BEGIN")
    add(batching, 1)
    count = batching.execute("SELECT count(*), %(text)s", {"text": HOSTILE})
    assert count.fetchall() == [(1, HOSTILE)]
    add(batching, 2)
    batching.commit()
    assert len(trips) == 2
    assert stored(url) == [(1, HOSTILE), (2, HOSTILE)]


def test_failure_at_the_commit_stores_nothing(url: str, batching: BatchingConnection) -> None:
    batching.execute_later("BEGIN")
    add(batching, 1)
    add(batching, 1)
    with pytest.raises(psycopg.errors.UniqueViolation):
        batching.commit()
    batching.rollback()
    assert stored(url) == []
    batching.execute_later("BEGIN")
    add(batching, 3)
    batching.commit()
    assert stored(url) == [(3, HOSTILE)]


def test_failure_of_what_waited_is_raised_by_the_next_statement(
    url: str, batching: BatchingConnection
) -> None:
    batching.execute_later("BEGIN")
    add(batching, 1)
    add(batching, 2, None)
    with pytest.raises(psycopg.errors.NotNullViolation):
        batching.execute("SELECT 1")
    batching.rollback()
    assert stored(url) == []


def test_rollback_forgets_what_waits(url: str, batching: BatchingConnection) -> None:
    batching.execute_later("BEGIN")
    add(batching, 1)
    batching.rollback()
    batching.commit()
    assert stored(url) == []


def test_what_waits_comes_before_a_statement_on_another_cursor(
    batching: BatchingConnection,
) -> None:
    batching.execute_later("BEGIN")
    add(batching, 1)
    with batching.cursor() as cursor:
        assert cursor.execute("SELECT text FROM notes").fetchall() == [(HOSTILE,)]
    batching.commit()


def test_much_that_waits_is_sent_at_once(
    url: str, batching: BatchingConnection, trips: list[Any]
) -> None:
    batching.execute_later("BEGIN")
    for number in range(100):
        add(batching, number, "x" * 10_000)
    assert len(trips) == 100 * 10_000 // MAX_WAITING - 1
    batching.commit()
    assert [number for number, _ in stored(url)] == list(range(100))
