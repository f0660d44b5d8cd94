"""Flask with sqlite3 alone: each write is one transaction, synced to the disk."""

import hashlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import orjson
from flask import Flask, Response, abort, g, request

TABLES = """
CREATE TABLE users (id TEXT PRIMARY KEY);
CREATE TABLE api_keys (
    digest TEXT PRIMARY KEY, user_id TEXT NOT NULL REFERENCES users, revoked_at TEXT
);
CREATE TABLE agents (
    user_id TEXT NOT NULL REFERENCES users, id TEXT NOT NULL, PRIMARY KEY (user_id, id)
);
CREATE TABLE tasks (
    id TEXT PRIMARY KEY, user_id TEXT NOT NULL REFERENCES users, agent_id TEXT NOT NULL,
    name TEXT NOT NULL, status TEXT NOT NULL, created_at TEXT NOT NULL, updated_at TEXT NOT NULL,
    input TEXT NOT NULL, output TEXT NOT NULL, log_count INTEGER NOT NULL,
    FOREIGN KEY (user_id, agent_id) REFERENCES agents
);
CREATE INDEX tasks_by_creation ON tasks (user_id, created_at, id);
CREATE TABLE log_lines (
    task_id TEXT NOT NULL REFERENCES tasks, number INTEGER NOT NULL, text TEXT NOT NULL,
    PRIMARY KEY (task_id, number)
) WITHOUT ROWID;
"""

_local = threading.local()
# Threads take turns here: SQLite's own wait for another writer sleeps, and is unfair.
_turn = threading.Lock()


def connect(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=5, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


def connection() -> sqlite3.Connection:
    """The connection of this thread."""
    if not hasattr(_local, "connection"):
        _local.connection = connect(os.environ["YARDSTICK_DATABASE"])
    current: sqlite3.Connection = _local.connection
    return current


@contextmanager
def transaction() -> Iterator[sqlite3.Connection]:
    with _turn:
        connection().execute("BEGIN IMMEDIATE")
        try:
            yield connection()
        except BaseException:
            connection().execute("ROLLBACK")
            raise
        connection().execute("COMMIT")


def authenticate() -> None:
    digest = hashlib.sha256(request.headers.get("apikey", "").encode()).hexdigest()
    query = "SELECT user_id FROM api_keys WHERE digest = ? AND revoked_at IS NULL"
    row = connection().execute(query, [digest]).fetchone()
    if row is None:
        abort(401)
    g.user_id = row[0]


def created(body: dict[str, Any]) -> Response:
    return Response(orjson.dumps(body), 201, mimetype="application/json")


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def start() -> Response:
    body = orjson.loads(request.get_data())
    agent_id = body.get("agentId")
    name, input_ = body.get("name") or agent_id, body.get("input") or {}
    if not (isinstance(name, str) and isinstance(input_, dict)):
        abort(422)
    task_id, moment = str(uuid4()), now()
    try:
        with transaction() as writer:
            writer.execute(
                "INSERT INTO tasks VALUES (?, ?, ?, ?, 'running', ?, ?, ?, '{}', 0)",
                [task_id, g.user_id, agent_id, name, moment, moment, orjson.dumps(input_).decode()],
            )
    except sqlite3.IntegrityError:
        abort(422)
    return created({
        "id": task_id, "userId": g.user_id, "agentId": agent_id, "name": name,
        "status": "running", "createdAt": moment, "updatedAt": moment, "claimedAt": None,
        "finishedAt": None, "input": input_, "output": {}, "logs": [], "error": None,
        "callback": None,
    })  # fmt: skip


def append(task_id: str) -> Response:
    lines = orjson.loads(request.get_data()).get("logs")
    if not (isinstance(lines, list) and all(isinstance(line, str) for line in lines)):
        abort(422)
    with transaction() as writer:
        row = writer.execute(
            "UPDATE tasks SET log_count = log_count + ?, updated_at = ? "
            "WHERE id = ? AND user_id = ? AND status = 'running' RETURNING log_count",
            [len(lines), now(), task_id, g.user_id],
        ).fetchone()
        if row is None:
            abort(404)
        first = row[0] - len(lines) + 1
        numbered = [(task_id, number, line) for number, line in enumerate(lines, first)]
        writer.executemany("INSERT INTO log_lines VALUES (?, ?, ?)", numbered)
    return created({"logCount": row[0], "status": "running"})


def create_app() -> Flask:
    app = Flask(__name__, static_folder=None)
    app.before_request(authenticate)
    app.post("/api/v1/task")(start)
    app.post("/api/v1/task/<task_id>/logs")(append)
    return app


def store(path: str, keys: dict[str, str], tasks: list[dict[str, Any]]) -> None:
    """Make the database with keys, digest -> ID of the user, and tasks without their lines."""
    writer = connect(path)
    writer.executescript(TABLES)
    writer.execute("BEGIN")
    users = [[user] for user in set(keys.values())]
    writer.executemany("INSERT INTO users VALUES (?)", users)
    writer.executemany("INSERT INTO agents VALUES (?, 'bench')", users)
    writer.executemany("INSERT INTO api_keys VALUES (?, ?, NULL)", keys.items())
    writer.executemany(
        "INSERT INTO tasks VALUES (?, ?, 'bench', ?, 'running', ?, ?, '{}', '{}', 0)",
        [[task[name] for name in ("id", "userId", "name", "createdAt", "updatedAt")]
         for task in tasks],
    )  # fmt: skip
    writer.execute("COMMIT")
    writer.close()
