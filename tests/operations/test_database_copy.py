"""`db copy`: all of a database into an empty one, both ways, even after an interruption."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import Connection, create_engine, insert, pool, select, text

from taskservice.config import Config
from taskservice.database import clock, migrations
from taskservice.database.address import parse
from taskservice.database.engine import dispose
from taskservice.database.migrations import DatabaseError
from taskservice.database.models import Log, LogChunk, Task
from taskservice.database.transactions import transaction
from taskservice.database.types import db
from taskservice.operations import database_copy, health
from tests.support.all_tables import PEOPLE, as_before, fill, seen
from tests.support.api_client import ApiClient
from tests.support.apps import Apps
from tests.support.commands import check, memory_of, one_line, run
from tests.support.databases import DATABASES, Databases
from tests.support.fork_server import run_forked
from tests.support.internals import rows, run_sql
from tests.support.receiver import Receiver
from tests.support.service import Service, environment
from tests.support.waiting import until

TABLES = [table.name for table in db.metadata.sorted_tables]
KILLED = -signal.SIGKILL
# The steps from one kill to the next.
STEP = int(os.environ.get("COPY_STEP", "31"))
AGE_HEARTBEAT = (
    "UPDATE service_heartbeat SET since = '2026-01-01T00:00:00.000Z', "
    "until = '2026-01-01T00:00:00.000Z'"
)


@dataclass
class Move:
    """Where a copy comes from and goes to, and what is there."""

    folder: Path
    source: str
    target: str
    config: Config
    apps: Apps

    def copy(self, *options: str) -> subprocess.CompletedProcess[str]:
        return run(self.folder, "db", "copy", self.source, self.target, *options)

    @contextmanager
    def app(self, url: str) -> Iterator[Flask]:
        app = self.apps.new(replace(self.config, DATABASE_URL=parse(url)))
        yield app
        dispose(app)

    def fill(self, receiver: Receiver, people: tuple[str, ...] = PEOPLE) -> list[ApiClient]:
        with self.app(self.source) as app:
            filled = fill(app, receiver, people)
            run_sql(app, AGE_HEARTBEAT)
        return filled

    def rows(self, url: str) -> Any:
        with self.app(url) as app:
            return rows(app)

    def seen(self, url: str, people: list[ApiClient]) -> Any:
        with self.app(url) as app:
            return [seen(as_before(app, person)) for person in people]

    @contextmanager
    def connection(self, url: str) -> Iterator[Connection]:
        engine = create_engine(parse(url), poolclass=pool.NullPool)
        with engine.begin() as connection:
            yield connection


def new_target(databases: Databases, kind: str, folder: Path) -> str:
    return databases.new_postgresql() if kind == "postgresql" else f"sqlite:///{folder / 'to.db'}"


def moving(request: Any, databases: Databases, folder: Path, config: Config, apps: Apps) -> Move:
    one, _, other = request.param.partition(" to ")
    (folder / "source").mkdir()
    source = databases.make(one, folder / "source")
    return Move(folder, source, new_target(databases, other, folder / "new"), config, apps)


@pytest.fixture
def settings(tmp_path: Path) -> Config:
    return Config(
        DATA=tmp_path, DATABASE_URL="sqlite://", SECRET_KEY="a secret key for tests, long enough",
        CALLBACK_ALLOWED=Config().CALLBACK_ALLOWED.parse("loopback"), THREADS=4,
    )  # fmt: skip


@pytest.fixture(params=[f"{one} to {other}" for one in DATABASES for other in DATABASES])
def move(
    request: pytest.FixtureRequest,
    databases: Databases,
    tmp_path: Path,
    settings: Config,
    apps: Apps,
) -> Move:
    return moving(request, databases, tmp_path, settings, apps)


both_ways = pytest.mark.parametrize(
    "move", ["sqlite to postgresql", "postgresql to sqlite"], indirect=True
)
to_postgresql = pytest.mark.parametrize("move", ["sqlite to postgresql"], indirect=True)
from_postgresql = pytest.mark.parametrize("move", ["postgresql to sqlite"], indirect=True)


# --- all of it ---------------------------------------------------------------------------


def test_copy_has_everything_that_the_api_returns(move: Move, receiver: Receiver) -> None:
    people = move.fill(receiver)
    before, answers = move.rows(move.source), move.seen(move.source, people)
    assert all(before.values()), [name for name, table_rows in before.items() if not table_rows]
    copied = move.copy()
    assert copied.returncode == 0, copied
    lines = [line.split() for line in copied.stdout.splitlines()]
    assert [line[0] for line in lines] == TABLES
    assert [int(line[1].replace(",", "")) for line in lines] == [len(before[t]) for t in TABLES]
    assert all(len(line[-1]) == 64 for line in lines)
    (printed,) = re.findall(r"TASKSERVICE_DATABASE_URL=([^ ,]+)", copied.stderr)
    listed = run(move.folder, "user", "list", "--json", DATABASE_URL=printed)
    assert len(listed.stdout.splitlines()) == len(people)
    assert "TASKSERVICE_SECRET_KEY" in copied.stderr
    assert sorted_rows(move.rows(move.target)) == sorted_rows(before)
    assert move.rows(move.source) == before
    assert move.seen(move.target, people) == answers
    findings = check(move.folder, DATABASE_URL=move.target)
    assert {findings[name]["state"] for name in ("revision", "deliveries")} <= {"ok"}


def sorted_rows(tables: dict[str, list[tuple[Any, ...]]]) -> dict[str, list[tuple[Any, ...]]]:
    """Databases sort text in different orders."""
    return {name: sorted(table_rows, key=repr) for name, table_rows in tables.items()}


@both_ways
def test_copy_works_like_any_other_database(move: Move, receiver: Receiver) -> None:
    (person,) = move.fill(receiver, ("alice",))
    assert move.copy().returncode == 0
    with move.app(move.target) as app:
        alice = as_before(app, person)
        receiver.answer = lambda exchange: exchange.write(b"HTTP/1.1 204 x\r\n\r\n")
        task = alice.start(claim=True, callback=receiver.url)
        alice.append(task, "one")
        assert alice.report(task, status="complete")["logs"] == ["one"]
        deliveries = alice.get(f"/task/{task['id']}/deliveries").json
        assert [delivery["state"] for delivery in deliveries or []] == ["delivered"]


@both_ways
def test_copy_and_its_return_have_the_same_checksums(
    move: Move, receiver: Receiver, databases: Databases
) -> None:
    move.fill(receiver)
    there = move.copy("--json")
    kind = "postgresql" if move.source.startswith("postgresql") else "sqlite"
    back = replace(
        move, source=move.target, target=new_target(databases, kind, move.folder / "back")
    )
    assert back.copy("--json").stdout == there.stdout
    lines = [json.loads(line) for line in there.stdout.splitlines()]
    assert [line["table"] for line in lines] == TABLES
    assert set(lines[0]) == {"table", "rows", "sha256"}


def test_sqlite_files_may_be_named_by_their_paths(databases: Databases, tmp_path: Path) -> None:
    databases.copy_sqlite(tmp_path / "source")
    before = (tmp_path / "source" / "taskservice.db").read_bytes()
    copied = run(tmp_path, "db", "copy", str(tmp_path / "source/taskservice.db"), f"{tmp_path}/to")
    assert copied.returncode == 0, copied
    assert (tmp_path / "to").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "source" / "taskservice.db").read_bytes() == before
    assert [path.name for path in (tmp_path / "source").iterdir()] == ["taskservice.db"]


# --- broken off --------------------------------------------------------------------------

# Killed before or after the n-th commit, with batches that are small.
KILLED_COPY = """
import itertools, os, signal, sys
from sqlalchemy.engine.default import DefaultDialect
from taskservice.cli import main
from taskservice.operations import database_copy

moments, at = itertools.count(1), int(sys.argv.pop(1))
commit = DefaultDialect.do_commit
database_copy.READ_ROWS = database_copy.BATCH_READS = 2


def killed(*args):
    if next(moments) == at:
        os.kill(os.getpid(), signal.SIGKILL)
    commit(*args)
    if next(moments) == at:
        os.kill(os.getpid(), signal.SIGKILL)

DefaultDialect.do_commit = killed
main(prog_name="taskservice")
"""


def copy_killed_at(move: Move, moment: int) -> int:
    command = ["-c", KILLED_COPY, str(moment), "db", "copy", move.source, move.target]
    done = run_forked(
        [sys.executable, *command], env=environment(move.folder),
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=60,
    )  # fmt: skip
    assert done.returncode in (0, KILLED), done
    return int(done.returncode)


@both_ways
def test_killed_copy_resumes(move: Move, receiver: Receiver) -> None:
    move.fill(receiver)
    before = move.rows(move.source)
    kills = 0
    # Each gets further than the one before.
    while copy_killed_at(move, moment=9) == KILLED:
        kills += 1
    assert kills > 4
    assert sorted_rows(move.rows(move.target)) == sorted_rows(before)


@both_ways
def test_copy_killed_at_many_points_resumes(
    move: Move, receiver: Receiver, databases: Databases
) -> None:
    move.fill(receiver, ("alice",))
    before = sorted_rows(move.rows(move.source))
    kind = "postgresql" if move.target.startswith("postgresql") else "sqlite"
    for moment in range(1, 1_000, STEP):
        folder = move.folder / str(moment)
        one = replace(move, target=new_target(databases, kind, folder))
        is_done = copy_killed_at(one, moment) == 0
        assert one.copy().returncode == (1 if is_done else 0) or "is not empty" in one.copy().stderr
        assert sorted_rows(one.rows(one.target)) == before
        if is_done:
            break
    assert moment > 50


MEGABYTE = 1024 * 1024


@both_ways
def test_long_log_and_large_tasks_are_copied_in_bounded_memory(
    move: Move, receiver: Receiver
) -> None:
    move.fill(receiver, ("alice",))
    large = f'{{"text": "{"x" * MEGABYTE}"}}'
    with move.app(move.source) as app, app.app_context(), transaction() as connection:
        task = dict(connection.execute(select(Task.__table__).limit(1)).one()._mapping)
        names = [name for name in task if name.endswith("_key") or name.endswith("_digest")]
        for _ in range(60):
            task |= {"id": clock.new_id(), "input": large, "output": large}
            connection.execute(insert(Task), task | dict.fromkeys(names))
        log_id = connection.scalar(select(Log.id))
        chunk = {"log_id": log_id, "count": 1, "text": "x" * 65_000}
        for number in range(1_600):
            connection.execute(insert(LogChunk), chunk | {"last": 1_000_000 + number})
    command = ("db", "copy", move.source, move.target)
    peak = memory_of(move.folder, *command, database="")
    print(f"{peak} MiB")
    assert peak < 160


@both_ways
def test_unfinished_copy_serves_nothing(move: Move, receiver: Receiver) -> None:
    move.fill(receiver, ("alice",))
    assert copy_killed_at(move, 15) == KILLED
    settings = {"DATABASE_URL": move.target}
    for command in (["serve"], ["user", "list"], ["db", "upgrade"], ["background"]):
        line = one_line(run(move.folder, *command, **settings), 1)
        assert line.endswith(
            "is an unfinished copy: run the same `taskservice db copy` again, or remove it"
        )
    assert check(move.folder, 1, **settings)["revision"]["state"] == "error"
    if move.target.startswith("sqlite"):
        backup = run(move.folder, "db", "backup", str(move.folder / "backup.db"), **settings)
        assert "is an unfinished copy" in one_line(backup, 1)
    again = replace(move, source=move.target, target=f"sqlite:///{move.folder / 'third.db'}")
    assert "is an unfinished copy" in one_line(again.copy(), 1)
    assert move.copy().returncode == 0
    assert run(move.folder, "user", "list", **settings).returncode == 0


@both_ways
def test_target_that_was_begun_from_another_source_is_refused(
    move: Move, receiver: Receiver, databases: Databases
) -> None:
    move.fill(receiver, ("alice",))
    assert copy_killed_at(move, 15) == KILLED
    databases.copy_sqlite(move.folder / "other")
    other = replace(move, source=f"sqlite:///{move.folder / 'other' / 'taskservice.db'}")
    assert "has an unfinished copy of " in one_line(other.copy(), 1)
    assert move.copy().returncode == 0


@both_ways
@pytest.mark.parametrize("side", ["source", "target"])
def test_change_of_what_was_copied_is_found(move: Move, receiver: Receiver, side: str) -> None:
    move.fill(receiver, ("alice",))
    assert copy_killed_at(move, 25) == KILLED
    with move.connection(getattr(move, side)) as connection:
        connection.execute(text("UPDATE agents SET description = 'changed'"))
    line = one_line(move.copy(), 1)
    assert "agents has changed in FROM or TO" in line


# --- refused -----------------------------------------------------------------------------


@both_ways
def test_target_that_is_finished_or_has_any_row_is_refused(move: Move, receiver: Receiver) -> None:
    move.fill(receiver, ("alice",))
    assert move.copy().returncode == 0
    before = move.rows(move.target)
    assert "is not empty: its table " in one_line(move.copy(), 1)
    assert move.rows(move.target) == before


@both_ways
def test_target_of_an_older_revision_is_refused_and_not_upgraded(
    move: Move, receiver: Receiver
) -> None:
    move.fill(receiver, ("alice",))
    migrations.upgrade(parse(move.target), "0008")
    assert "has a database of revision 0008" in one_line(move.copy(), 1)
    with move.connection(move.target) as connection:
        assert migrations.revision(connection) == "0008"


def test_files_and_tables_of_others_are_left_alone(
    databases: Databases, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    source = databases.copy_sqlite(tmp_path / "source")
    (tmp_path / "text").write_text("precious")
    with closing(sqlite3.connect(tmp_path / "other.db")) as connection:
        connection.execute("CREATE TABLE precious (id)")
    url = databases.new_postgresql()
    with create_engine(parse(url), poolclass=pool.NullPool).begin() as server:
        server.execute(text("CREATE TABLE precious (id int)"))
    cases = [
        (str(tmp_path / "text"), "is not an SQLite database"),
        (str(tmp_path / "other.db"), "tables of another program"),
        (url, "tables of another program"),
        (source, "FROM and TO are the same"),
        (str(tmp_path / "source" / ".." / "source" / "taskservice.db"), "FROM and TO are the same"),
        (str(tmp_path), "cannot be opened"),
    ]
    files = {path: path.read_bytes() for path in tmp_path.glob("**/*") if path.is_file()}
    for target, reason in cases:
        with subtests.test(reason):
            assert reason in one_line(run(tmp_path, "db", "copy", source, target), 1)
    assert all(path.read_bytes() == before for path, before in files.items())
    refused = run(tmp_path, "db", "copy", source, "mysql://x/y")
    assert (refused.returncode, "must be postgresql://" in refused.stderr) == (2, True)
    none = run(tmp_path, "db", "copy", str(tmp_path / "none.db"), str(tmp_path / "new.db"))
    assert "There is no database at" in one_line(none, 1)
    assert not (tmp_path / "new.db").exists()


@both_ways
def test_source_of_an_older_revision_is_refused_with_what_upgrades_it(
    move: Move, databases: Databases
) -> None:
    if move.source.startswith("postgresql"):
        move.source = databases.new_postgresql()
    else:
        move.source = f"sqlite:///{move.folder / 'old.db'}"
    migrations.upgrade(parse(move.source), "0008")
    line = one_line(move.copy(), 1)
    assert "is at revision 0008; `taskservice db upgrade`" in line
    if move.target.startswith("sqlite"):
        assert not Path(parse(move.target).database or "").exists()


@pytest.mark.parametrize("move", ["sqlite to sqlite", "sqlite to postgresql"], indirect=True)
def test_sqlite_file_that_is_served_is_refused(move: Move) -> None:
    with Service(move.folder / "source") as service:
        assert "is in use: stop the service" in one_line(move.copy(), 1)
        service.stop()
        assert move.copy().returncode == 0


@pytest.mark.parametrize(
    ("move", "side"),
    [("postgresql to sqlite", "source"), ("sqlite to postgresql", "target")],
    indirect=["move"],
)
def test_postgresql_that_is_served_is_refused(move: Move, side: str, receiver: Receiver) -> None:
    move.fill(receiver)
    served = getattr(move, side)
    migrations.upgrade(parse(served))
    with move.app(served) as app:
        with app.app_context():
            health.record()
        assert one_line(move.copy(), 1).endswith(
            "is in use: stop the service, and every other command, first, and wait for 25 s"
        )
        run_sql(app, AGE_HEARTBEAT)
    assert move.copy().returncode == 0


@both_ways
def test_copy_replaces_what_a_service_has_made_before_its_first_user(
    move: Move, receiver: Receiver
) -> None:
    move.fill(receiver, ("alice",))
    with Service(move.folder / "data", DATABASE_URL=move.target) as service:
        if move.target.startswith("sqlite"):
            assert "is in use: stop the service" in one_line(move.copy(), 1)
        service.stop()
    with move.app(move.target) as app:
        assert [name for name, table_rows in rows(app).items() if table_rows] == [
            "service_heartbeat"
        ]
        run_sql(app, AGE_HEARTBEAT)
    assert move.copy().returncode == 0
    assert sorted_rows(move.rows(move.target)) == sorted_rows(move.rows(move.source))


@from_postgresql
def test_no_one_writes_to_postgresql_during_the_copy(
    move: Move, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    move.fill(receiver, ("alice",))
    waiting = []
    finish = database_copy._finish

    def try_to_write(engine: Any) -> None:
        with move.connection(move.source) as connection:
            connection.execute(text("SET LOCAL lock_timeout = 100"))
            try:
                connection.execute(text("UPDATE users SET name = 'changed'"))
            except Exception as error:
                waiting.append(str(error))
                connection.rollback()
        finish(engine)

    monkeypatch.setattr(database_copy, "_finish", try_to_write)
    database_copy.copy(parse(move.source), parse(move.target))
    assert "lock timeout" in waiting[0]


@to_postgresql
def test_unavailable_server_is_one_line(move: Move, receiver: Receiver) -> None:
    move.target = "postgresql://alice:hidden@127.0.0.1:9/tasks?connect_timeout=2"
    line = one_line(move.copy(), 1)
    assert "hidden" not in line


@from_postgresql
def test_two_copies_into_one_target_do_not_mix(
    move: Move, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    move.fill(receiver, ("alice",))
    addresses = parse(move.source), parse(move.target)
    copy_table, second = database_copy._copy_table, list[bool]()

    def overtaken(reads: Any, engine: Any, index: int, last_key: Any) -> None:
        if TABLES[index] == "tasks" and not second:
            second.append(True)
            until(lambda: move.copy().returncode == 0)
        copy_table(reads, engine, index, last_key)

    monkeypatch.setattr(database_copy, "_copy_table", overtaken)
    with pytest.raises(DatabaseError):
        database_copy.copy(*addresses)
    assert sorted_rows(move.rows(move.target)) == sorted_rows(move.rows(move.source))
