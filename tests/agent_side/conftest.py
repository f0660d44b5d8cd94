"""Fixtures of the agent's side: a service for all tests of a module, and a machine with a key."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from taskservice.client import http, sender
from tests.support.agent_machine import AgentMachine, machine_of
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
def remote_alice(shared_service: Service) -> RemoteClient:
    """A new user in each test, so that none finds what an earlier one has left."""
    return shared_service.add_user()


@pytest.fixture
def machine(remote_alice: RemoteClient, tmp_path: Path) -> Iterator[AgentMachine]:
    machine = machine_of(remote_alice, tmp_path / "home")
    yield machine
    machine.kill_left()


@pytest.fixture
def agents_terminal(terminal: Terminal, machine: AgentMachine, tmp_path: Path) -> Terminal:
    """A terminal on the agent's machine, where `taskservice` and `python` are installed."""
    folder = install_commands(tmp_path / "bin")
    terminal.run(
        f"export PATH={folder}:$PATH PYTHONPATH={ROOT} XDG_STATE_HOME={tmp_path}\n"
        f"export TASKSERVICE_URL={machine.url} TASKSERVICE_APIKEY={machine.key}"
    )
    return terminal
