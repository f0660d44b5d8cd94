"""The agents that the clients use as tools, each worked by a real `taskservice work`."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.agent_machine import machine_of
from tests.support.api_client import RemoteClient
from tests.support.mcp_clients.packages import TESTS
from tests.support.waiting import PATIENCE_SECONDS

PROGRAMS = TESTS / "agent_programs"


def _wants(**properties: str) -> dict[str, Any]:
    """The schema of an input that must have properties of these types."""
    types = {name: {"type": kind} for name, kind in properties.items()}
    return {"type": "object", "properties": types, "required": list(properties)}


# By the names and inputs that the conformance suite calls them with.
AGENTS: dict[str, dict[str, Any]] = {
    "greet": {
        "description": "Greets a person.",
        "inputSchema": _wants(name="string"),
        "annotations": {"readOnlyHint": True},
    },
    "slow_compute": {
        "description": "Computes for some seconds.",
        "inputSchema": _wants(seconds="number", label="string"),
    },
    "failing_job": {"description": "Fails after a second."},
    "confirm_delete": {
        "description": "Deletes a file, after it has asked.",
        "inputSchema": _wants(filename="string"),
    },
    "multi_input": {"description": "Asks two questions at once."},
    "test_logging_tool": {"description": "Prints a few lines."},
}

FIXED_TOOLS = {
    "start_task", "wait_task", "read_log", "list_tasks", "answer_task", "cancel_task",
}  # fmt: skip
TOOLS = AGENTS.keys() | FIXED_TOOLS


def task_of(owner: RemoteClient, task_id: str) -> dict[str, Any]:
    """A task as the service has it."""
    task: dict[str, Any] = owner.request("GET", f"/task/{task_id}").json()
    return task


def newest_task(owner: RemoteClient, agent_id: str) -> dict[str, Any]:
    """The task of an agent that was started last."""
    (task,) = owner.request("GET", f"/task?agentId={agent_id}&limit=1").json()
    return dict(task)


@contextmanager
def working(owner: RemoteClient, home: Path) -> Iterator[None]:
    """The agents are registered, and a worker waits for the tasks of each."""
    machine = machine_of(owner, home)
    machine.beat_often()
    workers = []
    try:
        for agent_id, fields in AGENTS.items():
            owner.request("PUT", f"/agent/{agent_id}", json=fields).raise_for_status()
            # A client may leave a task that still runs.
            options = ["--agent", agent_id, "--parallel", "8"]
            # pytest would take a file with that prefix for one of tests.
            program = [sys.executable, str(PROGRAMS / f"{agent_id.removeprefix('test_')}.py")]
            with (home / f"{agent_id}.log").open("w") as log:
                workers.append(
                    machine.spawn("work", *options, "--", *program, stdout=log, stderr=log)
                )
        yield
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait(PATIENCE_SECONDS)
