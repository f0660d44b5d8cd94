"""Fixtures of the agent's side: a service for all tests of a module, and a machine with a key."""

import os
import pty
import subprocess
import sys
import termios
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from taskservice.client import Client, http, sender
from tests.support.agent_machine import AgentMachine, AtTerminal
from tests.support.api_client import RemoteClient
from tests.support.documents import ROOT, Terminal, install_commands
from tests.support.service import Service


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the attempts of a request, as the commands have them, and at the end of a task."""
    monkeypatch.setattr(http, "FIRST_DELAY", 0.05)
    monkeypatch.setattr(http, "LONGEST_DELAY", 0.3)
    monkeypatch.setattr(sender, "_POLL_SECONDS", 0.02)


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What `taskservice login` has kept on this machine is of no test."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture(scope="module")
def shared_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One for all tests of a module."""
    with Service(tmp_path_factory.mktemp("agent-side") / "data") as service:
        yield service


@pytest.fixture
def own_service(tmp_path: Path) -> Iterator[Service]:
    """One that a test stops or kills."""
    with Service(tmp_path / "data") as service:
        yield service


@pytest.fixture
def own_machine(own_service: Service, tmp_path: Path) -> Iterator[AgentMachine]:
    """The machine of a user of `own_service`."""
    machine = AgentMachine(tmp_path / "home", own_service.add_user())
    yield machine
    machine.kill_left()


@pytest.fixture
def remote_alice(shared_service: Service) -> RemoteClient:
    """A new user in each test, so that none finds what an earlier one has left."""
    return shared_service.add_user()


@pytest.fixture
def client(remote_alice: RemoteClient) -> Client:
    return remote_alice.client()


@pytest.fixture
def machine(remote_alice: RemoteClient, tmp_path: Path) -> Iterator[AgentMachine]:
    machine = AgentMachine(tmp_path / "home", remote_alice)
    yield machine
    machine.kill_left()


TAKES_THE_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(1, termios.TIOCSCTTY, 0); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)


@pytest.fixture
def at_terminal(machine: AgentMachine) -> Iterator[AtTerminal]:
    """Runs a program as a task on a new terminal of 40 by 10; returns the terminal's other end."""
    opened = []

    def start(
        *program: str, options: Sequence[str] = (), stdin: int | None = None
    ) -> tuple[subprocess.Popen[bytes], int]:
        leader, follower = pty.openpty()
        termios.tcsetwinsize(follower, (10, 40))
        command = [*machine.command, "run", *options, "--agent", "a", "--", *program]
        process = subprocess.Popen(
            [sys.executable, "-c", TAKES_THE_TERMINAL, *command],
            env=machine.environment, start_new_session=True,
            stdin=follower if stdin is None else stdin, stdout=follower, stderr=follower,
        )  # fmt: skip
        os.close(follower)
        opened.append((process, leader))
        return process, leader

    yield start
    for process, leader in opened:
        os.close(leader)
        if process.poll() is None:
            process.kill()
        process.wait()


@pytest.fixture
def agents_terminal(terminal: Terminal, machine: AgentMachine, tmp_path: Path) -> Terminal:
    """A terminal on the agent's machine, where `taskservice` and `python` are installed."""
    folder = install_commands(tmp_path / "bin")
    terminal.run(
        f"export PATH={folder}:$PATH PYTHONPATH={ROOT} XDG_STATE_HOME={tmp_path}\n"
        f"export TASKSERVICE_URL={machine.url} TASKSERVICE_APIKEY={machine.key}"
    )
    return terminal
