"""The times of lines: kept where a line is read, in the spool, and on the way to the service."""

import logging
import threading
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from taskservice.client import TaskHandler
from taskservice.client.spool import Batch, Spool, now, rfc3339, timed
from taskservice.runner.saved_run import SavedRun
from tests.support.agent_machine import AgentMachine
from tests.support.api_client import RemoteClient
from tests.support.receiver import Receiver
from tests.support.service_answers import losing
from tests.support.waiting import until

BEGAN = 1_795_000_000_000


def milliseconds(timestamp: str) -> int:
    return round(datetime.fromisoformat(timestamp).timestamp() * 1000)


def read(person: RemoteClient) -> tuple[list[str], list[int]]:
    """The lines of the one task, and the time of each."""
    task = person.the_task()
    page: dict[str, Any] = person.read(f"/task/{task['id']}/logs?times=true")
    return page["logs"], [milliseconds(timestamp) for timestamp in page["times"]]


# --- a batch -----------------------------------------------------------------------------


def times_sent(*times: int) -> list[int]:
    batch = Batch.of(1, b"".join(timed(b"line\n", at) for at in times))
    return [milliseconds(timestamp) for timestamp in batch.json()["at"]]


def test_clock_that_was_set_back_does_not_make_times_descend() -> None:
    assert times_sent(BEGAN + 5, BEGAN, BEGAN + 7) == [BEGAN + 5, BEGAN + 5, BEGAN + 7]


def test_no_time_is_after_now() -> None:
    (sent,) = times_sent(9_999_999_999_999)
    assert sent <= now()


# --- the commands and the client ---------------------------------------------------------


def test_lines_have_the_time_at_which_they_were_read(machine: AgentMachine) -> None:
    process = machine.spawn_script("echo one; echo two; read go; echo three")
    assert process.read_line() == "one\n"
    until(lambda: len(machine.user.the_task()["logs"]) == 2)
    printed_by = now()
    process.communicate("go\n", timeout=60)
    lines, (one, two, three) = read(machine.user)
    assert lines == ["one", "two", "three"]
    assert one <= two <= printed_by <= three


def test_resent_lines_have_the_time_at_which_they_were_printed(machine: AgentMachine) -> None:
    """The task is made early, and its lines come hours later."""
    began = milliseconds(machine.user.start("a")["createdAt"])
    until(lambda: now() > began + 20)
    run = SavedRun(machine.url, {"agentId": "a"}, machine.user.the_task())
    run.report = {"status": "complete"}
    run.create_directory(machine.home / "state" / "taskservice" / "runs")
    assert run.directory is not None
    spool = Spool(run.directory)
    spool.put(b"one\ntwo\n", began + 3)
    spool.put(b"three\n", began + 9)
    spool.close()
    run.release()
    assert machine.run("run", "--resend").returncode == 0
    assert read(machine.user) == (["one", "two", "three"], [began + 3, began + 3, began + 9])


def test_run_during_an_outage_keeps_its_times(machine: AgentMachine) -> None:
    machine.lose_service()
    before = now()
    machine.run("run", "--agent", "a", "--", "echo", "one")
    ended_by = now()
    resent = machine.resend()
    assert (resent.returncode, resent.stderr) == (0, "")
    lines, (at,) = read(machine.user)
    task = machine.user.the_task()
    assert lines == ["one"]
    claimed_at = milliseconds(task["claimedAt"])
    assert before <= claimed_at <= at <= ended_by <= milliseconds(task["createdAt"])


def test_start_whose_response_was_lost_is_not_late(machine: AgentMachine) -> None:
    """The service has the task already, without a time of its claim."""
    machine.user.register("a")
    answers_come = threading.Event()
    machine.start_without_service()
    with Receiver() as receiver:
        receiver.answer = losing(machine.user, lambda _: not answers_come.is_set())
        machine.url = receiver.url.rstrip("/")
        script = "echo ready; read go; echo done"
        process = machine.spawn_script(script)
        assert process.read_line() == "ready\n"
        answers_come.set()
        _, notices = process.communicate("go\n", timeout=60)
    assert "claimedAt" not in notices
    task = machine.user.the_task()
    assert (task["status"], task["claimedAt"]) == ("complete", task["createdAt"])


def test_start_that_a_clock_ahead_makes_impossible_loses_its_time(machine: AgentMachine) -> None:
    fields = {"agentId": "a", "claim": True, "claimedAt": rfc3339(now() + 3_600_000)}
    run = SavedRun(machine.url, fields)
    run.report = {"status": "complete"}
    run.create_directory(machine.home / "state" / "taskservice" / "runs")
    run.release()
    resent = machine.run("run", "--resend")
    assert resent.returncode == 0
    assert "the task is started without claimedAt" in resent.stderr
    task = machine.user.the_task()
    assert task["claimedAt"] == task["createdAt"]


def test_python_program_says_when_its_work_and_each_line_began(remote_alice: RemoteClient) -> None:
    began = rfc3339(now() - 3_600_000)
    with remote_alice.client().start("a", claimed_at=began) as task:
        task.log("one")
        logged_by = now()
        until(lambda: now() > logged_by + 5)
        task.log("two")
    assert remote_alice.the_task()["claimedAt"] == began
    lines, (one, two) = read(remote_alice)
    assert lines == ["one", "two"]
    assert one <= logged_by < two


def test_logging_record_has_the_time_at_which_it_was_made(remote_alice: RemoteClient) -> None:
    client = remote_alice.client()
    with client.start("a") as task:
        record = logging.makeLogRecord({"msg": "one", "levelname": "INFO", "name": "x"})
        made_at = int(record.created * 1000)
        until(lambda: now() > made_at + 5)
        TaskHandler(task).handle(record)
    _, (at,) = read(remote_alice)
    assert at == max(made_at, milliseconds(remote_alice.the_task()["createdAt"]))
    assert datetime.fromtimestamp(at / 1000, UTC).year >= 2026


def test_times_of_many_lines_ascend(machine: AgentMachine) -> None:
    machine.run("run", "--agent", "a", "--", "seq", "20000")
    lines, times = read(machine.user)
    assert lines == [str(number) for number in range(1, 1_001)]
    assert all(before <= after for before, after in pairwise(times))
