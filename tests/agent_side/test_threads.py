"""Where the system has no more threads, the lines and the end of a program still arrive."""

from pathlib import Path

import pytest

from tests.support.agent_machine import AgentMachine, the_task
from tests.support.api_client import RemoteClient

# Run by the interpreter at its start.
FEW_THREADS = """
import threading
def start(thread):
    raise RuntimeError("can't start new thread")
threading.Thread.start = start
"""
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
    machine.settings = {"PYTHONPATH": str(tmp_path)}
    return machine


def test_python_program_logs_without_threads(
    remote_alice: RemoteClient, machine: AgentMachine
) -> None:
    assert machine.python(LOGS).communicate(timeout=60) == ("", "")
    task = the_task(remote_alice)
    assert (task["logs"], task["output"]) == (["one", "two", "three", "four"], {"sum": 5})
    assert task["status"] == "complete"
