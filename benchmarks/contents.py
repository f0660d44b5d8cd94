"""What the servers hold: users with keys and tasks, made over HTTP or copied in the database."""

import hashlib
import shutil
import sqlite3
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import requests
from sqlalchemy import create_engine

from benchmarks.load import request
from benchmarks.servers import Server, ours
from taskservice.database import name_index

LINES = [f"line {number} of a task that is measured" for number in range(1, 6)]
DAYS = 50
AGENTS = 20
SAMPLE = 200


@dataclass
class Person:
    """A user of a running service, who has an agent `bench`."""

    server: Server
    key: str
    session: requests.Session = field(default_factory=requests.Session)

    def __post_init__(self) -> None:
        self.session.headers["apikey"] = self.key
        self.call("PUT", "/agent/bench")

    def call(self, method: str, path: str, **options: Any) -> requests.Response:
        url = f"{self.server.url}/api/v1{path}"
        response = self.session.request(method, url, timeout=60, **options)
        response.raise_for_status()
        return response

    def start(self, lines: list[str], **fields: Any) -> dict[str, Any]:
        """A claimed task with these lines."""
        body = {"agentId": "bench", "claim": True, "callback": None, **fields}
        path = f"/task/{self.call('POST', '/task', json=body).json()['id']}"
        if lines:
            self.call("POST", f"{path}/logs", json={"logs": lines})
        task: dict[str, Any] = self.call("GET", path).json()
        return task

    def request(self, method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
        """The bytes of a request with the key of this user."""
        return request(method, f"/api/v1{path}", self.key, body, **headers)


def add_person(server: Server, name: str) -> Person:
    added = subprocess.run(
        [sys.executable, "-m", "taskservice", "user", "add", name],
        env=server.environment, cwd=server.checkout, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return Person(server, added.stdout.strip())


@dataclass
class Contents:
    """A reader with 50 tasks of 5 lines, and a writer with 16 tasks that grow."""

    reader: Person
    writer: Person
    tasks: list[dict[str, Any]]
    growing: list[dict[str, Any]]

    def keys(self) -> dict[str, str]:
        """The digest of each key, and the ID of its user."""
        people = ((self.reader, self.tasks), (self.writer, self.growing))
        return {
            hashlib.sha256(person.key.encode()).hexdigest(): tasks[0]["userId"]
            for person, tasks in people
        }

    def gets(self) -> list[bytes]:
        return [self.reader.request("GET", f"/task/{task['id']}") for task in self.tasks]

    def conditional_gets(self) -> list[bytes]:
        paths = [f"/task/{task['id']}" for task in self.tasks]
        tags = [self.reader.call("GET", path).headers["ETag"] for path in paths]
        return [
            self.reader.request("GET", path, If_None_Match=tag)
            for path, tag in zip(paths, tags, strict=True)
        ]

    def pages(self) -> list[bytes]:
        return [self.reader.request("GET", "/task?limit=50")]

    def appends(self) -> list[bytes]:
        body = b'{"logs":["a line of a task that grows"]}'
        return [
            self.writer.request("POST", f"/task/{task['id']}/logs", body) for task in self.growing
        ]

    def starts(self) -> list[bytes]:
        return [self.writer.request("POST", "/task", b'{"agentId":"bench"}')]


def fill(server: Server) -> Contents:
    """Create the users and tasks of a running service."""
    reader, writer = add_person(server, "reader"), add_person(server, "writer")
    tasks = [reader.start(LINES) for _ in range(50)]
    growing = [writer.start([]) for _ in range(16)]
    return Contents(reader, writer, tasks, growing)


COPIES = """
CREATE TEMP TABLE copies AS
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :rounds)
SELECT
    tasks.id AS old,
    substr(tasks.id, 1, length(tasks.id) - 12) || printf('%012x', row_number() OVER ()) AS new,
    logs.id AS old_log,
    (SELECT max(id) FROM logs) + row_number() OVER () AS new_log,
    strftime('%Y-%m-%dT%H:%M:%fZ', created_at, -(i * :seconds / :rounds) || ' seconds') AS moment
FROM n CROSS JOIN tasks LEFT JOIN logs ON logs.task_id = tasks.id
"""


DELIVERIES = """
INSERT INTO deliveries (id, task_id, user_id, callback_url, host, state, created_at, attempt_count)
SELECT id, id, user_id, 'http://127.0.0.1:9/', '127.0.0.1:9',
    iif(row_number() OVER () % 10 = 0, 'failed', 'delivered'), finished_at, 1
FROM tasks WHERE finished_at IS NOT NULL AND rowid % 10 = 0
"""


def multiply(database: Path, count: int, numbered: bool = False) -> None:
    """Copy the tasks of this SQLite file, with their lines, until there are `count`.

    The copies were started at any time of the last DAYS days. Over HTTP this would take minutes.
    The service must not run. If they are `numbered`, each has its own name, and some have
    deliveries.
    """
    connection = sqlite3.connect(database)
    # Nothing is lost if this breaks off; the service sets what it needs when it starts.
    connection.executescript(
        "PRAGMA journal_mode = MEMORY; PRAGMA synchronous = OFF; PRAGMA cache_size = -500000"
    )
    (there,) = connection.execute("SELECT count(*) FROM tasks").fetchone()
    rounds = max(count // there - 1, 1)
    connection.execute(COPIES, {"rounds": rounds, "seconds": DAYS * 86_400.0})
    # A task that has ended did so when it started.
    ended = "CASE WHEN finished_at IS NOT NULL THEN moment END"
    changed = {"id": "new", "created_at": "moment", "finished_at": ended}
    if numbered:
        changed |= {name: f"{name} || ' ' || copies.rowid" for name in ("name", "name_folded")}
    _copy(connection, "tasks", "tasks.id = old", **changed)
    _copy(connection, "logs", "logs.id = old_log", id="new_log", task_id="new")
    _copy(connection, "log_chunks", "log_chunks.log_id = old_log", log_id="new_log")
    if numbered:
        connection.execute(DELIVERIES)
    connection.commit()
    connection.close()


def _copy(connection: sqlite3.Connection, table: str, condition: str, **changed: str) -> None:
    """Copy the rows of a table for each row of `copies`, with these columns changed."""
    names = [column[0] for column in connection.execute(f"SELECT * FROM {table}").description]
    values = [changed.get(name, f"{table}.{name}") for name in names]
    connection.execute(
        f"INSERT INTO {table} ({', '.join(names)}) SELECT {', '.join(values)} "
        f"FROM copies JOIN {table} ON {condition} ORDER BY copies.rowid"
    )


def make_small(folder: Path) -> tuple[str, str]:
    """Make the data of a service with few tasks; returns the keys of its reader and its writer.

    Each agent has two tasks, one of which has ended.
    """
    with ours(folder) as server:
        reader, writer = add_person(server, "reader"), add_person(server, "writer")
        for number in range(AGENTS):
            agent = f"agent-{number}"
            reader.call("PUT", f"/agent/{agent}")
            reader.start(LINES, agentId=agent, name=f"nightly summary {number}")
            ended = reader.start(LINES, agentId=agent, name=f"synopsis {number}")
            report = {"status": "complete", "output": {"pages": number}}
            reader.call("PATCH", f"/task/{ended['id']}", json=report)
        return reader.key, writer.key


def grow(small: Path, folder: Path, size: int) -> Path:
    """Make the data of a service with `size` tasks of those in `small`; returns its database."""
    shutil.copytree(small, folder)
    database = folder / "taskservice.db"
    multiply(database, size, numbered=True)
    # What maintenance does in rounds.
    with create_engine(f"sqlite:///{database}").begin() as connection:
        while name_index.is_behind(connection):
            name_index.update(connection)
    return database


def some_ids(database: Path, size: int) -> list[str]:
    """The IDs of up to SAMPLE tasks of the reader, far from one another."""
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    step = max(size // SAMPLE, 1)
    # The first task is the reader's, the last one the writer's.
    of_reader = "user_id = (SELECT user_id FROM tasks WHERE rowid = 1)"
    query = f"SELECT id FROM tasks WHERE rowid % {step} = 0 AND {of_reader} LIMIT {SAMPLE}"
    ids = [str(UUID(task_id)) for (task_id,) in connection.execute(query)]
    connection.close()
    return ids


def long_log(person: Person, size: int) -> str:
    """The path of the log of a task with `size` lines."""
    path = f"/task/{person.start([])['id']}/logs"
    for first in range(1, size + 1, 100_000):
        last = min(first + 100_000, size + 1)
        body = "".join(f"line {number} of {size}\n" for number in range(first, last))
        person.call("PUT", path, data=body.encode())
    return path
