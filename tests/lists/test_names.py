"""Searches for parts of names by the index that maintenance fills."""

import random
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from taskservice.app import create_app
from taskservice.background import removal
from taskservice.config import Config
from taskservice.database import name_index
from taskservice.database.engine import dispose
from taskservice.database.migrations import upgrade
from taskservice.database.transactions import transaction
from taskservice.services import lists
from tests.support.api_client import ApiClient, add_user, expect
from tests.support.databases import Databases
from tests.support.documents import block_in
from tests.support.internals import reads
from tests.support.marks import one_database

WORDS = (
    "nightly", "summary", "Straße", "ΣΊΣΥΦΟΣ", "日本語の要約", 'a "b" c', "import 77", "👩‍🚀 up",
    "odd \ufffe\ud7ff", "100%_/a",
)  # fmt: skip
PARTS = (
    *WORDS, "ight", "ly su", "STRASSE", "本語の", '"b"', 'a "', "7 n", "absent", "abs", "nig%",
    "ss", "y", "ort 7", "\ufffe", "\uffff", "\ufffd", "odd \ufffe", "odd \uffff", "odd \ufffd",
    "\ufffe\ufffd", "0%_", "%", "_", "/", "/a", "0%/", "%%",
)  # fmt: skip


@pytest.fixture(autouse=True)
def by_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the index though there are few tasks, and fill it in small batches."""
    monkeypatch.setattr(lists, "FIRST_SEARCHED", 1)
    monkeypatch.setattr(name_index, "BATCH", 3)


def index_names(app: Flask) -> None:
    with app.app_context():
        removal.index_names()


def ids_matching(person: ApiClient, part: str) -> list[str]:
    query = {"q": part, "sort": "createdAt", "fields": "id"}
    tasks = expect(person.get("/task", query_string=query), 200)
    return [task["id"] for task in tasks]


class Tasks:
    """The tasks of a person, and their names."""

    def __init__(self, person: ApiClient, seed: int) -> None:
        self.person, self.random = person, random.Random(seed)
        self.names: dict[str, str] = {}

    def change(self) -> None:
        self.random.choice([self.start, self.start, self.rename, self.delete])()

    def name(self) -> str:
        return " ".join(self.random.choices(WORDS, k=2))

    def start(self) -> None:
        name = self.name()
        self.names[self.person.start(name=name)["id"]] = name

    def rename(self) -> None:
        for task_id in self.random.choices(list(self.names), k=bool(self.names)):
            self.names[task_id] = self.name()
            self.person.report({"id": task_id}, name=self.names[task_id])

    def delete(self) -> None:
        """The newest ones too: their row numbers are given again."""
        for _ in range(min(self.random.randrange(4), len(self.names))):
            task_id = self.random.choice([list(self.names)[-1], *self.names])
            del self.names[task_id]
            expect(self.person.delete(f"/task/{task_id}"), 200)

    def check(self) -> None:
        for part in PARTS:
            keys = [key for key, name in self.names.items() if part.casefold() in name.casefold()]
            assert ids_matching(self.person, part) == keys, part


def test_index_finds_what_a_search_of_all_names_finds(
    app: Flask, alice: ApiClient, bob: ApiClient
) -> None:
    hers, his = Tasks(alice, 1), Tasks(bob, 101)
    for number in range(6):
        for _ in range(8):
            hers.change()
            his.change()
        if number % 3:
            index_names(app)
        hers.check()
    his.check()


def test_index_of_postgresql_follows_the_names(
    databases: Databases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With another kind of index, since pg_trgm is not on every server."""
    made = [text.replace("USING gin (name_folded gin_trgm_ops) WITH (gin_pending_list_limit = 256)",
                         "(name_folded)") for text in name_index._POSTGRESQL]  # fmt: skip
    monkeypatch.setattr(name_index, "_POSTGRESQL", made[1:])
    url = "postgresql+psycopg" + databases.new_postgresql().removeprefix("postgresql")
    upgrade(url, "0005")
    app = create_app(Config(DATA=tmp_path, DATABASE_URL=url, SECRET_KEY="x" * 40).completed())
    tasks, others = Tasks(add_user(app, "alice"), 6), Tasks(add_user(app, "bob"), 7)
    for _ in range(5):
        for _ in range(8):
            tasks.change()
            others.change()
        tasks.check()
    others.check()
    statements = [text for text, _ in reads(app, lambda: ids_matching(tasks.person, "nightly sum"))]
    assert any("FROM task_names" in text for text in statements)
    dispose(app)


@one_database
def test_search_reads_the_candidates_of_the_index(app: Flask, alice: ApiClient) -> None:
    for number in range(7):
        alice.start(name=f"nightly {number}")
    index_names(app)
    statements = [text for text, _ in reads(app, lambda: ids_matching(alice, "nightly 3"))]
    assert any("task_names MATCH" in text for text in statements)
    with app.app_context(), transaction() as connection:
        assert not name_index.is_behind(connection)


@one_database
def test_vacuum_keeps_the_index_correct(app: Flask, alice: ApiClient, config: Config) -> None:
    tasks = Tasks(alice, 3)
    for _ in range(20):
        tasks.change()
    index_names(app)
    with sqlite3.connect(config.DATA / "taskservice.db") as connection:
        connection.execute("VACUUM")
    connection.close()
    tasks.check()


@one_database
def test_index_of_a_file_with_other_row_numbers_is_rebuilt_as_documented(
    app: Flask, alice: ApiClient, config: Config
) -> None:
    tasks, gone = Tasks(alice, 5), alice.start()
    for _ in range(20):
        tasks.start()
    expect(alice.delete(f"/task/{gone['id']}"), 200)
    index_names(app)
    with sqlite3.connect(config.DATA / "taskservice.db") as connection:
        # As in a file that was made from the text of `.dump`.
        connection.execute("UPDATE tasks SET rowid = rowid - 1")
    with pytest.raises(AssertionError):
        tasks.check()
    statements = block_in("operate", "rebuild the names")
    connection.executescript(statements)
    connection.close()
    tasks.check()
    index_names(app)
    tasks.check()


@one_database
def test_index_of_a_rebuilt_table_is_rebuilt(app: Flask, alice: ApiClient) -> None:
    """As by a migration: triggers go with their table, and its rows get other numbers."""
    tasks = Tasks(alice, 4)
    for _ in range(20):
        tasks.change()
    index_names(app)
    with app.app_context(), transaction() as connection:
        connection.exec_driver_sql("DROP TRIGGER task_names_delete")
        connection.exec_driver_sql("UPDATE tasks SET rowid = rowid + 1000")
    tasks.check()
    with app.app_context(), transaction() as connection:
        name_index.ensure(connection)
        assert name_index.is_behind(connection)
    index_names(app)
    tasks.check()


@one_database
def test_sqlite_without_full_text_search_searches_all_names(
    app: Flask, alice: ApiClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    definitions: Any = [text.replace("fts5", "no_fts5") for text in name_index._DEFINITIONS]
    monkeypatch.setattr(name_index, "_DEFINITIONS", definitions)
    with app.app_context(), transaction() as connection:
        for name in ("rename", "delete"):
            connection.exec_driver_sql(f"DROP TRIGGER task_names_{name}")
        name_index.ensure(connection)
        assert not name_index.is_usable(connection)
    tasks = Tasks(alice, 5)
    for _ in range(20):
        tasks.change()
    index_names(app)
    tasks.check()
