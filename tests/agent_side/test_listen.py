"""`taskservice listen`: webhooks for a developer, sent on to a local address."""

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from standardwebhooks import Webhook

from tests.support import receiver as play
from tests.support import service_answers as played
from tests.support.agent_machine import AgentMachine, Command, kill
from tests.support.api_client import RemoteClient
from tests.support.cheap_subtests import CheapSubtests
from tests.support.receiver import Received, Receiver
from tests.support.service import Service
from tests.support.service_answers import passing_on


@contextmanager
def listening(machine: AgentMachine, url: str) -> Iterator[Command]:
    process = machine.spawn("listen", "--forward", url)
    assert "forwarding finished tasks to" in process.read_error()
    yield process
    process.end(signal.SIGINT)
    assert process.returncode == 0


def secret(person: RemoteClient) -> str:
    return str(person.read("/callback-secret")["secret"])


def ids(requests: list[Received]) -> list[str]:
    return [json.loads(request.body)["id"] for request in requests]


@pytest.mark.parametrize(
    ("lines", "first"), [([f"line {n}" for n in range(1_500)], 501), (["ü" * 30_000] * 20, 17)]
)
def test_finished_tasks_come_as_the_webhooks_would(
    machine: AgentMachine, lines: list[str], first: int
) -> None:
    """With the last lines of a long log, and without a password of the home directory."""
    (machine.home / ".netrc").write_text("machine 127.0.0.1 login a password b\n")
    with Receiver() as callback, Receiver() as local, listening(machine, local.url):
        task = machine.user.start(name="nächtlich \u2028", callback=callback.url, input={"a": 1.5})
        machine.user.append(task, *lines)
        machine.user.report(task, status="complete", output={"sum": 15})
        (ours,) = local.wait_for(1, 20)
        (theirs,) = callback.wait_for(1, 20)
    assert ours.body == theirs.body
    assert json.loads(ours.body)["firstLog"] == first
    changing = {"host", "webhook-id", "webhook-timestamp", "webhook-signature"}
    assert {k: v for k, v in ours.headers.items() if k not in changing} == {
        k: v for k, v in theirs.headers.items() if k not in changing
    }
    Webhook(secret(machine.user)).verify(ours.body, ours.headers)


def test_each_task_comes_once_and_none_from_before(machine: AgentMachine) -> None:
    before = machine.user.start()
    machine.user.report(before, status="complete")
    # The service tells its time by the second.
    time.sleep(1.1)
    with Receiver() as local, listening(machine, local.url):
        tasks = [machine.user.start() for _ in range(120)]
        for task in tasks:
            machine.user.report(task, status="complete")
        local.wait_for(120, 60)
        last = machine.user.start()
        machine.user.report(last, status="complete")
        received = local.wait_for(121, 20)
    assert sorted(ids(received)) == sorted([*(task["id"] for task in tasks), last["id"]])
    assert len({request.headers["webhook-id"] for request in received}) == 121


def test_receiver_that_fails_gets_the_same_webhook_again(machine: AgentMachine) -> None:
    with Receiver() as local, listening(machine, local.url) as process:
        local.answer = play.answer(500, {"Set-Cookie": "a=b"})
        failing = machine.user.start(name="failing")
        machine.user.report(failing, status="complete")
        local.wait_for(1, 20)
        local.answer = play.answer(204)
        other = machine.user.start()
        machine.user.report(other, status="complete")
        requests = local.wait_for(3, 20)
        first = process.read_line()
    assert first.startswith(f"{failing['id']} failing: 500 ")
    repeats = [r for r in requests if json.loads(r.body)["id"] == failing["id"]]
    assert len(repeats) == 2
    assert repeats[0].headers["webhook-id"] == repeats[1].headers["webhook-id"]
    assert repeats[0].body == repeats[1].body
    assert not any("cookie" in request.headers for request in requests)


def test_listener_survives_a_restart_of_the_service(
    own_service: Service, own_machine: AgentMachine
) -> None:
    with Receiver() as local, listening(own_machine, local.url):
        kill(own_service)
        own_service.start()
        task = own_machine.user.start()
        own_machine.user.report(task, status="complete")
        assert ids(local.wait_for(1)) == [task["id"]]


def test_response_of_the_receiver_is_read_in_part(
    machine: AgentMachine, subtests: CheapSubtests
) -> None:
    head = b"HTTP/1.1 200 Fine\r\n\r\n"
    machine.patch("listen.ATTEMPT_SECONDS = 3")
    with Receiver() as local, listening(machine, local.url) as process:
        for name, answer in {
            "endless": play.endless(b"x" * 65_536, head),
            "dripping": play.drip(b"x" * 100_000, 0.1, head),
        }.items():
            with subtests.test(name):
                local.answer = answer
                machine.user.report(machine.user.start(name=name), status="complete")
                assert process.read_line().endswith(f" {name}: 200 Fine\n")


def test_malformed_secret_is_one_line(machine: AgentMachine, subtests: CheapSubtests) -> None:
    with Receiver() as service:
        machine.url = service.url
        for kept in ("", "whsec_", "whsec_abc", "whsec_é", "\ud800"):
            with subtests.test(ascii(kept)):
                service.answer = played.answer(200, {"secret": kept})
                result = machine.run("listen", "--forward", "http://127.0.0.1:9/")
                assert result.returncode == 2
                assert len(result.stderr.splitlines()) == 1
                assert "the service has no valid callback secret" in result.stderr
    with Receiver() as service, Receiver() as local:
        service.answer = passed_on = passing_on(machine.user)
        machine.url = service.url
        with listening(machine, local.url) as process:
            service.paths["/api/v1/callback-secret"] = played.answer(200, {"secret": "whsec_a"})
            task = machine.user.start()
            machine.user.report(task, status="complete")
            assert process.read_line() == "the service has no valid callback secret\n"
            service.paths["/api/v1/callback-secret"] = passed_on
            assert ids(local.wait_for(1)) == [task["id"]]


def test_wrong_use_is_one_line(machine: AgentMachine) -> None:
    for url in ("nonsense", "http://[::1", "http://x:99999/"):
        nowhere = machine.run("listen", "--forward", url)
        assert nowhere.returncode == 2
        assert "must be a URL such as" in nowhere.stderr
    machine.key = machine.user.agent_key("a")
    narrow = machine.run("listen", "--forward", "http://127.0.0.1:9/")
    assert narrow.returncode == 1
    assert len(narrow.stderr.splitlines()) == 1
