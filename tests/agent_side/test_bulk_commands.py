"""`taskservice task cancel`, `delete` and `rerun` of several tasks."""

import os
import pty
from typing import Any

from tests.support.agent_machine import AgentMachine, objects
from tests.support.api_client import RemoteClient


def ids(tasks: list[dict[str, Any]]) -> list[str]:
    return [task["id"] for task in tasks]


def fail(person: RemoteClient, task: dict[str, Any]) -> None:
    report = {"status": "error"}
    person.report(task, **report)


def test_several_ids_are_changed(machine: AgentMachine) -> None:
    named = [machine.user.start("one") for _ in range(3)]
    again = machine.run("task", "rerun", *ids(named), "--yes")
    assert (again.returncode, again.stderr) == (0, "taskservice: 3 of 3 tasks started again\n")
    assert [task["rerunOf"] for task in machine.user.tasks()[2::-1]] == ids(named)
    assert again.stdout.split() == ids(machine.user.tasks()[2::-1])
    cancelled = machine.run("task", "cancel", *ids(named), "--yes")
    assert (cancelled.returncode, cancelled.stdout) == (0, "")
    assert cancelled.stderr == "taskservice: 3 of 3 tasks cancelled\n"
    deleted = machine.run("task", "delete", *(text[:23] for text in ids(named)), "--yes", "--json")
    assert objects(deleted.stdout) == [{"done": 3, "refused": [], "tasks": []}]
    assert ids(machine.user.tasks()) == again.stdout.split()[::-1]


def test_options_choose_tasks(machine: AgentMachine) -> None:
    start = machine.user.start
    old, failed, labelled = start("one"), start("one"), start("two", labels={"env": "test"})
    fail(machine.user, failed)
    other = start("two")
    reruns = machine.run("task", "rerun", "--agent", "one", "--failed", "--yes").stdout.split()
    assert [task["rerunOf"] for task in machine.user.tasks()[:1]] == [failed["id"]]
    machine.run("task", "cancel", "--agent", "two", "--label", "env=test", "--yes")
    cancelled = machine.user.tasks(errorType="cancelled")
    assert ids(cancelled) == [labelled["id"]]
    # Only running ones: the failed one is not refused.
    assert machine.run("task", "cancel", "--agent", "one", "--yes").returncode == 0
    assert set(ids(machine.user.tasks(status="running"))) == {other["id"]}
    nothing = machine.run("task", "delete", "--before", "1d", "--status", "error", "--yes")
    assert nothing.stderr == "taskservice: 0 of 0 tasks deleted\n"
    assert nothing.returncode == 0
    assert len(machine.user.tasks()) == 5
    machine.run("task", "delete", "--before", "0d", "--agent", "one", "--yes")
    assert set(ids(machine.user.tasks())) == {labelled["id"], other["id"]}
    assert old["id"] not in ids(machine.user.tasks())
    assert len(reruns) == 1


def test_refused_tasks_are_said(machine: AgentMachine) -> None:
    failed, running = machine.user.start("one"), machine.user.start("one")
    fail(machine.user, failed)
    shown = machine.run("task", "cancel", failed["id"], running["id"], "--yes")
    assert (shown.returncode, shown.stdout) == (1, "")
    assert shown.stderr.splitlines() == [
        "taskservice: 1 of 2 tasks cancelled",
        f"taskservice: {failed['id']}: task_finished",
    ]


def test_several_are_not_changed_unasked(machine: AgentMachine) -> None:
    for _ in range(2):
        machine.user.start("one")
    for choice, words in ((ids(machine.user.tasks()), ""), (["--agent", "o"], " of agent one")):
        assert f"2 tasks{words}: --yes is needed without a terminal" in machine.fail(
            "task", "delete", *choice, code=2
        )
    assert len(machine.user.tasks()) == 2


def test_terminal_is_asked(machine: AgentMachine) -> None:
    for _ in range(2):
        machine.user.start("one")
    for answer, left in (("n", 2), ("y", 0)):
        ours, its = pty.openpty()
        os.write(ours, f"{answer}\n".encode())
        shown = machine.run("task", "delete", "--agent", "one", stdin=its)
        assert "Delete 2 tasks of agent one? [y/N]" in shown.stderr
        assert shown.returncode == (1 if left else 0)
        assert len(machine.user.tasks()) == left
        os.close(ours)
        os.close(its)


def test_wrong_choices_change_nothing(machine: AgentMachine) -> None:
    task = machine.user.start("one")
    for wrong in (
        [],
        [task["id"], "--agent", "one"],
        ["--failed", "--status", "error"],
        ["--before", "30"],
        ["--before", "900000d"],
        ["--agent", ""],
    ):
        shown = machine.run("task", "delete", *wrong, "--yes")
        assert shown.returncode in (1, 2), wrong
        assert shown.stdout == ""
    several = machine.run("task", "rerun", task["id"], task["id"], "--input", "{}", "--yes")
    assert several.returncode == 2
    assert ids(machine.user.tasks()) == [task["id"]]
