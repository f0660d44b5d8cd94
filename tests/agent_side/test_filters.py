"""Options that choose tasks mean the same in every command that has them."""

import pytest

from tests.support.agent_machine import AgentMachine, end_for_silence, objects
from tests.support.commands import all_commands
from tests.support.service import Service

FAILED_COMMANDS = ("grep", "task cancel", "task delete", "task list", "task rerun")
# These register an agent or wait for one: they take its whole ID.
OF_WHOLE_IDS = {"approve", "ask", "key add", "run", "work"}
# Their tests are in the files of tasks and of hooks.
OTHERS_OF_AN_AGENT = {"hook add", "hook edit", "task start"}


def commands_with(option: str) -> set[str]:
    return {
        words
        for words, command in all_commands().items()
        if any(option in parameter.opts for parameter in command.params)
    }


def chosen_ids(machine: AgentMachine, command: str, *filters: str) -> list[str]:
    """The tasks that the options of a command choose, newest first."""
    if command in ("task list", "grep"):
        text = ["disk"] if command == "grep" else []
        shown = machine.run(*command.split(), *text, *filters, "--json")
        assert (shown.returncode, shown.stderr) == (0, "")
        return [item.get("taskId") or item["id"] for item in objects(shown.stdout)]
    before = machine.user.tasks()
    shown = machine.run(*command.split(), *filters, "--yes")
    assert shown.returncode == 0, shown.stderr
    after = {task["id"]: task for task in machine.user.tasks()}
    if command == "task rerun":
        return [task["rerunOf"] for task in reversed(after.values()) if task["rerunOf"]]
    return [task["id"] for task in before if after.get(task["id"]) != task]


def start(machine: AgentMachine, agent_id: str) -> str:
    task = machine.user.start(agent_id, claim=True)
    machine.user.append(task, "disk")
    return str(task["id"])


@pytest.mark.parametrize("command", FAILED_COMMANDS)
def test_failed_means_failed_or_timed_out(
    machine: AgentMachine, shared_service: Service, command: str
) -> None:
    assert commands_with("--failed") == set(FAILED_COMMANDS)
    first, silent, cancelled, complete, last = (start(machine, "one") for _ in range(5))
    for task_id in (first, last):
        machine.user.report({"id": task_id}, status="error")
    machine.user.cancel({"id": cancelled})
    machine.user.report({"id": complete}, status="complete")
    end_for_silence(shared_service)
    # A task that has ended can't be cancelled.
    expected = [] if command == "task cancel" else [last, silent, first]
    assert chosen_ids(machine, command, "--failed") == expected
    if command in commands_with("--limit"):
        assert chosen_ids(machine, command, "--failed", "--limit", "2") == expected[:2]


@pytest.mark.parametrize("command", FAILED_COMMANDS)
def test_prefix_of_an_agent_is_enough(machine: AgentMachine, command: str) -> None:
    other = OF_WHOLE_IDS | OTHERS_OF_AN_AGENT
    assert commands_with("--agent") == set(FAILED_COMMANDS) | other
    start(machine, "etl-orders")
    start(machine, "etl-stock")
    chosen = start(machine, "backup")
    text = ["disk"] if command == "grep" else []
    before = machine.user.tasks()
    for prefix, problem in (("etl", "Several agents match etl: "), ("x", "There is no agent x")):
        shown = machine.run(*command.split(), *text, "--agent", prefix)
        assert shown.returncode in (1, 2)
        assert shown.stdout == ""
        assert problem in shown.stderr
    assert machine.user.tasks() == before
    assert chosen_ids(machine, command, "--agent", "back") == [chosen]
