"""A trigram index of the names of tasks, to search for a part of a name."""

# On PostgreSQL, the index needs the extension pg_trgm. The names are in a separate table, since
# each append to a log writes a new version of a row of `tasks`. For an index on `tasks`, PostgreSQL
# would insert all trigrams of the name again with each version. On SQLite, maintenance adds the
# names in batches. If the request that starts a task added its name, a third of the request's time
# would be spent on the index. The index covers tasks up to the row number in `task_names_indexed`.
# A search treats later tasks, and tasks in `task_names_outdated`, as candidates. The list of tasks
# checks the name of each candidate, so a candidate that does not match does no harm.

# ruff: noqa: S608 - all parts of these statements are constants

import re

from sqlalchemy import Connection, Integer, text
from sqlalchemy.exc import DBAPIError

from taskservice.database.types import Identifier

# The maximum number of trigrams in a query.
MAX_TRIGRAMS = 32
# The maximum number of names that one transaction adds or removes, in about 5 ms.
BATCH = 2_000
_OUTDATE = """
    INSERT OR IGNORE INTO task_names_outdated
    SELECT old.rowid, old.name_folded WHERE old.rowid <= (SELECT last FROM task_names_indexed);
"""
_LAST = "(SELECT coalesce(max(rowid), 0) FROM tasks)"
_DEFINITIONS: tuple[str, ...] = (
    "DROP TRIGGER IF EXISTS task_names_rename",
    "DROP TRIGGER IF EXISTS task_names_delete",
    "DROP TABLE IF EXISTS task_names",
    "DROP TABLE IF EXISTS task_names_indexed",
    "DROP TABLE IF EXISTS task_names_outdated",
    # The index stores neither the names nor the positions of trigrams.
    "CREATE VIRTUAL TABLE task_names USING fts5(name, content='', columnsize=0, detail=none, "
    "tokenize='trigram case_sensitive 1')",
    "CREATE TABLE task_names_indexed (last INTEGER NOT NULL)",
    "INSERT INTO task_names_indexed VALUES (0)",
    "CREATE TABLE task_names_outdated (id INTEGER PRIMARY KEY, name VARCHAR NOT NULL)",
    "CREATE TRIGGER task_names_rename AFTER UPDATE OF name_folded ON tasks "
    f"WHEN old.name_folded <> new.name_folded BEGIN {_OUTDATE} END",
    # After the row with the highest number is deleted, SQLite reuses the number.
    f"CREATE TRIGGER task_names_delete AFTER DELETE ON tasks BEGIN {_OUTDATE} "
    f"UPDATE task_names_indexed SET last = {_LAST} WHERE last > {_LAST}; END",
)
_POSTGRESQL = (
    "CREATE EXTENSION IF NOT EXISTS pg_trgm",
    "CREATE TABLE task_names (task_id uuid PRIMARY KEY, name_folded varchar NOT NULL)",
    "INSERT INTO task_names SELECT id, name_folded FROM tasks",
    # The pending list is limited to 256 KiB, since the request that exceeds the limit moves all
    # pending entries into the index.
    "CREATE INDEX task_names_parts ON task_names USING gin (name_folded gin_trgm_ops) "
    "WITH (gin_pending_list_limit = 256)",
    "CREATE FUNCTION task_names_follow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
    "IF TG_OP <> 'INSERT' THEN DELETE FROM {schema}.task_names WHERE task_id = old.id; END IF; "
    "IF TG_OP <> 'DELETE' THEN "
    "INSERT INTO {schema}.task_names VALUES (new.id, new.name_folded); END IF; "
    "RETURN NULL; END $$",
    "CREATE TRIGGER task_names_follow AFTER INSERT OR DELETE OR UPDATE OF name_folded ON tasks "
    "FOR EACH ROW EXECUTE FUNCTION task_names_follow()",
    "ANALYZE task_names",
)
# The SQLSTATEs of errors that mean that pg_trgm cannot be used: undefined_file,
# feature_not_supported, insufficient_privilege, and undefined_object if the operator class of
# pg_trgm is not in the search path.
_NOT_AVAILABLE = ("58P01", "0A000", "42501", "42704")
_EXISTS = text(
    "SELECT count(*) = 2 AND EXISTS (SELECT 1 FROM pragma_module_list WHERE name = 'fts5') "
    "FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'tasks' "
    "AND name IN ('task_names_rename', 'task_names_delete')"
)
# The row numbers of all tasks whose names may contain the text.
CANDIDATES = text(
    "SELECT rowid AS id FROM task_names WHERE task_names MATCH :trigrams "
    "UNION ALL SELECT id FROM task_names_outdated "
    "UNION ALL SELECT rowid FROM tasks WHERE rowid > (SELECT last FROM task_names_indexed)"
).columns(id=Integer)
POSTGRESQL_CANDIDATES = text(
    "SELECT task_id AS id FROM task_names WHERE name_folded LIKE :name_pattern ESCAPE '/'"
).columns(id=Identifier)
# pg_trgm ignores characters that are neither letters nor digits in the database's locale.
_SERVES = text(
    "SELECT to_regclass('task_names') IS NOT NULL AND CAST(:part AS text) ~ '[[:alnum:]]{3}'"
)
_IS_BEHIND = text(
    f"SELECT (SELECT last FROM task_names_indexed) < {_LAST} "
    "OR EXISTS (SELECT 1 FROM task_names_outdated)"
)
_OUTDATED = "(SELECT * FROM task_names_outdated ORDER BY id LIMIT :batch)"
_UPDATE = (
    f"INSERT INTO task_names (task_names, rowid, name) SELECT 'delete', id, name FROM {_OUTDATED}",
    "INSERT INTO task_names (rowid, name) SELECT old.id, name_folded "
    f"FROM {_OUTDATED} AS old CROSS JOIN tasks ON tasks.rowid = old.id "
    "WHERE old.id <= (SELECT last FROM task_names_indexed)",
    f"DELETE FROM task_names_outdated WHERE id IN (SELECT id FROM {_OUTDATED})",
    "INSERT INTO task_names (rowid, name) SELECT rowid, name_folded FROM tasks "
    "WHERE rowid > (SELECT last FROM task_names_indexed) ORDER BY rowid LIMIT :batch",
    "UPDATE task_names_indexed SET last = (SELECT max(rowid) FROM (SELECT rowid FROM tasks "
    "WHERE rowid > last ORDER BY rowid LIMIT :batch)) "
    f"WHERE last < {_LAST}",
)


def is_usable(connection: Connection, part: str = "any") -> bool:
    """Whether the index exists and can search for `part`."""
    if connection.dialect.name == "postgresql":
        return bool(connection.scalar(_SERVES, {"part": part}))
    return bool(connection.scalar(_EXISTS))


def ensure(connection: Connection) -> None:
    """Create the index if it is missing and the database supports it, with FTS5 or pg_trgm."""
    if is_usable(connection):
        return
    definitions, schema = _DEFINITIONS, None
    if connection.dialect.name == "postgresql":
        definitions = _POSTGRESQL
        schema = connection.scalar(text("SELECT quote_ident(current_schema())"))
    try:
        with connection.begin_nested():
            for definition in definitions:
                connection.exec_driver_sql(definition.format(schema=schema))
    except DBAPIError as error:
        state = getattr(error.orig, "sqlstate", None)
        if state not in _NOT_AVAILABLE and "no such module" not in str(error.orig):
            raise


def is_behind(connection: Connection) -> bool:
    """Whether the index lacks new names or contains outdated names."""
    is_filled_later = connection.dialect.name == "sqlite" and is_usable(connection)
    return is_filled_later and bool(connection.scalar(_IS_BEHIND))


def update(connection: Connection) -> None:
    """On SQLite, remove a batch of outdated names from the index and add a batch of new names."""
    for statement in _UPDATE:
        connection.execute(text(statement), {"batch": BATCH})


def trigram_query(part: str) -> str | None:
    """The FTS5 query for all trigrams of a case-folded text; None if the text is too short."""
    trigrams = dict.fromkeys(part[start : start + 3] for start in range(len(part) - 2))
    quoted = [trigram.replace('"', '""') for trigram in list(trigrams)[:MAX_TRIGRAMS]]
    return " AND ".join(f'"{trigram}"' for trigram in quoted) or None


def like_pattern(part: str) -> str:
    """The LIKE pattern for names that contain a case-folded text."""
    return "%" + re.sub("[%_/]", r"/\g<0>", part) + "%"
