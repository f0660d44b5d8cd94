"""`taskservice listen`: webhooks for a developer whose machine cannot be reached."""

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
from standardwebhooks import Webhook

from tests.support import receiver as play
from tests.support.agent_machine import AgentMachine, kill, machine_of
from tests.support.api_client import RemoteClient
from tests.support.receiver import Received, Receiver
from tests.support.service import Service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One for all tests here."""
    with Service(tmp_path_factory.mktemp("listen") / "data") as service:
        yield service


@pytest.fixture(scope="module")
def alice(service: Service) -> RemoteClient:
    return service.add_user()


@pytest.fixture
def machine(alice: RemoteClient, tmp_path: Path) -> AgentMachine:
    return machine_of(alice, tmp_path / "home")


@contextmanager
def listening(machine: AgentMachine, url: str) -> Iterator[Popen[str]]:
    process = machine.spawn("listen", "--forward", url)
    assert process.stderr is not None
    assert "tasks that finish now go to" in process.stderr.readline()
    yield process
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 0


def finish(person: RemoteClient, task: dict[str, Any], **changes: Any) -> None:
    changes = {"status": "complete"} | changes
    person.request("PATCH", f"/task/{task['id']}", json=changes).raise_for_status()


def secret(person: RemoteClient) -> str:
    return str(person.request("GET", "/callback-secret").json()["secret"])


def ids(requests: list[Received]) -> list[str]:
    return [json.loads(request.body)["id"] for request in requests]


def test_finished_tasks_come_as_the_webhooks_would(
    alice: RemoteClient, machine: AgentMachine
) -> None:
    with Receiver() as callback, Receiver() as local, listening(machine, local.url):
        task = alice.start(name="nächtlich \u2028", callback=callback.url, input={"a": 1.5})
        lines = [f"line {number}" for number in range(1_500)]
        path = f"/task/{task['id']}/logs"
        alice.request("POST", path, json={"logs": lines}).raise_for_status()
        finish(alice, task, output={"sum": 15})
        (ours,) = local.wait_for(1, 20)
        (theirs,) = callback.wait_for(1, 20)
    assert ours.body == theirs.body
    own = {"host", "webhook-id", "webhook-timestamp", "webhook-signature", "connection",
           "accept-encoding"}  # fmt: skip
    assert {k: v for k, v in ours.headers.items() if k not in own} == {
        k: v for k, v in theirs.headers.items() if k not in own
    }
    Webhook(secret(alice)).verify(ours.body, ours.headers)


def test_log_of_long_lines_is_cut_as_the_webhook_has_it(
    alice: RemoteClient, machine: AgentMachine
) -> None:
    with Receiver() as callback, Receiver() as local, listening(machine, local.url):
        task = alice.start(callback=callback.url)
        lines = {"logs": ["ü" * 30_000] * 20}
        alice.request("POST", f"/task/{task['id']}/logs", json=lines).raise_for_status()
        finish(alice, task)
        (ours,) = local.wait_for(1, 20)
        (theirs,) = callback.wait_for(1, 20)
    assert ours.body == theirs.body
    assert json.loads(ours.body)["firstLog"] == 17


def test_each_task_comes_once_and_none_from_before(
    alice: RemoteClient, machine: AgentMachine
) -> None:
    before = alice.start()
    finish(alice, before)
    # The service tells its time by the second.
    time.sleep(1.1)
    with Receiver() as local, listening(machine, local.url):
        tasks = [alice.start() for _ in range(120)]
        for task in tasks:
            finish(alice, task)
        local.wait_for(120, 60)
        last = alice.start()
        finish(alice, last)
        received = local.wait_for(121, 20)
    assert sorted(ids(received)) == sorted([*(task["id"] for task in tasks), last["id"]])
    assert len({request.headers["webhook-id"] for request in received}) == 121


def test_receiver_that_fails_gets_the_same_webhook_again(
    alice: RemoteClient, machine: AgentMachine
) -> None:
    with Receiver() as local, listening(machine, local.url) as process:
        local.answer = play.answer(500)
        failing = alice.start(name="failing")
        finish(alice, failing)
        local.wait_for(1, 20)
        local.answer = play.answer(204)
        other = alice.start()
        finish(alice, other)
        requests = local.wait_for(3, 20)
        assert process.stdout is not None
        first = process.stdout.readline()
    assert first.startswith(f"{failing['id']} failing: 500 ")
    repeats = [r for r in requests if json.loads(r.body)["id"] == failing["id"]]
    assert len(repeats) == 2
    assert repeats[0].headers["webhook-id"] == repeats[1].headers["webhook-id"]
    assert repeats[0].body == repeats[1].body


def test_listener_survives_a_restart_of_the_service(tmp_path: Path) -> None:
    with Service(tmp_path / "data") as service:
        alice = service.add_user()
        machine = machine_of(alice, tmp_path / "home")
        with Receiver() as local, listening(machine, local.url):
            kill(service)
            service.start()
            task = alice.start()
            finish(alice, task)
            assert ids(local.wait_for(1, 30)) == [task["id"]]


def test_environment_has_no_part_in_it(alice: RemoteClient, machine: AgentMachine) -> None:
    (machine.home / ".netrc").write_text("machine 127.0.0.1 login a password b\n")
    with Receiver() as local, listening(machine, local.url):
        finish(alice, alice.start())
        (request,) = local.wait_for(1, 20)
    assert "authorization" not in request.headers


def test_wrong_use_is_one_line(alice: RemoteClient, machine: AgentMachine) -> None:
    for url in ("nonsense", "http://[::1", "http://x:99999/"):
        nowhere = machine.run("listen", "--forward", url)
        assert nowhere.returncode == 2
        assert "must be a URL such as" in nowhere.stderr
    alice.request("PUT", "/agent/a").raise_for_status()
    machine.key = alice.request("POST", "/key", json={"name": "a", "agentId": "a"}).json()["key"]
    narrow = machine.run("listen", "--forward", "http://127.0.0.1:9/")
    assert narrow.returncode == 1
    assert len(narrow.stderr.splitlines()) == 1
