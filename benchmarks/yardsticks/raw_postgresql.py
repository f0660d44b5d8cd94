"""Flask with psycopg alone: each write is one transaction, and a connection for each thread."""

import hashlib
import os
import threading
from datetime import UTC, datetime
from typing import Any

import orjson
import psycopg
from flask import Flask, Response, abort, g, request

TABLES = """
CREATE TABLE users (id uuid PRIMARY KEY);
CREATE TABLE api_keys (
    digest text PRIMARY KEY, user_id uuid NOT NULL REFERENCES users, revoked_at timestamptz
);
CREATE TABLE tasks (
    id uuid PRIMARY KEY, user_id uuid NOT NULL REFERENCES users, agent_id text NOT NULL,
    name text NOT NULL, status text NOT NULL, created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL, input jsonb NOT NULL, output jsonb NOT NULL,
    log_count integer NOT NULL
);
CREATE INDEX tasks_by_creation ON tasks (user_id, created_at, id);
CREATE TABLE log_lines (
    task_id uuid NOT NULL REFERENCES tasks, number integer NOT NULL, text text NOT NULL,
    PRIMARY KEY (task_id, number)
);
"""

_local = threading.local()


def connection() -> psycopg.Connection:
    """The connection of this thread."""
    if not hasattr(_local, "connection"):
        _local.connection = psycopg.connect(os.environ["YARDSTICK_DATABASE"], autocommit=True)
    current: psycopg.Connection = _local.connection
    return current


def authenticate() -> None:
    digest = hashlib.sha256(request.headers.get("apikey", "").encode()).hexdigest()
    query = "SELECT user_id FROM api_keys WHERE digest = %s AND revoked_at IS NULL"
    row = connection().execute(query, [digest]).fetchone()
    if row is None:
        abort(401)
    g.user_id = row[0]


def answer(status: int, body: dict[str, Any]) -> Response:
    return Response(orjson.dumps(body), status, mimetype="application/json")


def get(task_id: str) -> Response:
    row = connection().execute(
        "SELECT id, user_id, agent_id, name, status, created_at, updated_at, input, output, "
        "ARRAY(SELECT text FROM log_lines WHERE task_id = tasks.id ORDER BY number) "
        "FROM tasks WHERE id = %s AND user_id = %s",
        [task_id, g.user_id],
    ).fetchone()  # fmt: skip
    if row is None:
        abort(404)
    names = ("id", "userId", "agentId", "name", "status", "createdAt", "updatedAt", "input",
             "output", "logs")  # fmt: skip
    empty = {"claimedAt": None, "finishedAt": None, "error": None, "callback": None}
    return answer(200, dict(zip(names, row, strict=True)) | empty)


def append(task_id: str) -> Response:
    lines = orjson.loads(request.get_data()).get("logs")
    if not (isinstance(lines, list) and all(isinstance(line, str) for line in lines)):
        abort(422)
    writer = connection()
    with writer.transaction():
        row = writer.execute(
            "UPDATE tasks SET log_count = log_count + %s, updated_at = %s "
            "WHERE id = %s AND user_id = %s AND status = 'running' RETURNING log_count",
            [len(lines), datetime.now(UTC), task_id, g.user_id],
        ).fetchone()
        if row is None:
            abort(404)
        first = row[0] - len(lines) + 1
        writer.execute(
            "INSERT INTO log_lines SELECT %s, * FROM unnest(%s::int[], %s::text[])",
            [task_id, list(range(first, row[0] + 1)), lines],
        )
    return answer(201, {"logCount": row[0], "status": "running"})


def create_app() -> Flask:
    app = Flask(__name__, static_folder=None)
    app.before_request(authenticate)
    app.get("/api/v1/task/<task_id>")(get)
    app.post("/api/v1/task/<task_id>/logs")(append)
    return app


def store(url: str, keys: dict[str, str], tasks: list[dict[str, Any]]) -> None:
    """Make the database with keys, digest -> ID of the user, and tasks with their lines."""
    with psycopg.connect(url) as writer, writer.cursor() as cursor:
        cursor.execute(TABLES)
        cursor.executemany("INSERT INTO users VALUES (%s)", [[user] for user in set(keys.values())])
        cursor.executemany("INSERT INTO api_keys VALUES (%s, %s, NULL)", list(keys.items()))
        for task in tasks:
            fields = ("id", "userId", "name", "createdAt", "updatedAt", "logCount")
            cursor.execute(
                "INSERT INTO tasks VALUES (%s, %s, 'bench', %s, 'running', %s, %s, '{}', '{}', %s)",
                [task[name] for name in fields],
            )
            cursor.executemany(
                "INSERT INTO log_lines VALUES (%s, %s, %s)",
                [(task["id"], number, line) for number, line in enumerate(task["logs"], 1)],
            )
