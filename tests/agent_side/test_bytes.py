"""Arguments and variables with bytes that are not UTF-8, which Python reads as lone surrogates."""

import click

from taskservice.cli import main
from taskservice.cli.commands import CLIENT_COMMANDS
from tests.support.agent_machine import AgentMachine
from tests.support.cheap_subtests import CheapSubtests

REFUSED = (
    "work --agent \udcff -- true",
    "task show \udcff", "task follow \udcff", "task cancel \udcff", "task delete \udcff",
    "task list --agent \udcff", "task list --q \udcff",
    "task list --label a=\udcff", "task start --agent \udcff", "task start --agent a --name \udcff",
    "task logs \udcff", "task rerun \udcff", "agent add \udcff", "agent delete \udcff",
)  # fmt: skip
LOGS_TO_CURRENT = "from taskservice.client import current\nwith current() as task: task.log('own')"


def test_argument_that_is_not_text_is_refused_before_anything_starts(
    machine: AgentMachine, subtests: CheapSubtests
) -> None:
    for command in REFUSED:
        with subtests.test(ascii(command)):
            done = machine.run(*command.split())
            assert (done.returncode, done.stdout) == (2, "")
            assert done.stderr.splitlines()[-1].endswith(": must be text in UTF-8")
    assert machine.left_runs() == []


def test_each_text_of_a_command_is_checked() -> None:
    context = click.Context(main)
    for name in CLIENT_COMMANDS:
        command = main.get_command(context, name)
        assert command is not None
        for part in getattr(command, "commands", {name: command}).values():
            unchecked = [
                parameter.name for parameter in part.params if parameter.type is click.STRING
            ]
            assert unchecked == [], part.name


def test_program_may_get_any_bytes(machine: AgentMachine, subtests: CheapSubtests) -> None:
    show = 'printf "$1" | od -An -tx1'
    with subtests.test("arguments"):
        done = machine.run("run", "--agent", "a", "--", "sh", "-c", show, "sh", "\udcff")
        assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["ff"], "")
        assert machine.user.the_task()["logs"] == [" ff"]
    with subtests.test("a name of no program"):
        done = machine.run("run", "--agent", "b", "--", "./\udcff")
        assert (done.returncode, len(done.stderr.splitlines())) == (127, 1)
        assert len(machine.user.tasks()) == 1


def test_variable_that_is_not_text_is_one_sentence(
    machine: AgentMachine, subtests: CheapSubtests
) -> None:
    for name in ("URL", "APIKEY"):
        with subtests.test(name):
            machine.settings = {f"TASKSERVICE_{name}": "http://\udcff"}
            done = machine.run("task", "list")
            assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    task = machine.user.start()
    with subtests.test("TASK_ID"):
        machine.settings = {"TASKSERVICE_TASK_ID": "\udcff"}
        _, errors = machine.python(LOGS_TO_CURRENT).communicate(timeout=60)
        assert "NotFound: Task's ID is not found: task ?" in errors.splitlines()[-1]
    with subtests.test("WRITER"):
        machine.settings = {"TASKSERVICE_TASK_ID": task["id"], "TASKSERVICE_WRITER": "\udcff"}
        assert machine.python(LOGS_TO_CURRENT).communicate(timeout=60) == ("", "")
        assert machine.user.read(f"/task/{task['id']}")["logs"] == ["own"]
