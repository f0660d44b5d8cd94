"""`user delete`: nothing of a user remains, whatever happens at the time; others keep theirs."""

import io
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from flask import Flask, current_app
from sqlalchemy import func, select, text

from taskservice.background import removal
from taskservice.cli import user
from taskservice.config import Config
from taskservice.database import name_index
from taskservice.database.models import Task
from taskservice.database.transactions import reading
from taskservice.services import users
from tests.support.agent_machine import AgentMachine
from tests.support.all_tables import fill, seen
from tests.support.api_client import ApiClient, add_user, expect, problem
from tests.support.apps import without_routes
from tests.support.commands import one_line, without_database
from tests.support.deliveries import finish, looping, make_due, make_message_due
from tests.support.fork_server import ForkedPopen, run_forked
from tests.support.internals import copy_task, rows
from tests.support.plain_browser import Browser
from tests.support.receiver import Receiver, answer
from tests.support.service import COMMAND, Service, environment
from tests.support.waiting import PATIENCE_SECONDS, until

Json = dict[str, Any]


@pytest.fixture
def command(config: Config, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a command on the database of the app."""

    def command(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        settings = environment(tmp_path, DATABASE_URL=str(config.DATABASE_URL))
        done = run_forked(
            [*COMMAND, *arguments], env=settings,
            capture_output=True, text=True, timeout=100, input=stdin,
        )  # fmt: skip
        done.stderr = without_database(done.stderr)
        return done

    return command


def names(app: Flask) -> set[str]:
    """The names in the index for parts of names, and those that still have to leave it."""
    with app.app_context(), reading() as connection:
        if connection.dialect.name == "postgresql":
            if not name_index.is_usable(connection):
                return set()
            return set(connection.scalars(text("SELECT name_folded FROM task_names")))
        outdated = connection.scalars(text("SELECT name FROM task_names_outdated"))
        query = text("SELECT count(*) FROM task_names WHERE task_names MATCH :trigrams")
        count = connection.scalar(query, {"trigrams": name_index.trigram_query("alice")})
        return {*outdated, *(["indexed"] if count else [])}


def test_nothing_of_the_user_remains_and_others_keep_everything(
    app: Flask, receiver: Receiver, command: Callable[..., Any]
) -> None:
    (bob,) = fill(app, receiver, ("bob",))
    before = rows(app), seen(bob)
    (alice,) = fill(app, receiver, ("alice",))
    alice.start(name="the name of alice's task")
    browser = Browser(app)
    browser.send("/sign-in", key=alice.key)
    assert browser.get("/").status_code == 200
    count = len(expect(alice.get("/task"), 200))
    webhooks = len(receiver.requests)
    deleted = command("user", "delete", "alice", "--yes", "--now")
    assert (deleted.returncode, deleted.stderr) == (0, "")
    assert deleted.stdout == f"user alice and {count} tasks deleted\n"
    now = rows(app)
    # The heartbeat belongs to nobody.
    del now["service_heartbeat"], before[0]["service_heartbeat"]
    assert (now, seen(bob)) == before
    assert not {name for name in names(app) if "alice" in name or name == "indexed"}
    assert len(receiver.requests) == webhooks
    problem(alice.get("/task"), 401)
    signed_out = browser.get("/")
    assert (signed_out.status_code, signed_out.headers["Location"]) == (303, "/sign-in")
    listed = command("user", "list", "--json").stdout
    assert ('"bob"' in listed, '"alice"' in listed) == (True, False)
    assert "No such user: alice" in one_line(
        command("user", "delete", "alice", "--yes", "--now"), 1
    )


def test_user_is_deleted_after_the_name_was_typed(
    alice: ApiClient, command: Callable[..., Any]
) -> None:
    for typed in ("bob\n", "", "\n"):
        refused = command("user", "delete", "alice", stdin=typed)
        assert (refused.returncode, refused.stdout) == (1, ""), refused
        expect(alice.get("/task"), 200)
    assert command("user", "delete", "alice", "--now", stdin="alice\n").returncode == 0
    problem(alice.get("/task"), 401)


def test_deletion_while_the_user_works_ends_all_of_it(service: Service, receiver: Receiver) -> None:
    alice, bob = service.add_user("alice"), service.add_user("bob")
    # No second attempt comes during the test.
    receiver.answer = answer(503, {"Retry-After": "3600"})
    pending = alice.start(claim=True, callback=receiver.url)
    alice.request("PATCH", f"/task/{pending['id']}", json={"status": "complete"}).raise_for_status()
    running, kept = alice.start(claim=True), bob.start(claim=True)
    started = threading.Event()
    statuses: dict[str, Counter[int]] = {"agent": Counter(), "starter": Counter()}

    def append() -> None:
        person, path = alice.copy(), f"/task/{running['id']}/logs"
        while not statuses["agent"][401]:
            response = person.request("POST", path, json={"logs": ["a line"]})
            statuses["agent"][response.status_code] += 1

    def start() -> None:
        person, body = alice.copy(), {"agentId": "summarizer", "claim": True}
        while not statuses["starter"][401]:
            response = person.request("POST", "/task", json=body)
            statuses["starter"][response.status_code] += 1
            if statuses["starter"][201] > 100:
                started.set()

    threads = [threading.Thread(target=target, daemon=True) for target in (append, start, start)]
    for thread in threads:
        thread.start()
    assert started.wait(60)
    webhooks = len(receiver.requests)
    deleted = service.run("user", "delete", "alice", "--yes", "--now")
    assert (deleted.returncode, without_database(deleted.stderr)) == (0, ""), deleted
    for thread in threads:
        thread.join(60)
    # An agent learns that its task is deleted before its key is.
    assert set(statuses["agent"]) == {201, 404, 401}, statuses
    assert set(statuses["starter"]) - {422} == {201, 401}, statuses
    assert len(receiver.requests) == webhooks
    bob.request("POST", f"/task/{kept['id']}/logs", json={"logs": ["mine"]}).raise_for_status()
    with without_routes(Config.from_environment(service.environment)):
        left = {table: len(stored) for table, stored in rows(current_app).items() if stored}
    # It belongs to nobody.
    left.pop("service_heartbeat", None)
    assert left == {
        "users": 1, "callback_secrets": 1, "agents": 1, "api_keys": 1, "tasks": 1, "logs": 1,
        "log_chunks": 1,
    }  # fmt: skip


def test_deletion_that_was_killed_continues_when_it_is_repeated(
    app: Flask, bob: ApiClient, config: Config, tmp_path: Path, command: Callable[..., Any]
) -> None:
    bob.start()
    before = rows(app)
    alice = add_user(app, "alice")
    ids = copy_task(app, alice.start(), 9_000)

    def count() -> int:
        with app.app_context(), reading() as connection:
            return int(connection.scalar(select(func.count()).select_from(Task)) or 0)

    process = ForkedPopen(
        [*COMMAND, "user", "delete", "alice", "--yes", "--now"],
        env=environment(tmp_path, DATABASE_URL=str(config.DATABASE_URL)),
    )
    until(lambda: count() < len(ids))
    process.kill()
    process.wait(60)
    left = count() - 1
    assert 0 < left < len(ids)
    assert '"alice"' in command("user", "list", "--json").stdout
    repeated = command("user", "delete", "alice", "--yes", "--now")
    assert repeated.stdout == f"user alice and {left} tasks deleted\n"
    assert rows(app) == before


def test_program_of_a_deleted_user_is_stopped_while_the_keys_still_work(
    service: Service, tmp_path: Path
) -> None:
    """The command is interrupted in the last minute of the keys, and then repeated."""
    alice = service.add_user("alice")
    machine = AgentMachine(tmp_path / "home", alice)
    program = machine.spawn_script("echo started; exec sleep 1000")
    assert program.read_line() == "started\n"
    deleting = ForkedPopen(
        [*COMMAND, "user", "delete", "alice", "--yes"], env=service.environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    _, errors = program.communicate(timeout=PATIENCE_SECONDS)
    assert "the task was deleted; stopping the program" in errors
    assert program.returncode == 128 + signal.SIGTERM
    assert deleting.poll() is None
    # The keys work, but no task that is started now remains, and its program is stopped too.
    assert alice.request("GET", "/user").status_code == 200
    for method in ("GET", "POST"):
        assert alice.request(method, "/callback-secret").status_code == 401
    later = machine.run_script("sleep 1000")
    assert "the task was deleted; stopping the program" in later.stderr
    deleting.send_signal(signal.SIGINT)
    printed, errors = deleting.communicate(timeout=PATIENCE_SECONDS)
    assert (deleting.returncode, printed) == (130, "")
    assert without_database(errors) == (
        "tasks deleted, programs stop; keys will be deleted in 60 s\n"
        "taskservice: user alice is only partly deleted: keys still work, and no webhooks are "
        "sent; run the command again to finish\n"
    )
    repeated = service.run("user", "delete", "alice", "--yes", "--now")
    assert repeated.stdout == "user alice and 0 tasks deleted\n"
    assert without_database(repeated.stderr) == ""
    assert alice.request("GET", "/user").status_code == 401


def test_keys_are_deleted_when_the_countdown_ends(
    app: Flask, alice: ApiClient, monkeypatch: pytest.MonkeyPatch, config: Config
) -> None:
    alice.start()
    monkeypatch.setattr(user, "COUNTDOWN_SECONDS", 2)
    monkeypatch.setenv("TASKSERVICE_DATABASE_URL", str(config.DATABASE_URL))
    monkeypatch.setenv("TASKSERVICE_SECRET_KEY", "a secret key for tests, long enough")
    done = CliRunner().invoke(user.command, ["delete", "alice", "--yes"])
    assert (done.exit_code, done.stdout) == (0, "user alice and 1 task deleted\n"), done
    assert done.stderr.endswith("tasks deleted, programs stop; keys will be deleted in 2 s\n")
    problem(alice.get("/user"), 401)


@pytest.mark.parametrize("format", ["standard", "ntfy"])
def test_nothing_is_sent_for_a_user_who_is_being_deleted(
    app: Flask, alice: ApiClient, bob: ApiClient, receiver: Receiver, format: str
) -> None:
    """Neither what is pending, nor what the clients cause while the keys still work."""

    def end_task(person: ApiClient, path: str = "") -> None:
        finish(person, person.start(claim=True, callback=f"{receiver.url}{person.name}{path}"))

    def add_hook() -> None:
        hook = {"target": f"{receiver.url}topic", "format": format, "events": ["task.ended"]}
        expect(alice.post("/hook", json=hook), 201)

    receiver.answer = answer(503)
    add_hook()
    end_task(alice)
    receiver.answer = answer(204)
    sent = len(receiver.requests)

    def countdown() -> Iterator[None]:
        add_hook()
        end_task(alice)
        make_due(app)
        make_message_due(app)
        # The loop sends what is due in the order of its times.
        with looping(app):
            end_task(bob)
            receiver.answer = answer(503)
            end_task(bob, "/repeated")
            receiver.answer = answer(204)
            make_due(app)
            receiver.wait_for(sent + 3)
        yield

    with app.app_context():
        assert removal.remove_user("alice", countdown()) == 2
    assert [request.path for request in receiver.requests[sent:]] == [
        "/bob", "/bob/repeated", "/bob/repeated",
    ]  # fmt: skip


class _Body(io.BytesIO):
    """The body of a request, whose user is deleted after its key was checked."""

    def __init__(self, app: Flask, body: bytes) -> None:
        super().__init__(body)
        self._app = app

    def read(self, size: int | None = -1) -> bytes:
        self._delete()
        return super().read(size)

    def readinto(self, buffer: Any) -> int:
        self._delete()
        return super().readinto(buffer)

    def _delete(self) -> None:
        def delete() -> None:
            with self._app.app_context():
                removal.remove_user("alice")

        if self.tell() == 0:
            with ThreadPoolExecutor(1) as thread:
                thread.submit(delete).result()


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "/agent/new", b"{}"),
        ("POST", "/key", b'{"name": "new"}'),
        ("POST", "/callback-secret", b"{}"),
    ],
)
def test_request_whose_user_is_deleted_before_it_writes_is_401(
    app: Flask, alice: ApiClient, method: str, path: str, body: bytes
) -> None:
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
    stream = _Body(app, body)
    problem(alice.request(method, path, input_stream=stream, headers=headers), 401)
    assert not any(stored for name, stored in rows(app).items() if name != "service_heartbeat")


@pytest.mark.parametrize(
    ("path", "read"), [("/user", "get"), ("/callback-secret", "current_callback_secret")]
)
def test_request_whose_user_is_deleted_before_it_reads_is_401(
    app: Flask, alice: ApiClient, monkeypatch: pytest.MonkeyPatch, path: str, read: str
) -> None:
    read_user = getattr(users, read)

    def delete_and_read(user_id: str) -> Any:
        _Body(app, b"").read()
        return read_user(user_id)

    monkeypatch.setattr(users, read, delete_and_read)
    problem(alice.get(path), 401)
