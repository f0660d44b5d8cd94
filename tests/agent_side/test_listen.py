"""`taskservice listen`: webhooks for a developer, shown here or sent on to a local address."""

import json
import re
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
import requests
from standardwebhooks import Webhook

from taskservice.webhooks.signing import new_secret, sign
from tests.support import receiver as play
from tests.support import service_answers as played
from tests.support.agent_machine import AgentMachine, Command, kill
from tests.support.api_client import RemoteClient
from tests.support.cheap_subtests import CheapSubtests
from tests.support.receiver import Received, Receiver
from tests.support.service import Service, free_port
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
    assert machine.run("listen", "--port", str(free_port())).returncode == 1


# --- shown here --------------------------------------------------------------------------


@contextmanager
def receiving(machine: AgentMachine, *options: str) -> Iterator[tuple[Command, str]]:
    """`listen` without --forward, and the callback that it shows."""
    port = free_port()
    process = machine.spawn("listen", "--port", str(port), *options)
    url = f"http://127.0.0.1:{port}/"
    assert f"listening on {url}" in process.read_error()
    yield process, url
    process.end(signal.SIGINT)
    assert process.returncode == 0


def test_callback_is_verified_and_shown(machine: AgentMachine) -> None:
    with receiving(machine) as (process, url):
        task = machine.user.start(name="nächtlich", callback=url)
        changes = {"status": "complete", "output": {"sum": 15}}
        ended = machine.user.request("PATCH", f"/task/{task['id']}", json=changes)
        assert ended.headers["Callback-Status"] == "delivered"
        assert process.read_line() == (
            f'{task["id"]} nächtlich: complete {{"sum": 15}}, signature verified\n'
        )
        machine.user.write("POST", "/callback-secret")  # the listener verifies by the new one
        task = machine.user.start(callback=url)
        machine.user.report(task, status="error", error={"message": "two\nlines"})
        assert f"{task['id']} " in (line := process.read_line())
        assert "error failed: two" in line
        assert line.endswith("lines, signature verified\n")


def test_callback_is_shown_as_it_came(machine: AgentMachine) -> None:
    with receiving(machine, "--json") as (process, url):
        task = machine.user.start(callback=url, input={"a": 1.5})
        machine.user.report(task, status="complete")
        shown = json.loads(process.read_line())
    assert shown == machine.user.read(f"/task/{task['id']}")


def test_malformed_request_is_refused_and_the_listener_goes_on(
    machine: AgentMachine, subtests: CheapSubtests
) -> None:
    with receiving(machine) as (process, url):
        for request, status in {
            "POST / HTTP/1.1\r\nContent-Length: " + "9" * 5_000: 400,
            "POST / HTTP/1.1\r\nContent-Length: " + "0" * 5_000: 400,
            "POST / HTTP/1.1\r\nContent-Length: -1": 400,
            "POST / HTTP/1.1\r\nContent-Length: ten": 400,
            "POST / HTTP/1.1\r\nContent-Length: \xb2": 400,
            "POST / HTTP/1.1\r\nContent-Length:": 400,
            "POST / HTTP/1.1\r\nX-Other: 1": 400,
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked": 400,
            "POST / HTTP/1.1\r\nContent-Length: 0\r\nwebhook-timestamp: " + "9" * 5_000: 400,
            "POST / HTTP/1.1\r\nContent-Length: 0\r\nwebhook-signature: \xff": 400,
            "POST / HTTP/1.1\r\nno header": 400,
            "POST / HTTP/1.1\r\n" + "X: 1\r\n" * 200 + "Y: 1": 431,
            "POST / HTTP/1.1\r\nX: " + "x" * 70_000: 431,
            "POST / HTTP/" + "9" * 5_000 + ".1": 400,
            "POST / HTTP/\xb2.\xb2": 400,
            "POST / HTTP/7.0": 505,
            "POST " + "/" * 70_000 + " HTTP/1.1": 414,
            "__class__ / HTTP/1.1": 501,
            "\0\xff\0": 400,
        }.items():
            with subtests.test(repr(request[:50])):
                assert status_of(url, request.encode("latin-1") + b"\r\n\r\n") == status
        machine.user.report(machine.user.start(callback=url), status="complete")
        assert "signature verified" in process.read_line()


def status_of(url: str, request: bytes) -> int:
    """The status of the response to these bytes."""
    with socket.create_connection(("127.0.0.1", int(url.split(":")[2].strip("/"))), 30) as sender:
        # The listener may close the connection before it has read all.
        with suppress(BrokenPipeError, ConnectionResetError):
            sender.sendall(request)
        response = b"".join(iter(lambda: sender.recv(65_536), b""))
    # To a request that names no version of HTTP, the response has no status line.
    match = re.search(rb"^HTTP/1.. ([0-9]{3})|Error code: ([0-9]{3})", response)
    assert match is not None, response
    return int(match[1] or match[2])


def test_unsigned_request_is_refused_and_not_shown(machine: AgentMachine) -> None:
    with receiving(machine) as (process, url):
        body = json.dumps({"id": "1", "name": "x", "status": "complete", "output": {}}).encode()
        signed = sign([new_secret()], "0193", int(time.time()), body)
        assert requests.post(url, data=body, timeout=10).status_code == 400
        assert requests.post(url, data=body, headers=signed, timeout=10).status_code == 400
        assert requests.get(url, timeout=10).status_code == 501
        assert "refused a request without a valid signature" in process.read_error()
        # A sender may close the connection in the middle of its body.
        with socket.create_connection(("127.0.0.1", int(url.split(":")[2].strip("/")))) as half:
            half.sendall(b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nab")
        task = machine.user.start(callback=url)
        machine.user.report(task, status="complete")
        assert process.read_line().startswith(task["id"])


def test_callback_waits_while_the_listener_cannot_ask_for_the_secret(machine: AgentMachine) -> None:
    machine.give_up_soon()
    with Receiver() as proxy:
        proxy.answer = passed_on = passing_on(machine.user)
        machine.url = proxy.url
        with receiving(machine) as (process, url):
            for failure, message in (
                (play.reset(), "cannot reach"),
                (play.answer(503), "returned status 503"),
                (play.answer(404, {"Content-Type": "text/plain"}, b"page"), "returned 404"),
            ):
                proxy.answer = failure
                assert requests.post(url, data=b"{}", timeout=60).status_code == 503
                assert message in process.read_error()
            proxy.answer = passed_on
            machine.user.report(machine.user.start(callback=url), status="complete")
            assert "signature verified" in process.read_line()


def test_port_that_is_taken_is_one_line(machine: AgentMachine) -> None:
    with Receiver() as taken:
        port = taken.port
        result = machine.run("listen", "--port", str(port))
    assert result.returncode == 1
    assert f"can't listen on 127.0.0.1:{port}: " in result.stderr
    assert len(result.stderr.splitlines()) == 1
    both = machine.run("listen", "--forward", "http://127.0.0.1:9/", "--port", "9001")
    assert both.returncode == 2
    assert "--forward can't be used with" in both.stderr
