"""The agents that the clients use as tools, each worked by a real `taskservice work`."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.agent_machine import AgentMachine
from tests.support.api_client import RemoteClient
from tests.support.mcp_clients.packages import TESTS
from tests.support.waiting import PATIENCE_SECONDS

PROGRAMS = TESTS / "agent_programs"


class Agent(NamedTuple):
    """The program of a worker, and the fields of its agent."""

    program: Sequence[str]
    fields: dict[str, Any]


def _python(name: str, *arguments: str) -> list[str]:
    return [sys.executable, str(PROGRAMS / f"{name}.py"), *arguments]


def _wants(**properties: str) -> dict[str, Any]:
    """The schema of an input that must have properties of these types."""
    types = {name: {"type": kind} for name, kind in properties.items()}
    return {"type": "object", "properties": types, "required": list(properties)}


# The names, the inputs and the outputs are those that the conformance suite expects.
AGENTS = {
    "greet": Agent(
        _python("greet"),
        {
            "description": "Greets a person.",
            "inputSchema": _wants(name="string"),
            "annotations": {"readOnlyHint": True},
        },
    ),
    "slow_compute": Agent(
        _python("slow_compute"),
        {
            "description": "Computes for some seconds.",
            "inputSchema": _wants(seconds="number", label="string"),
        },
    ),
    "failing_job": Agent(_python("failing_job"), {"description": "Fails after a second."}),
    "confirm_delete": Agent(
        _python("confirm_delete"),
        {
            "description": "Deletes a file, after it has asked.",
            "inputSchema": _wants(filename="string"),
        },
    ),
    "multi_input": Agent(_python("multi_input"), {"description": "Asks two questions at once."}),
    "test_simple_text": Agent(["echo", '{"text": "simple"}'], {"description": "Says a word."}),
    "test_error_handling": Agent(["ls", "/no/file"], {"description": "Fails at once."}),
    "test_logging_tool": Agent(["seq", "3"], {"description": "Prints a few lines."}),
    "test_input_required_result_elicitation": Agent(
        _python("asks", "name", "string"), {"description": "Asks for a name."}
    ),
    "test_input_required_result_request_state": Agent(
        _python("asks", "ok", "boolean"), {"description": "Asks whether it is fine."}
    ),
    "json_schema_2020_12_tool": Agent(
        ["cat"],
        {
            "description": "Returns its input.",
            "inputSchema": {
                "$schema": "https://json-schema.org/draft/2020-12/schema",
                "type": "object",
                "$defs": {
                    "address": {"type": "object", "properties": {"street": {"type": "string"}}}
                },
                "properties": {"name": {"type": "string"}, "address": {"$ref": "#/$defs/address"}},
                "additionalProperties": False,
            },
        },
    ),
}
FIXED_TOOLS = {
    "start_task", "rerun_task", "wait_task", "read_log", "search_logs", "list_tasks",
    "attention", "answer_task", "cancel_task",
}  # fmt: skip
TOOLS = AGENTS.keys() | FIXED_TOOLS


def task_of(owner: RemoteClient, task_id: str) -> dict[str, Any]:
    """A task as the service returns it."""
    task: dict[str, Any] = owner.request("GET", f"/task/{task_id}").json()
    return task


def newest_task(owner: RemoteClient, agent_id: str) -> dict[str, Any]:
    """The task of an agent that was started last."""
    (task,) = owner.request("GET", f"/task?agentId={agent_id}&limit=1").json()
    return dict(task)


@contextmanager
def working(owner: RemoteClient, home: Path) -> Iterator[None]:
    """The agents are registered, and a worker waits for the tasks of each."""
    machine = AgentMachine(home, owner)
    machine.beat_often()
    workers = []
    try:
        for agent_id, agent in AGENTS.items():
            fields = agent.fields | {"tool": True}
            owner.request("PUT", f"/agent/{agent_id}", json=fields).raise_for_status()
            # A client may leave a running task.
            options = ["--agent", agent_id, "--parallel", "8"]
            with (home / f"{agent_id}.log").open("w") as log:
                workers.append(
                    machine.spawn("work", *options, "--", *agent.program, stdout=log, stderr=log)
                )
        yield
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait(PATIENCE_SECONDS)
