"""Large data: a full log and very many tasks, read, listed and deleted in bounded memory."""

import json
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from tests.support.api_client import API, RemoteClient
from tests.support.concurrency import at_once, copies
from tests.support.databases import Databases
from tests.support.mcp import TASKS as MCP_TASKS
from tests.support.mcp import McpClient
from tests.support.memory import MEGABYTE, memory
from tests.support.quiet_writer import QuietWriter
from tests.support.service import Service

JSON = "application/json"
# What an answer of any size may add to the memory of the service.
BOUND = 48 * MEGABYTE
LINES = "x" * 99 + "\n"
TASKS = 100_000


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def sqlite_service(data: Path) -> Iterator[Service]:
    with Service(data) as service:
        yield service


@pytest.fixture
def remote_alice(sqlite_service: Service) -> RemoteClient:
    return sqlite_service.add_user()


def forget_peak(service: Service) -> int:
    """Let the kernel note from now on what is most; returns the bytes in memory now."""
    (worker,) = service.workers()
    Path(f"/proc/{worker}/clear_refs").write_text("5")
    return memory(service, "VmRSS")


def restart(service: Service) -> None:
    """What was in memory before would leave room for what comes."""
    service.stop()
    service.start()


def fill_log(person: RemoteClient) -> dict[str, Any]:
    """A task whose log is full up to its limit of 100 MiB."""
    task = person.start()
    for _ in range(11):
        body = (LINES * 95_000).encode()
        answer = person.request("PUT", f"/task/{task['id']}/logs", data=body)
        assert answer.status_code == 201
    assert person.request("PUT", f"/task/{task['id']}/logs", data=body).status_code == 413
    return task


def read(service: Service, person: RemoteClient, method: str, path: str) -> tuple[int, int]:
    """Read an answer piece by piece; returns its bytes, and the memory it cost at most."""
    restart(service)
    before = forget_peak(service)
    size = 0
    with person.request(method, path, stream=True) as answer:
        assert answer.status_code == 200
        for piece in answer.iter_content(MEGABYTE):
            size += len(piece)
    return size, memory(service, "VmHWM") - before


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_full_log_is_got_listed_and_deleted_in_bounded_memory(
    databases: Databases, tmp_path: Path, kind: str
) -> None:
    url = databases.make(kind, tmp_path / "data")
    with Service(tmp_path / "data", DATABASE_URL=url) as service:
        alice = service.add_user()
        task = fill_log(alice)
        for method, path in (
            ("GET", f"/task/{task['id']}"),
            ("GET", "/task"),
            ("DELETE", f"/task/{task['id']}"),
        ):
            size, cost = read(service, alice, method, path)
            assert size > 100 * MEGABYTE
            assert cost < BOUND
        assert alice.request("GET", "/task").json() == []


def test_full_log_that_is_got_listed_and_deleted_keeps_no_writer_waiting(
    sqlite_service: Service, remote_alice: RemoteClient
) -> None:
    """A writer waits at most 250 ms more than it does without these requests."""
    task = fill_log(remote_alice)
    writer = QuietWriter(remote_alice)
    with writer:
        time.sleep(5)
    usual = writer.worst
    for method, path in (
        ("GET", f"/task/{task['id']}"),
        ("GET", f"/task/{task['id']}/logs?after=500000"),
        ("GET", "/task"),
        ("DELETE", f"/task/{task['id']}?fields=id"),
    ):
        with writer:
            with remote_alice.request(method, path, stream=True) as answer:
                assert answer.status_code == 200
                for _ in answer.iter_content(MEGABYTE):
                    pass
            time.sleep(0.5)
        print(f"{method} {path[:20]}: {1000 * writer.worst:.0f} ms, else {1000 * usual:.0f} ms")
        assert writer.worst < 0.25 + usual


@pytest.mark.parametrize(
    ("body", "content_type", "most"),
    [
        (b"ab\n" * (3 * MEGABYTE), "text/plain", 100),
        (b"\n" * (9 * MEGABYTE), "text/plain", 100),
        # Almost as many as JSON may have. Here each line is a separate object for a while.
        (b'{"logs":[' + b'"",' * 699_000 + b'""]}', JSON, 250),
        (b'{"logs":[' + b'"ab",' * 699_000 + b'""]}', JSON, 250),
    ],
    ids=["short lines", "empty lines", "empty strings", "short strings"],
)
def test_concurrent_large_appends_cost_little_memory(
    sqlite_service: Service, remote_alice: RemoteClient, body: bytes, content_type: str, most: int
) -> None:
    tasks = [remote_alice.start() for _ in range(4)]
    headers = {"Content-Type": content_type}
    before = forget_peak(sqlite_service)
    appends = [
        partial(one.request, "POST", f"/task/{task['id']}/logs", data=body, headers=headers)
        for one, task in zip(copies(remote_alice, 4), tasks, strict=True)
    ]
    statuses = [answer.status_code for answer in at_once(appends)]
    cost = (memory(sqlite_service, "VmHWM") - before) // MEGABYTE
    print(f"{cost} MiB")
    assert cost < most
    assert 201 in statuses
    assert set(statuses) <= {201, 503}


def test_bodies_that_are_refused_cost_little_memory(
    sqlite_service: Service, remote_alice: RemoteClient
) -> None:
    task = remote_alice.start(claim=True)
    nested = b"[" * 29 + b"]" * 29 + b","
    start = b'{"agentId":"summarizer","input":{"a":['
    for method, path, head, size in (
        ("POST", "/task", start, 10 * MEGABYTE),
        ("POST", "/task", start, 2 * MEGABYTE),
        ("PATCH", f"/task/{task['id']}", b'{"output":{"a":[', 2 * MEGABYTE),
        ("POST", f"/task/{task['id']}/logs", b'{"logs":[{"a":[', 10 * MEGABYTE),
    ):
        body = head + nested * ((size - 100) // len(nested)) + b"0]}}"
        restart(sqlite_service)
        before = forget_peak(sqlite_service)
        send = partial(
            RemoteClient.request,
            method=method,
            path=path,
            data=body,
            headers={"Content-Type": JSON},
        )
        answers = at_once([partial(send, person) for person in copies(remote_alice, 2)])
        assert {answer.status_code for answer in answers} <= {400, 413}
        assert memory(sqlite_service, "VmHWM") - before < 100 * MEGABYTE


def test_very_many_tasks_are_listed_in_bounded_memory(
    sqlite_service: Service, remote_alice: RemoteClient, data: Path
) -> None:
    task = remote_alice.start(input={"text": "x" * 400})
    multiply(data / "taskservice.db", task["id"], TASKS - 1)
    size, cost = read(sqlite_service, remote_alice, "GET", "/task")
    assert size > TASKS * 500
    assert cost < BOUND
    ids = {task["id"] for task in remote_alice.request("GET", "/task?fields=id").json()}
    assert len(ids) == TASKS


def test_tasks_that_are_just_read_together_are_listed_in_bounded_memory(
    sqlite_service: Service, remote_alice: RemoteClient, data: Path
) -> None:
    # Letters for which text takes four bytes a letter in Python, and those that JSON escapes.
    object_, escaped = {"text": "😀" * 4_000}, "\x01" * 1_000
    task = remote_alice.start(input=object_, claim=True)
    path = f"/task/{task['id']}"
    remote_alice.request("POST", f"{path}/logs", json={"logs": [escaped] * 8})
    ended = {"status": "error", "error": {"message": escaped * 4}, "output": object_}
    remote_alice.request("PATCH", path, json=ended).raise_for_status()
    multiply(data / "taskservice.db", task["id"], 1_000)
    for query, count in (("", 1_000), ("?limit=1000", 1_000), ("?limit=100", 100)):
        size, cost = read(sqlite_service, remote_alice, "GET", f"/task{query}")
        assert size > count * 50_000
        assert cost < BOUND


def test_large_tasks_are_listed_in_bounded_memory(
    sqlite_service: Service, remote_alice: RemoteClient
) -> None:
    large = {"text": "x" * (MEGABYTE - 20)}
    for _ in range(40):
        task = remote_alice.start(input=large, claim=True)
        remote_alice.request(
            "PATCH", f"/task/{task['id']}", json={"output": large}
        ).raise_for_status()
    # A whole list, a page that is read by one statement, and one whose positions are read first.
    for query in ("", "?limit=100", "?limit=500"):
        size, cost = read(sqlite_service, remote_alice, "GET", f"/task{query}")
        assert size > 80 * (MEGABYTE - 20)
        assert cost < BOUND
    size, cost = read(sqlite_service, remote_alice, "GET", "/task?limit=1000&fields=id")
    assert size < MEGABYTE
    assert cost < 8 * MEGABYTE


def multiply(path: Path, task_id: str, count: int) -> None:
    """So many copies of a task, made in the database: through HTTP it would take minutes."""
    connection = sqlite3.connect(path)
    rows = connection.execute("SELECT * FROM tasks LIMIT 0")
    columns = [column[0] for column in rows.description if column[0] != "id"]
    connection.execute(
        f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count}) "
        f"INSERT INTO tasks (id, {', '.join(columns)}) "
        f"SELECT substr(id, 1, 20) || printf('%012x', i), {', '.join(columns)} "
        "FROM n CROSS JOIN tasks WHERE id = ?",
        [task_id.replace("-", "")],
    )
    connection.commit()
    connection.close()


def test_slow_reader_holds_no_transaction(
    sqlite_service: Service, remote_alice: RemoteClient, data: Path
) -> None:
    fill_log(remote_alice)
    with socket.create_connection(("127.0.0.1", sqlite_service.port)) as reader:
        key = remote_alice.session.headers["apikey"]
        reader.sendall(f"GET {API}/task HTTP/1.1\r\nHost: x\r\napikey: {key!s}\r\n\r\n".encode())
        for _ in range(3):
            assert reader.recv(1)
            time.sleep(0.2)
        remote_alice.start()
        connection = sqlite3.connect(data / "taskservice.db")
        # With a reader in an old transaction the log of writes could not be emptied.
        checkpoint = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        connection.close()
        assert checkpoint[0] == 0
        assert reader.recv(1)


def test_dropped_log_is_swept_from_the_database(
    sqlite_service: Service, remote_alice: RemoteClient, data: Path
) -> None:
    task = fill_log(remote_alice)
    read(sqlite_service, remote_alice, "DELETE", f"/task/{task['id']}")
    connection = sqlite3.connect(data / "taskservice.db")
    assert connection.execute("SELECT count(*) FROM log_chunks").fetchone() != (0,)
    # Older than any answer that may still be reading it.
    connection.execute("UPDATE logs SET dropped_at = '2026-01-01T00:00:00.000Z'")
    connection.commit()
    until = time.monotonic() + 60
    while connection.execute("SELECT count(*) FROM logs").fetchone() != (0,):
        assert time.monotonic() < until
        time.sleep(0.5)
    assert connection.execute("SELECT count(*) FROM log_chunks").fetchone() == (0,)
    connection.close()
    assert json.loads(remote_alice.request("GET", "/task").text) == []


def test_reports_on_large_outputs_do_not_make_other_writers_wait(
    sqlite_service: Service, remote_alice: RemoteClient
) -> None:
    large: dict[str, Any] = {"output": {"large": [{}] * 340_000}}
    people = copies(remote_alice, 4)
    paths = [f"/task/{remote_alice.start(claim=True)['id']}" for _ in people]
    for person, path in zip(people, paths, strict=True):
        person.request("PATCH", path, data=json.dumps(large), headers={"Content-Type": JSON})
    others = f"/task/{remote_alice.start()['id']}/logs"
    is_done = threading.Event()

    def seconds(person: RemoteClient, method: str, path: str, body: Any) -> float:
        began = time.monotonic()
        person.request(method, path, json=body, timeout=120).raise_for_status()
        return time.monotonic() - began

    def report(person: RemoteClient, path: str) -> list[float]:
        return [seconds(person, "PATCH", path, {"output": {"n": n}}) for n in range(6)]

    def append() -> list[float]:
        waits = []
        while not is_done.is_set():
            waits.append(seconds(remote_alice, "POST", others, {"logs": ["a line"]}))
        return waits

    with ThreadPoolExecutor(1) as pool:
        appends = pool.submit(append)
        try:
            reports = at_once([partial(report, *pair) for pair in zip(people, paths, strict=True)])
        finally:
            is_done.set()
        waits = median(appends.result())
    # In one queue with the reports they would wait as long as these.
    usual = median(chain.from_iterable(reports))
    print(f"a report {usual:.2f} s, an append {waits:.2f} s")
    assert waits < usual / 3


# --- lists of other things ---------------------------------------------------------------


def fill(path: Path, statement: str, count: int, *values: Any) -> None:
    """Rows that are made in the database: through HTTP they would take minutes.

    `statement` inserts a SELECT from the table `n`, which has the numbers `i` up to `count`.
    """
    connection = sqlite3.connect(path)
    connection.execute(
        f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count}) "
        + statement,
        values,
    )
    connection.commit()
    connection.close()


def answered_questions(path: Path, task: dict[str, Any], count: int) -> None:
    """Questions of a task, each answered with almost a megabyte."""
    fill(
        path,
        "INSERT INTO questions (id, task_id, message, schema, answer, state, asked_at) "
        "SELECT printf('%032x', i), ?, 'Which?', '{}', "
        "printf('{\"answer\":\"%.*c\"}', 1000000, 'x'), 'answered', '2026-11-24T13:36:00.000Z' "
        "FROM n",
        count,
        task["id"].replace("-", ""),
    )


def test_questions_with_large_answers_are_listed_in_bounded_memory(
    sqlite_service: Service, remote_alice: RemoteClient, data: Path
) -> None:
    task = remote_alice.start(claim=True)
    answered_questions(data / "taskservice.db", task, 150)
    size, cost = read(sqlite_service, remote_alice, "GET", f"/task/{task['id']}/question")
    assert size > 150 * 1_000_000
    assert cost < BOUND


def bytes_read(service: Service) -> int:
    """The bytes that the service's worker has read from files and sockets so far."""
    (worker,) = service.workers()
    counts = dict(line.split(": ") for line in Path(f"/proc/{worker}/io").read_text().splitlines())
    return int(counts["rchar"])


def test_change_of_a_question_reads_no_other_one_that_is_closed(
    sqlite_service: Service, remote_alice: RemoteClient, data: Path
) -> None:
    task = remote_alice.start(claim=True)
    answered_questions(data / "taskservice.db", task, 150)
    path = f"/task/{task['id']}/question"
    before = bytes_read(sqlite_service)
    for method, suffix, body in (
        ("POST", "/answer", {"action": "accept", "content": {"answer": "yes"}}),
        ("DELETE", "", None),
    ):
        asked = remote_alice.request("POST", path, json={"message": "Go on?"})
        assert asked.status_code == 201
        url = f"{path}/{asked.json()['id']}{suffix}"
        assert remote_alice.request(method, url, json=body).status_code == 200
    assert bytes_read(sqlite_service) - before < 10 * MEGABYTE


def test_answers_of_an_mcp_client_read_no_other_question(
    sqlite_service: Service, remote_alice: RemoteClient, data: Path
) -> None:
    task = remote_alice.start(claim=True)
    answered_questions(data / "taskservice.db", task, 150)
    path = f"/task/{task['id']}/question"
    asked = remote_alice.request("POST", path, json={"message": "Go on?"}).json()
    restart(sqlite_service)
    before = forget_peak(sqlite_service)
    responses = {asked["id"]: {"action": "accept", "content": {"answer": "yes"}}}
    params = {"taskId": task["id"], "inputResponses": responses}
    assert McpClient(remote_alice, MCP_TASKS).modern("tasks/update", params).status == 200
    answered = remote_alice.request("GET", f"{path}/{asked['id']}").json()
    assert (answered["state"], answered["answer"]) == ("answered", {"answer": "yes"})
    assert memory(sqlite_service, "VmHWM") - before < BOUND


def test_very_many_agents_are_listed_in_bounded_memory(
    sqlite_service: Service, remote_alice: RemoteClient, data: Path
) -> None:
    remote_alice.start()
    fill(
        data / "taskservice.db",
        "INSERT INTO agents (user_id, id, name, description, created_at, input_schema) "
        "SELECT user_id, printf('agent-%05d', i), '', '', created_at, "
        'printf(\'{"type":"object","title":"%.*c"}\', 16000, \'x\') FROM n, agents',
        8_000,
    )
    for query in ("", "?expand=health"):
        size, cost = read(sqlite_service, remote_alice, "GET", f"/agent{query}")
        assert size > 8_000 * 16_000
        assert cost < BOUND
    ids = [agent["id"] for agent in remote_alice.request("GET", "/agent").json()]
    assert len(ids) == 8_001
    assert ids == sorted(ids)


def test_very_many_keys_are_listed_in_bounded_memory(
    sqlite_service: Service, remote_alice: RemoteClient, data: Path
) -> None:
    fill(
        data / "taskservice.db",
        "INSERT INTO api_keys (id, user_id, name, digest, hint, created_at) "
        # The names are longer than any may be, so that fewer keys take more memory than the bound.
        "SELECT printf('%032x', i), user_id, printf('%.*c', 2000, 'x'), printf('%064x', i), '', "
        "created_at FROM n, api_keys",
        40_000,
    )
    size, cost = read(sqlite_service, remote_alice, "GET", "/key")
    assert size > 40_000 * 2_000
    assert cost < BOUND
    ids = {key["id"] for key in remote_alice.request("GET", "/key").json()}
    assert len(ids) == 40_001
