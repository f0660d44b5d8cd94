"""The times of lines: kept where a line is read, in the spool, and on the way to the service."""

import logging
import struct
import subprocess
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from taskservice.client import Client, TaskHandler, sender
from taskservice.client.outbox import MemoryQueue
from taskservice.client.sender import Batch, Times
from taskservice.runner.saved_run import SavedRun
from taskservice.runner.spool import SEGMENT_BYTES, Spool
from tests.support.agent_machine import AgentMachine, the_task
from tests.support.api_client import RemoteClient
from tests.support.waiting import until

BEGAN = 1_795_000_000_000


def milliseconds(moment: str) -> int:
    return round(datetime.fromisoformat(moment).timestamp() * 1000)


def read(person: RemoteClient) -> tuple[list[str], list[int]]:
    """The lines of the one task, and the time of each."""
    task = the_task(person)
    page: dict[str, Any] = person.request("GET", f"/task/{task['id']}/logs?times=true").json()
    return page["logs"], [milliseconds(moment) for moment in page["times"]]


def drained(spool: Spool | MemoryQueue, most: int = 10_000) -> list[tuple[bytes, int]]:
    """All lines with their times, as they would be sent."""
    found: list[tuple[bytes, int]] = []
    while (batch := spool.peek(most)) is not None:
        body = batch.json()
        for text, moment in zip(body["logs"], body["at"], strict=True):
            lines = text.removesuffix("\n").split("\n")
            found += [(line.encode(), milliseconds(moment)) for line in lines]
        spool.confirm(batch)
    return found


def timed(count: int) -> list[tuple[bytes, int]]:
    """Lines of which each has its own time."""
    return [(b"line %d" % number, BEGAN + number) for number in range(count)]


def put_all(spool: Spool | MemoryQueue, lines: list[tuple[bytes, int]]) -> None:
    for line, at in lines:
        spool.put([line], at)


# --- the spool ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["disk", "memory of a run", "memory of a client"])
def test_each_line_keeps_its_time(kind: str, tmp_path: Path) -> None:
    kinds = {"disk": Spool(tmp_path), "memory of a run": Spool(None)}
    queue = kinds.get(kind, MemoryQueue())
    put_all(queue, timed(3_000))
    assert drained(queue) == timed(3_000)


def test_another_process_finds_the_times(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    put_all(spool, timed(60_000))
    batch = spool.peek(50_000)
    assert batch is not None
    spool.confirm(batch)
    assert drained(Spool.load(tmp_path)) == timed(60_000)[batch.lines :]


def test_lines_of_one_moment_cost_one_time_on_the_disk(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for _ in range(1_000):
        spool.put([b"line"] * 10, BEGAN)
    (times,) = tmp_path.glob("*.times")
    assert times.stat().st_size < 20


def test_times_count_for_the_space_that_a_spool_takes(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=2 * SEGMENT_BYTES)
    for number in range(300_000):
        spool.put([b""], BEGAN + number)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 3 * SEGMENT_BYTES
    (mark, _), *rest = drained(spool, 1_000_000)
    assert b"left out" in mark
    assert [at for _, at in rest] == [*range(BEGAN + 300_000 - len(rest), BEGAN + 300_000)]


def test_confirmed_times_leave_the_disk(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    put_all(spool, timed(50_000))
    drained(spool)
    assert [path.name for path in tmp_path.iterdir()] == ["place"]


def test_memory_goes_to_the_disk_with_its_times(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    folder.mkdir()
    spool = Spool(folder)
    folder.rename(tmp_path / "gone")
    put_all(spool, timed(100))
    (tmp_path / "gone").rename(folder)
    assert spool.close() == 0
    assert drained(Spool.load(folder)) == timed(100)


def test_spool_of_an_earlier_version_has_the_time_of_its_file(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    put_all(spool, timed(10))
    spool.close()
    (times,) = tmp_path.glob("*.times")
    times.unlink()
    (lines,) = tmp_path.glob("*.lines")
    written_at = lines.stat().st_mtime_ns // 1_000_000
    assert drained(Spool.load(tmp_path)) == [(line, written_at) for line, _ in timed(10)]


@pytest.mark.parametrize(
    "damage",
    [
        bytes(36),
        struct.pack("<IQIQ", 3, BEGAN, 2**32 - 1, 2**64 - 1),
        struct.pack("<IQIQ", 7, 2**64 - 1, 7, 0) + b"half",
    ],
)
def test_damaged_times_divide_no_line_and_lose_none(tmp_path: Path, damage: bytes) -> None:
    spool = Spool(tmp_path)
    put_all(spool, timed(10))
    spool.close()
    (times,) = tmp_path.glob("*.times")
    times.write_bytes(damage)
    assert [line for line, _ in drained(Spool.load(tmp_path))] == [line for line, _ in timed(10)]


# --- a batch -----------------------------------------------------------------------------


def times_sent(times: Times) -> list[int]:
    data = b"".join(b"%d\n" % place for place in range(len(times)))
    batch = Batch.of(1, data, [(2 * place, at) for place, (_, at) in enumerate(times)])
    return [milliseconds(moment) for moment in batch.json()["at"]]


def test_clock_that_was_set_back_does_not_make_times_descend() -> None:
    sent = times_sent([(0, BEGAN + 5), (2, BEGAN), (4, BEGAN + 7)])
    assert sent == [BEGAN + 5, BEGAN + 5, BEGAN + 7]


def test_no_time_is_after_now() -> None:
    (sent,) = times_sent([(0, 2**63)])
    assert sent <= sender.now()


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
    printed_by = sender.now()
    process.communicate("go\n", timeout=60)
    lines, (one, two, three) = read(remote_alice)
    assert lines == ["one", "two", "three"]
    assert one <= two <= printed_by <= three


def test_resent_lines_have_the_time_at_which_they_were_printed(
    remote_alice: RemoteClient, machine: AgentMachine
) -> None:
    """The task is made early, and its lines come hours later."""
    began = milliseconds(remote_alice.start("a")["createdAt"])
    until(lambda: sender.now() > began + 20)
    run = SavedRun(machine.url, {"agentId": "a"}, the_task(remote_alice))
    run.report = {"status": "complete"}
    run.create_folder(machine.home / "state" / "taskservice" / "runs")
    assert run.folder is not None
    spool = Spool(run.folder)
    spool.put([b"one", b"two"], began + 3)
    spool.put([b"three"], began + 9)
    spool.close()
    run.release()
    assert machine.run("run", "--resend").returncode == 0
    assert read(remote_alice) == (["one", "two", "three"], [began + 3, began + 3, began + 9])


def test_lines_of_a_python_program_have_the_time_of_their_call(remote_alice: RemoteClient) -> None:
    client = Client(remote_alice.url, str(remote_alice.session.headers["apikey"]))
    with client.start("a") as task:
        task.log("one")
        logged_by = sender.now()
        until(lambda: sender.now() > logged_by + 5)
        task.log("two")
    lines, (one, two) = read(remote_alice)
    assert lines == ["one", "two"]
    assert one <= logged_by < two


def test_logging_record_has_the_time_at_which_it_was_made(remote_alice: RemoteClient) -> None:
    client = Client(remote_alice.url, str(remote_alice.session.headers["apikey"]))
    with client.start("a") as task:
        record = logging.makeLogRecord({"msg": "one", "levelname": "INFO", "name": "x"})
        made_at = int(record.created * 1000)
        until(lambda: sender.now() > made_at + 5)
        TaskHandler(task).handle(record)
    _, (at,) = read(remote_alice)
    assert at == max(made_at, milliseconds(the_task(remote_alice)["createdAt"]))
    assert datetime.fromtimestamp(at / 1000, UTC).year >= 2026


def test_times_of_many_lines_ascend(remote_alice: RemoteClient, machine: AgentMachine) -> None:
    machine.run("run", "--agent", "a", "--", "seq", "20000")
    lines, times = read(remote_alice)
    assert lines == [str(number) for number in range(1, 1_001)]
    assert all(before <= after for before, after in pairwise(times))
