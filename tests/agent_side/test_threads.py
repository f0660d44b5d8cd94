"""Where the system has no more threads, programs run, and their ends still arrive."""

import signal
from pathlib import Path

import pytest

from tests.support.agent_machine import AgentMachine, tasks, the_task
from tests.support.api_client import RemoteClient
from tests.support.cheap_subtests import CheapSubtests
from tests.support.receiver import unused_port
from tests.support.waiting import until

# Run by the interpreter at its start.
FEW_THREADS = """
import itertools, os, threading
started, start = itertools.count(), threading.Thread.start
def start_or_not(thread):
    if next(started) >= int(os.environ["THREADS_LEFT"]):
        raise RuntimeError("can't start new thread")
    start(thread)
threading.Thread.start = start_or_not
"""
PROGRAM = "echo one; seq 10000; echo last >&2; exit 7"
LOGS = """
from taskservice.client import Client
client = Client(patience=5)
with client.start("a") as task:
    task.log("one")
    task.log("two")
    url, task._connection.url = task._connection.url, "http://127.0.0.1:9"
    task.log("three")
    task._connection.url = url
    task.log("four")
    task.output["sum"] = 5
"""


@pytest.fixture
def machine(machine: AgentMachine, tmp_path: Path) -> AgentMachine:
    """One whose programs can start no thread."""
    (tmp_path / "sitecustomize.py").write_text(FEW_THREADS)
    machine.settings = {"PYTHONPATH": str(tmp_path), "THREADS_LEFT": "0"}
    return machine


def test_program_runs_and_its_end_arrives_however_many_threads_there_are(
    remote_alice: RemoteClient, machine: AgentMachine, subtests: CheapSubtests
) -> None:
    """Its lines too where there are two for them, beside those for signals and for the start."""
    for count in (0, 2, 3, 4, 5, 6):
        with subtests.test(str(count)):
            machine.settings["THREADS_LEFT"] = str(count)
            done = machine.run("run", "--agent", "a", "--", "sh", "-c", PROGRAM)
            assert (done.returncode, len(done.stdout.splitlines())) == (7, 10_001)
            assert "last" in done.stderr.splitlines()
            newest = tasks(remote_alice)[0]
            lines = ["one", *map(str, range(1, 10_001)), "last"] if count >= 4 else []
            assert sorted(newest["logs"]) == sorted(lines)
            assert ("what the program prints is not logged" in done.stderr) == (not lines)
            assert newest["error"]["message"] == "Exit status 7"
    assert len(tasks(remote_alice)) == 6
    assert machine.left_runs() == []


def test_lines_are_kept_with_few_threads_and_without_the_service(
    remote_alice: RemoteClient, machine: AgentMachine
) -> None:
    machine.settings["THREADS_LEFT"] = "4"
    url, machine.url = machine.url, f"http://127.0.0.1:{unused_port()}"
    done = machine.run("run", "--agent", "a", "--", "sh", "-c", "echo one; exit 7")
    assert (done.returncode, done.stdout) == (7, "one\n")
    assert "1 line and the program's end could not be sent yet" in done.stderr
    (folder,) = machine.left_runs()
    record = folder / "run.json"
    record.write_text(record.read_text().replace(machine.url, url))
    machine.url = url
    assert machine.run("run", "--resend").returncode == 0
    assert the_task(remote_alice)["logs"] == ["one"]


def test_signal_reaches_the_program_without_threads(
    remote_alice: RemoteClient, machine: AgentMachine
) -> None:
    process = machine.spawn("run", "--agent", "a", "--", "sh", "-c", "echo ready; sleep 1000")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert the_task(remote_alice)["error"]["message"] == "Killed by signal 15 (SIGTERM)"


def test_worker_runs_a_task_without_threads(
    remote_alice: RemoteClient, machine: AgentMachine
) -> None:
    worker = machine.spawn("work", "--agent", "a", "--", "sh", "-c", "echo ran")
    until(lambda: remote_alice.request("GET", "/agent/a").ok)
    task = remote_alice.start(agentId="a", claim=False)
    until(lambda: remote_alice.request("GET", f"/task/{task['id']}").json()["finishedAt"])
    worker.send_signal(signal.SIGTERM)
    worker.communicate(timeout=60)
    assert worker.returncode == 0
    assert the_task(remote_alice)["status"] == "complete"


def test_python_program_logs_without_threads(
    remote_alice: RemoteClient, machine: AgentMachine
) -> None:
    assert machine.python(LOGS).communicate(timeout=60) == ("", "")
    task = the_task(remote_alice)
    assert (task["logs"], task["output"]) == (["one", "two", "three", "four"], {"sum": 5})
    assert task["status"] == "complete"
