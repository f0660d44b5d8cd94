"""The times of lines: kept where a line is read, in the spool, and on the way to the service."""

import logging
import math
import subprocess
import threading
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from taskservice.client import Client, TaskHandler
from taskservice.client.spool import Batch, Spool, now, rfc3339, timed
from taskservice.runner.saved_run import SavedRun
from tests.support.agent_machine import AgentMachine, the_task
from tests.support.api_client import RemoteClient
from tests.support.receiver import Receiver, unused_port
from tests.support.service_answers import losing
from tests.support.waiting import until

BEGAN = 1_795_000_000_000


def milliseconds(moment: str) -> int:
    return round(datetime.fromisoformat(moment).timestamp() * 1000)


def read(person: RemoteClient) -> tuple[list[str], list[int]]:
    """The lines of the one task, and the time of each."""
    task = the_task(person)
    page: dict[str, Any] = person.request("GET", f"/task/{task['id']}/logs?times=true").json()
    return page["logs"], [milliseconds(moment) for moment in page["times"]]


def drained(spool: Spool, most: int = 10_000) -> list[tuple[bytes, int]]:
    """All lines with their times, as they would be sent."""
    found: list[tuple[bytes, int]] = []
    while (batch := spool.peek(most)) is not None:
        body = batch.json()
        for text, moment in zip(body["logs"], body["at"], strict=True):
            lines = text.removesuffix("\n").split("\n")
            found += [(line.encode(), milliseconds(moment)) for line in lines]
        spool.confirm(batch)
    return found


def each_timed(count: int) -> list[tuple[bytes, int]]:
    """Lines of which each has its own time."""
    return [(b"line %d" % number, BEGAN + number) for number in range(count)]


def put_all(spool: Spool, lines: list[tuple[bytes, int]]) -> None:
    for line, at in lines:
        spool.put(line + b"\n", at)


# --- the spool ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["disk", "memory of a run", "memory of a client"])
def test_each_line_keeps_its_time(kind: str, tmp_path: Path) -> None:
    kinds = {"disk": Spool(tmp_path), "memory of a run": Spool(None)}
    queue = kinds.get(kind, Spool(None, max_memory=math.inf))
    put_all(queue, each_timed(3_000))
    assert drained(queue) == each_timed(3_000)


def test_another_process_finds_the_times(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    put_all(spool, each_timed(60_000))
    batch = spool.peek(50_000)
    assert batch is not None
    spool.confirm(batch)
    assert drained(Spool(tmp_path)) == each_timed(60_000)[batch.lines :]


# --- a batch -----------------------------------------------------------------------------


def times_sent(*times: int) -> list[int]:
    batch = Batch.of(1, b"".join(timed(b"line\n", at) for at in times))
    return [milliseconds(moment) for moment in batch.json()["at"]]


def test_clock_that_was_set_back_does_not_make_times_descend() -> None:
    assert times_sent(BEGAN + 5, BEGAN, BEGAN + 7) == [BEGAN + 5, BEGAN + 5, BEGAN + 7]


def test_no_time_is_after_now() -> None:
    (sent,) = times_sent(9_999_999_999_999)
    assert sent <= now()


# --- the commands and the client ---------------------------------------------------------


def test_lines_have_the_time_at_which_they_were_read(
    remote_alice: RemoteClient, machine: AgentMachine
) -> None:
    process = machine.spawn(
        "run", "--agent", "a", "--", "sh", "-c", "echo one; echo two; read go; echo three",
        stdin=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "one\n"
    until(lambda: len(the_task(remote_alice)["logs"]) == 2)
    printed_by = now()
    process.communicate("go\n", timeout=60)
    lines, (one, two, three) = read(remote_alice)
    assert lines == ["one", "two", "three"]
    assert one <= two <= printed_by <= three


def test_resent_lines_have_the_time_at_which_they_were_printed(
    remote_alice: RemoteClient, machine: AgentMachine
) -> None:
    """The task is made early, and its lines come hours later."""
    began = milliseconds(remote_alice.start("a")["createdAt"])
    until(lambda: now() > began + 20)
    run = SavedRun(machine.url, {"agentId": "a"}, the_task(remote_alice))
    run.report = {"status": "complete"}
    run.create_folder(machine.home / "state" / "taskservice" / "runs")
    assert run.folder is not None
    spool = Spool(run.folder)
    spool.put(b"one\ntwo\n", began + 3)
    spool.put(b"three\n", began + 9)
    spool.close()
    run.release()
    assert machine.run("run", "--resend").returncode == 0
    assert read(remote_alice) == (["one", "two", "three"], [began + 3, began + 3, began + 9])


def test_run_during_an_outage_keeps_its_times(
    remote_alice: RemoteClient, machine: AgentMachine
) -> None:
    away = machine.url = f"http://127.0.0.1:{unused_port()}"
    machine.give_up_soon()
    before = now()
    machine.run("run", "--agent", "a", "--", "echo", "one")
    ended_by = now()
    (folder,) = machine.left_runs()
    record = folder / "run.json"
    record.write_text(record.read_text().replace(away, remote_alice.url))
    machine.url = remote_alice.url
    machine.wait_as_usual()
    resent = machine.run("run", "--resend")
    assert (resent.returncode, resent.stderr) == (0, "")
    lines, (at,) = read(remote_alice)
    task = the_task(remote_alice)
    assert lines == ["one"]
    claimed_at = milliseconds(task["claimedAt"])
    assert before <= claimed_at <= at <= ended_by <= milliseconds(task["createdAt"])


def test_start_whose_response_was_lost_is_not_late(
    remote_alice: RemoteClient, machine: AgentMachine
) -> None:
    """The service has the task already, without a time of its claim."""
    remote_alice.request("PUT", "/agent/a").raise_for_status()
    answers_come = threading.Event()
    machine.start_without_service()
    with Receiver() as receiver:
        receiver.answer = losing(remote_alice, lambda _: not answers_come.is_set())
        machine.url = receiver.url.rstrip("/")
        script = "echo ready; read go; echo done"
        process = machine.spawn(
            "run", "--agent", "a", "--", "sh", "-c", script, stdin=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        answers_come.set()
        _, remarks = process.communicate("go\n", timeout=60)
    assert "claimedAt" not in remarks
    task = the_task(remote_alice)
    assert (task["status"], task["claimedAt"]) == ("complete", task["createdAt"])


def test_start_that_a_clock_ahead_makes_impossible_loses_its_time(
    remote_alice: RemoteClient, machine: AgentMachine
) -> None:
    fields = {"agentId": "a", "claim": True, "claimedAt": rfc3339(now() + 3_600_000)}
    run = SavedRun(machine.url, fields)
    run.report = {"status": "complete"}
    run.create_folder(machine.home / "state" / "taskservice" / "runs")
    run.release()
    resent = machine.run("run", "--resend")
    assert resent.returncode == 0
    assert "the task is started without claimedAt" in resent.stderr
    task = the_task(remote_alice)
    assert task["claimedAt"] == task["createdAt"]


def test_python_program_says_when_its_work_began(remote_alice: RemoteClient) -> None:
    client = Client(remote_alice.url, str(remote_alice.session.headers["apikey"]))
    began = rfc3339(now() - 3_600_000)
    with client.start("a", claimed_at=began):
        pass
    assert the_task(remote_alice)["claimedAt"] == began


def test_lines_of_a_python_program_have_the_time_of_their_call(remote_alice: RemoteClient) -> None:
    client = Client(remote_alice.url, str(remote_alice.session.headers["apikey"]))
    with client.start("a") as task:
        task.log("one")
        logged_by = now()
        until(lambda: now() > logged_by + 5)
        task.log("two")
    lines, (one, two) = read(remote_alice)
    assert lines == ["one", "two"]
    assert one <= logged_by < two


def test_logging_record_has_the_time_at_which_it_was_made(remote_alice: RemoteClient) -> None:
    client = Client(remote_alice.url, str(remote_alice.session.headers["apikey"]))
    with client.start("a") as task:
        record = logging.makeLogRecord({"msg": "one", "levelname": "INFO", "name": "x"})
        made_at = int(record.created * 1000)
        until(lambda: now() > made_at + 5)
        TaskHandler(task).handle(record)
    _, (at,) = read(remote_alice)
    assert at == max(made_at, milliseconds(the_task(remote_alice)["createdAt"]))
    assert datetime.fromtimestamp(at / 1000, UTC).year >= 2026


def test_times_of_many_lines_ascend(remote_alice: RemoteClient, machine: AgentMachine) -> None:
    machine.run("run", "--agent", "a", "--", "seq", "20000")
    lines, times = read(remote_alice)
    assert lines == [str(number) for number in range(1, 1_001)]
    assert all(before <= after for before, after in pairwise(times))
