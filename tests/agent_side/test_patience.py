"""How long commands wait for a service that does not respond, and what they print until then."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from taskservice.cli import service_client
from taskservice.cli.task import FOLLOW_SECONDS
from tests.support import receiver as play
from tests.support import service_answers as played
from tests.support.agent_machine import AgentMachine
from tests.support.pseudo_terminal import on_terminal
from tests.support.receiver import Receiver, unused_port

# Soon enough for a test, and later than the notice.
SHORT = "from taskservice.cli import service_client; service_client.PERSON_SECONDS = 2"
TASK = "01a20e63-9249-713c-9f0c-4a4b3c2d1e0f"
FOR_PEOPLE = {
    "list": ["task", "list"],
    "show": ["task", "show", TASK],
    "start": ["task", "start", "--agent", "a"],
    "answer": ["task", "answer", TASK, "yes"],
    "cancel": ["task", "cancel", TASK],
    "status": ["status"],
    "grep": ["grep", "disk"],
    "new-lines": ["task", "new-lines", TASK],
    "agents": ["agent", "list"],
    "agent": ["agent", "add", "a"],
    "hooks": ["hook", "list"],
    "new hook": ["hook", "add", "https://ntfy.sh/topic"],
    "hook": ["hook", "test", TASK],
}


@contextmanager
def closed_port() -> Iterator[str]:
    yield f"http://127.0.0.1:{unused_port()}"


@contextmanager
def black_hole() -> Iterator[str]:
    with Receiver() as receiver:
        receiver.answer = play.silence
        yield receiver.url.rstrip("/")


@contextmanager
def busy() -> Iterator[str]:
    with Receiver() as receiver:
        receiver.answer = played.problem(503, "The database is busy")
        yield receiver.url.rstrip("/")


PROBLEMS = {
    "a closed port": (closed_port, "Connection refused"),
    "a black hole": (black_hole, "does not respond"),
    "a busy service": (busy, "The database is busy"),
}


@pytest.mark.parametrize("command", FOR_PEOPLE.values(), ids=FOR_PEOPLE)
def test_person_is_told_that_a_command_waits_and_that_it_gives_up(
    machine: AgentMachine, command: list[str]
) -> None:
    machine.patch(SHORT)
    with black_hole() as machine.url:
        process = machine.spawn(*command)
        notice = process.read_error()
        # It still waits.
        assert process.poll() is None
        shown, last = process.communicate()
    assert notice == f"taskservice: {machine.url} does not respond; retrying for 2 s\n"
    assert last == f"taskservice: cannot reach {machine.url}: no response in time\n"
    assert (process.returncode, shown) == (69, "")


@pytest.mark.parametrize(("away", "problem"), PROBLEMS.values(), ids=PROBLEMS)
def test_problem_is_named(
    machine: AgentMachine, away: Callable[[], AbstractContextManager[str]], problem: str
) -> None:
    machine.patch(SHORT)
    with away() as machine.url:
        done = machine.run("task", "list")
    assert (done.returncode, done.stdout) == (69, "")
    notice, last = done.stderr.splitlines()
    assert problem in notice
    assert notice.endswith("; retrying for 2 s")
    assert last.startswith("taskservice: ")


def test_person_waits_ten_seconds(machine: AgentMachine) -> None:
    assert service_client.NOTICE_SECONDS < 2
    began = time.monotonic()
    with black_hole() as machine.url:
        done = machine.run("grep", "disk")
    assert 9 < time.monotonic() - began < FOLLOW_SECONDS
    assert done.returncode == 69
    assert "retrying for 10 s" in done.stderr


def test_command_continues_when_the_service_responds_again(machine: AgentMachine) -> None:
    machine.user.start("a", name="nightly")
    with Receiver() as receiver:
        receiver.answer = played.passing_on(
            machine.user,
            lambda request: len(receiver.requests) == 1,
            played.problem(503, "The database is busy"),
        )
        machine.url = receiver.url
        done = machine.run("task", "list")
    assert (done.returncode, done.stderr) == (0, "")
    assert "nightly" in done.stdout


def test_terminal_is_told_too(machine: AgentMachine) -> None:
    machine.patch(SHORT)
    with closed_port() as machine.url:
        shown = on_terminal([*machine.command, "grep", "disk"], machine.environment)
    assert len(shown.splitlines()) == 2
    assert "Connection refused; retrying for 2 s" in shown


def test_command_of_a_program_waits_as_before(machine: AgentMachine) -> None:
    """It says nothing while it retries: its output is the program's."""
    machine.settings["TASKSERVICE_TASK_ID"] = TASK
    with closed_port() as machine.url:
        done = machine.run("progress", "1/2")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
