"""Labels, parents, progress and the link: what a task says of itself besides its lines."""

import sys

import pytest

from tests.support.agent_machine import AgentMachine
from tests.support.cheap_subtests import CheapSubtests
from tests.support.pseudo_terminal import on_terminal

STARTS_A_TASK = """
import logging
logging.basicConfig(format="%(message)s")
from taskservice.client import Client
with Client().start("inner"): pass
"""
NO_TASK = "01a20e63-9249-713c-aada-f8fd1cd47589"


# --- labels ------------------------------------------------------------------------------


def test_labels_are_kept_whatever_is_in_their_value(machine: AgentMachine) -> None:
    labels = {"env": "a=b:c", "who": "🦊" * 256}
    options = [f"--label={key}={value}" for key, value in labels.items()]
    done = machine.run("run", "--agent", "a", *options, "--", "true")
    assert (done.returncode, done.stderr) == (0, "")
    assert machine.user.the_task()["labels"] == labels


def test_label_that_is_refused_is_left_out(machine: AgentMachine) -> None:
    wrong = {
        "Env=x": "labels: Env: The key must match",
        "long=" + "x" * 257: "labels: long: Must be",
    }
    options = [f"--label={label}" for label in ("env=prod", *wrong)]
    done = machine.run(
        "run", "--agent", "a", *options, "--", "sh", "-c", "echo $1 >&2; exit 3", "-", "ran"
    )
    assert done.returncode == 3
    *warnings, ran = done.stderr.splitlines()
    assert ran == "ran"
    for warning, text in zip(warnings, wrong.values(), strict=True):
        assert text in warning
        assert "The task is started without this label" in warning
    assert machine.user.the_task()["labels"] == {"env": "prod"}
    assert wrong["Env=x"] in machine.fail(
        "run", "--strict", "--agent", "a", *options, "--", "echo", "ran"
    )


def test_label_past_the_limit_is_left_out(machine: AgentMachine) -> None:
    labels = {f"k{number}": "x" for number in range(17)}
    options = [f"--label={key}={value}" for key, value in labels.items()]
    done = machine.run("run", "--agent", "a", *options, "--", "true")
    (warning,) = done.stderr.splitlines()
    assert "labels: k16: A task has at most 16 labels." in warning
    del labels["k16"]
    assert machine.user.the_task()["labels"] == labels


def test_wrong_label_is_reported_while_the_service_is_unavailable(machine: AgentMachine) -> None:
    machine.lose_service()
    done = machine.run("run", "--agent", "a", "--label=Env=x", "--", "true")
    assert "labels: Env: The key must match" in done.stderr.splitlines()[0]
    (folder,) = machine.left_runs()
    assert "Env" not in (folder / "run.json").read_text()


def test_label_without_a_value_is_left_out_and_starts_no_strict_program(
    machine: AgentMachine, subtests: CheapSubtests
) -> None:
    for label in ("env", "=x", ""):
        with subtests.test(label):
            options = ["--agent", "a", "--label=a=b", "--label", label, "--label=c=d"]
            assert "must be KEY=VALUE" in machine.fail(
                "run", "--strict", *options, "--", "echo", "ran", code=2
            )
            assert machine.user.tasks() == []
            assert machine.run("run", *options, "--", "true").stderr.count("\n") == 1
            task = machine.user.the_task()
            assert task["labels"] == {"a": "b", "c": "d"}
            machine.user.delete(task)


# --- parents -----------------------------------------------------------------------------


@pytest.mark.parametrize("inner", ["run", "client"])
def test_task_inside_a_run_has_it_as_its_parent(machine: AgentMachine, inner: str) -> None:
    nested = {
        "run": [*machine.command, "run", "--agent", "inner", "--", "true"],
        "client": [sys.executable, "-c", STARTS_A_TASK],
    }
    done = machine.run("run", "--agent", "outer", "--", *nested[inner])
    assert (done.returncode, done.stderr) == (0, "")
    child, parent = machine.user.tasks()
    assert (child["agentId"], parent["agentId"]) == ("inner", "outer")
    assert (child["parentId"], parent["parentId"]) == (parent["id"], None)


def test_task_inside_the_program_of_a_worker_has_its_task_as_its_parent(
    machine: AgentMachine,
) -> None:
    parent = machine.user.start("outer", claim=False)
    inner = [*machine.command, "run", "--agent", "inner", "--", "true"]
    worker = machine.spawn("work", "--agent", "outer", "--", *inner)
    for _ in machine.user.client().task(parent["id"]).follow():
        pass
    worker.end()
    child = machine.user.tasks(agentId="inner")[0]
    assert child["parentId"] == parent["id"]


@pytest.mark.parametrize("inner", ["run", "client"])
def test_parent_that_the_key_cannot_see_is_left_out(machine: AgentMachine, inner: str) -> None:
    parent = machine.user.start("outer")
    machine.key = machine.user.agent_key("inner")
    machine.settings["TASKSERVICE_TASK_ID"] = parent["id"]
    if inner == "run":
        done = machine.run("run", "--agent", "inner", "--", "sh", "-c", "exit 3")
        assert done.returncode == 3
        warning = done.stderr
    else:
        program = machine.python(STARTS_A_TASK)
        _, warning = program.communicate(timeout=60)
        assert program.returncode == 0
    assert f"has no access to task {parent['id']}" in warning or "without parentId" in warning
    child, _ = machine.user.tasks()
    assert (child["agentId"], child["parentId"]) == ("inner", None)


def test_parent_that_is_not_an_id_is_left_out(
    machine: AgentMachine, subtests: CheapSubtests
) -> None:
    for wrong in ("no id", "\udcff", NO_TASK):
        with subtests.test(ascii(wrong)):
            machine.settings["TASKSERVICE_TASK_ID"] = wrong
            done = machine.run("run", "--agent", "a", "--", "true")
            assert done.returncode == 0
            assert "the task is started without parentId" in done.stderr
    assert [task["parentId"] for task in machine.user.tasks()] == [None] * 3


def test_strict_run_needs_the_parent(machine: AgentMachine) -> None:
    machine.settings["TASKSERVICE_TASK_ID"] = NO_TASK
    done = machine.run("run", "--strict", "--agent", "a", "--", "echo", "ran")
    assert (done.returncode, done.stdout) == (1, "")
    assert machine.user.tasks() == []


# --- progress ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "progress", "note"),
    [
        ("34/68", 0.5, None),
        ("1/3 'a third'", 1 / 3, "a third"),
        ("0.25 a", 0.25, "a"),
        ("7.5% ''", 0.075, ""),
        ("68/68", 1, None),
        ("0", 0, None),
    ],
)
def test_program_says_how_far_it_is(
    machine: AgentMachine, arguments: str, progress: float, note: str | None
) -> None:
    script = f'"$@" progress {arguments}'
    done = machine.run("run", "--agent", "a", "--", "sh", "-c", script, "sh", *machine.command)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    task = machine.user.the_task()
    assert task["progress"] == pytest.approx(progress)
    assert task["note"] == note


def test_progress_outside_of_a_task_is_one_line(machine: AgentMachine) -> None:
    done = machine.run("progress", "0.5")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert "this program was not started by `taskservice run`" in done.stderr


def test_progress_in_a_run_without_a_service_says_why_it_fails(machine: AgentMachine) -> None:
    machine.lose_service()
    done = machine.run("run", "--agent", "a", "--", *machine.command, "progress", "0.5")
    assert done.returncode == 2
    assert "`taskservice run` has not reached the service before it started" in done.stderr


def test_progress_that_is_none_is_refused(machine: AgentMachine, subtests: CheapSubtests) -> None:
    for wrong in ("half", "2", "101%", "3/2", "1/0", "1//2", "-1", "nan", "١", "1e-1", "\udcff"):
        with subtests.test(ascii(wrong)):
            assert "like 34/68" in machine.fail("progress", "--", wrong, code=2)


def test_progress_of_a_finished_task_is_one_line(machine: AgentMachine) -> None:
    task = machine.user.start("a")
    machine.user.cancel(task)
    machine.settings["TASKSERVICE_TASK_ID"] = task["id"]
    done = machine.run("progress", "0.5")
    assert (done.returncode, done.stderr) == (1, "taskservice: The task is finished\n")


# --- the link ----------------------------------------------------------------------------


def test_run_on_a_terminal_prints_the_address_of_its_page(machine: AgentMachine) -> None:
    command = [*machine.command, "run", "--agent", "a", "--", "echo", "hello"]
    shown = on_terminal(command, machine.environment).splitlines()
    page = f"{machine.user.url}/tasks/{machine.user.the_task()['id']}"
    assert shown == [f"taskservice: {page}", "hello"]
