"""Databases of older versions: current rows in the tables of an older revision."""

from typing import Any

from sqlalchemy import Connection, column, create_engine, func, inspect, pool, select, table, text

from taskservice.database import migrations
from taskservice.database.models import ANNOTATIONS, INPUT_SCHEMA
from taskservice.database.types import db

Rows = dict[str, list[dict[str, Any]]]

REVISIONS = sorted(path.name[:4] for path in (migrations.FOLDER / "versions").glob("*.py"))
# Columns that versions before a revision did not have, and their values after an upgrade.
NOT_KEPT_BEFORE = {
    "0003": ["UPDATE tasks SET claim_key = NULL"],
    # The migration drops the only row, which the service writes again every few seconds.
    "0005": ["DELETE FROM service_heartbeat"],
    "0008": [
        "UPDATE tasks SET labels = '{}', progress = NULL, note = NULL, ended_by = NULL, "
        "parent_id = NULL, rerun_of = NULL",
        "UPDATE log_chunks SET at = NULL, times = NULL",
        "UPDATE attempts SET answer = NULL",
        "DELETE FROM task_labels",
    ],
    "0009": ["UPDATE tasks SET questions = '[]'", "DELETE FROM questions"],
    "0010": [
        f"UPDATE agents SET input_schema = '{INPUT_SCHEMA}', annotations = '{ANNOTATIONS}', "
        "tool = true"
    ],
    "0014": [
        "UPDATE agents SET worker_seen_at = NULL",
        "DELETE FROM deliveries WHERE hook_id IS NOT NULL",
        "DELETE FROM events",
        "DELETE FROM event_streams",
        "DELETE FROM hooks",
    ],
    "0016": ["UPDATE api_keys SET access = 'full', login = false", "DELETE FROM links"],
    "0017": ["DELETE FROM hook_tests"],
    "0019": ["UPDATE tasks SET seconds = NULL"],
    "0018": ["UPDATE agents SET tool = coalesce(tool, true), tool_since = NULL"],
    "0021": [
        "UPDATE tasks SET hanging_since = NULL, hanging_reason = NULL, "
        "hang_check_at = CASE status WHEN 'running' THEN claimed_at END"
    ],
    "0024": ["DELETE FROM sign_in_links"],
    "0025": ["UPDATE hooks SET after = 1"],
    "0012": ["UPDATE tasks SET started_by = NULL", "UPDATE questions SET answered_by = NULL"],
    "0022": [
        "UPDATE agents SET muted_until = NULL, muted_at = NULL, muted_by = NULL",
        "UPDATE agents SET told_hooks = (SELECT json_group_array(printf('%s-%s-%s-%s-%s', "
        "substr(id, 1, 8), substr(id, 9, 4), substr(id, 13, 4), substr(id, 17, 4), substr(id, 21)))"
        " FROM hooks WHERE hooks.user_id = agents.user_id) WHERE state = 'broken'",
    ],
}
TABLES_BEFORE = {"0005": {"service_heartbeat": "presence"}}
COLUMNS_BEFORE = {"0005": {"last_heartbeat_at": "heard_at", "heartbeat_deadline": "silent_at"}}


def not_kept_before(revision: str) -> list[str]:
    """The statements that reduce a current database to the content of this revision."""
    later = (statements for name, statements in NOT_KEPT_BEFORE.items() if revision < name)
    return [statement for statements in later for statement in statements]


def names_before(revision: str, changes: dict[str, dict[str, str]]) -> dict[str, str]:
    """The names at this revision of what later ones have renamed."""
    return {
        new: old
        for name, renamed in changes.items()
        if revision < name
        for new, old in renamed.items()
    }


def make_old_database(url: str, revision: str, rows: Rows) -> None:
    """Create an empty database of this revision, and add these current rows to it."""
    # The newest revision creates the index of names.
    migrations.upgrade(url, "head" if revision == REVISIONS[-1] else revision)
    engine = create_engine(url, poolclass=pool.NullPool)
    with engine.begin() as connection:
        tables = names_before(revision, TABLES_BEFORE)
        for new in db.metadata.sorted_tables:
            old = tables.get(new.name, new.name)
            if inspect(connection).has_table(old):
                _add(connection, revision, old, new.name, rows[new.name])
        if revision < "0007":
            _count_lines_as_before(connection, rows["tasks"])


def _add(
    connection: Connection, revision: str, old: str, new: str, rows: list[dict[str, Any]]
) -> None:
    existing = {info["name"] for info in inspect(connection).get_columns(old)}
    names = names_before(revision, COLUMNS_BEFORE)
    kept = {
        names.get(target_column.name, target_column.name): target_column
        for target_column in db.metadata.tables[new].columns
        if names.get(target_column.name, target_column.name) in existing
    }
    target = table(old, *(column(name, target_column.type) for name, target_column in kept.items()))
    added = [
        {name: row[target_column.name] for name, target_column in kept.items()} for row in rows
    ]
    # Before there were hooks, all deliveries were of callbacks.
    added = [
        row
        for row, of_today in zip(added, rows, strict=True)
        if "hook_id" in row or not of_today.get("hook_id")
    ]
    # Whether an agent was a tool was true or false.
    for row in added if revision < "0018" else ():
        if "tool" in row:
            row["tool"] = row["tool"] is not False
    connection.execute(target.insert(), added)
    if connection.dialect.name == "postgresql":
        for target_column in kept.values():
            if target_column.identity is not None:
                sequence = func.pg_get_serial_sequence(old, target_column.name)
                highest = max(row[target_column.name] for row in added)
                connection.execute(select(func.setval(sequence, highest)))


def _count_lines_as_before(connection: Connection, tasks: list[dict[str, Any]]) -> None:
    """The writer without a name had a row like the others, and timeouts a separate time."""
    types = db.metadata.tables["log_writers"].columns
    writers = table(
        "log_writers", *(column(target_column.name, target_column.type) for target_column in types)
    )
    counts = [
        {"task_id": task["id"], "writer": "", "seq": task["default_writer_seq"]}
        for task in tasks
        if task["default_writer_seq"]
    ]
    connection.execute(writers.insert(), counts)
    timed_out = "UPDATE tasks SET timed_out_at = finished_at WHERE error_type = 'timeout'"
    connection.execute(text(timed_out))
