"""`taskservice listen`: webhooks for a developer, shown here or sent on to a local address."""

import json
import re
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import Popen
from typing import Any

import requests
from standardwebhooks import Webhook

from taskservice.webhooks.signing import new_secret, sign
from tests.support import receiver as play
from tests.support import service_answers as played
from tests.support.agent_machine import AgentMachine, kill, machine_of
from tests.support.api_client import RemoteClient
from tests.support.cheap_subtests import CheapSubtests
from tests.support.receiver import Received, Receiver
from tests.support.service import Service, free_port
from tests.support.service_answers import losing


@contextmanager
def listening(machine: AgentMachine, url: str) -> Iterator[Popen[str]]:
    process = machine.spawn("listen", "--forward", url)
    assert process.stderr is not None
    assert "forwarding finished tasks to" in process.stderr.readline()
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
    remote_alice: RemoteClient, machine: AgentMachine
) -> None:
    with Receiver() as callback, Receiver() as local, listening(machine, local.url):
        task = remote_alice.start(name="nächtlich \u2028", callback=callback.url, input={"a": 1.5})
        lines = [f"line {number}" for number in range(1_500)]
        path = f"/task/{task['id']}/logs"
        remote_alice.request("POST", path, json={"logs": lines}).raise_for_status()
        finish(remote_alice, task, output={"sum": 15})
        (ours,) = local.wait_for(1, 20)
        (theirs,) = callback.wait_for(1, 20)
    assert ours.body == theirs.body
    own = {"host", "webhook-id", "webhook-timestamp", "webhook-signature"}
    assert {k: v for k, v in ours.headers.items() if k not in own} == {
        k: v for k, v in theirs.headers.items() if k not in own
    }
    Webhook(secret(remote_alice)).verify(ours.body, ours.headers)


def test_log_of_long_lines_is_cut_as_the_webhook_has_it(
    remote_alice: RemoteClient, machine: AgentMachine
) -> None:
    with Receiver() as callback, Receiver() as local, listening(machine, local.url):
        task = remote_alice.start(callback=callback.url)
        lines = {"logs": ["ü" * 30_000] * 20}
        remote_alice.request("POST", f"/task/{task['id']}/logs", json=lines).raise_for_status()
        finish(remote_alice, task)
        (ours,) = local.wait_for(1, 20)
        (theirs,) = callback.wait_for(1, 20)
    assert ours.body == theirs.body
    assert json.loads(ours.body)["firstLog"] == 17


def test_each_task_comes_once_and_none_from_before(
    remote_alice: RemoteClient, machine: AgentMachine
) -> None:
    before = remote_alice.start()
    finish(remote_alice, before)
    # The service tells its time by the second.
    time.sleep(1.1)
    with Receiver() as local, listening(machine, local.url):
        tasks = [remote_alice.start() for _ in range(120)]
        for task in tasks:
            finish(remote_alice, task)
        local.wait_for(120, 60)
        last = remote_alice.start()
        finish(remote_alice, last)
        received = local.wait_for(121, 20)
    assert sorted(ids(received)) == sorted([*(task["id"] for task in tasks), last["id"]])
    assert len({request.headers["webhook-id"] for request in received}) == 121


def test_receiver_that_fails_gets_the_same_webhook_again(
    remote_alice: RemoteClient, machine: AgentMachine
) -> None:
    with Receiver() as local, listening(machine, local.url) as process:
        local.answer = play.answer(500, {"Set-Cookie": "a=b"})
        failing = remote_alice.start(name="failing")
        finish(remote_alice, failing)
        local.wait_for(1, 20)
        local.answer = play.answer(204)
        other = remote_alice.start()
        finish(remote_alice, other)
        requests = local.wait_for(3, 20)
        assert process.stdout is not None
        first = process.stdout.readline()
    assert first.startswith(f"{failing['id']} failing: 500 ")
    repeats = [r for r in requests if json.loads(r.body)["id"] == failing["id"]]
    assert len(repeats) == 2
    assert repeats[0].headers["webhook-id"] == repeats[1].headers["webhook-id"]
    assert repeats[0].body == repeats[1].body
    assert not any("cookie" in request.headers for request in requests)


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


def test_listener_survives_the_page_of_a_proxy(
    remote_alice: RemoteClient, machine: AgentMachine
) -> None:
    with Receiver() as proxy, Receiver() as local:
        proxy.answer = passed_on = losing(remote_alice, lambda number: False)
        machine.url = proxy.url
        with listening(machine, local.url) as process:
            proxy.answer = play.answer(404, {"Content-Type": "text/plain"}, b"404 page not found")
            assert process.stdout is not None
            assert "returned 404, but the response is not from" in process.stdout.readline()
            proxy.answer = passed_on
            task = remote_alice.start()
            finish(remote_alice, task)
            assert ids(local.wait_for(1)) == [task["id"]]


def test_response_of_the_receiver_is_read_in_part(
    remote_alice: RemoteClient, machine: AgentMachine, subtests: CheapSubtests
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
                finish(remote_alice, remote_alice.start(name=name))
                assert printed(process).endswith(f" {name}: 200 Fine\n")


def test_malformed_secret_is_one_line(
    remote_alice: RemoteClient, machine: AgentMachine, subtests: CheapSubtests
) -> None:
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
        service.answer = passed_on = losing(remote_alice, lambda number: False)
        machine.url = service.url
        with listening(machine, local.url) as process:
            service.paths["/api/v1/callback-secret"] = played.answer(200, {"secret": "whsec_a"})
            task = remote_alice.start()
            finish(remote_alice, task)
            assert printed(process) == "the service has no valid callback secret\n"
            service.paths["/api/v1/callback-secret"] = passed_on
            assert ids(local.wait_for(1)) == [task["id"]]


def test_netrc_of_the_home_folder_is_not_used(
    remote_alice: RemoteClient, machine: AgentMachine
) -> None:
    (machine.home / ".netrc").write_text("machine 127.0.0.1 login a password b\n")
    with Receiver() as local, listening(machine, local.url):
        finish(remote_alice, remote_alice.start())
        (request,) = local.wait_for(1, 20)
    assert "authorization" not in request.headers


def test_wrong_use_is_one_line(remote_alice: RemoteClient, machine: AgentMachine) -> None:
    for url in ("nonsense", "http://[::1", "http://x:99999/"):
        nowhere = machine.run("listen", "--forward", url)
        assert nowhere.returncode == 2
        assert "must be a URL such as" in nowhere.stderr
    remote_alice.request("PUT", "/agent/a").raise_for_status()
    machine.key = remote_alice.request("POST", "/key", json={"name": "a", "agentId": "a"}).json()[
        "key"
    ]
    narrow = machine.run("listen", "--forward", "http://127.0.0.1:9/")
    assert narrow.returncode == 1
    assert len(narrow.stderr.splitlines()) == 1
    assert machine.run("listen", "--port", str(free_port())).returncode == 1


# --- shown here --------------------------------------------------------------------------


@contextmanager
def receiving(machine: AgentMachine, *options: str) -> Iterator[tuple[Popen[str], str]]:
    """`listen` without --forward, and the callback that it shows."""
    port = free_port()
    process = machine.spawn("listen", "--port", str(port), *options)
    url = f"http://127.0.0.1:{port}/"
    assert process.stderr is not None
    assert f"listening on {url}" in process.stderr.readline()
    yield process, url
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 0


def printed(process: Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_callback_is_verified_and_shown(remote_alice: RemoteClient, machine: AgentMachine) -> None:
    with receiving(machine) as (process, url):
        task = remote_alice.start(name="nächtlich", callback=url)
        changes = {"status": "complete", "output": {"sum": 15}}
        ended = remote_alice.request("PATCH", f"/task/{task['id']}", json=changes)
        assert ended.headers["Callback-Status"] == "delivered"
        assert printed(process) == (
            f'{task["id"]} nächtlich: complete {{"sum": 15}}, signature verified\n'
        )
        task = remote_alice.start(callback=url)
        finish(remote_alice, task, status="error", error={"message": "two\nlines"})
        assert f"{task['id']} " in (line := printed(process))
        assert "error failed: two" in line
        assert line.endswith("lines, signature verified\n")


def test_callback_is_shown_as_it_came(remote_alice: RemoteClient, machine: AgentMachine) -> None:
    with receiving(machine, "--json") as (process, url):
        task = remote_alice.start(callback=url, input={"a": 1.5})
        finish(remote_alice, task)
        shown = json.loads(printed(process))
    assert shown == remote_alice.request("GET", f"/task/{task['id']}").json()


def test_callback_is_verified_after_the_secret_was_rotated(
    remote_alice: RemoteClient, machine: AgentMachine
) -> None:
    with receiving(machine) as (process, url):
        remote_alice.request("POST", "/callback-secret").raise_for_status()
        finish(remote_alice, remote_alice.start(callback=url))
        assert "signature verified" in printed(process)


def test_malformed_request_is_refused_and_the_listener_goes_on(
    remote_alice: RemoteClient, machine: AgentMachine, subtests: CheapSubtests
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
        finish(remote_alice, remote_alice.start(callback=url))
        assert "signature verified" in printed(process)


def status_of(url: str, request: bytes) -> int:
    """The status of the response to these bytes."""
    with socket.create_connection(("127.0.0.1", int(url.split(":")[2].strip("/"))), 30) as sender:
        # The listener may close the connection before it has read all.
        with suppress(BrokenPipeError, ConnectionResetError):
            sender.sendall(request)
        response = b"".join(iter(lambda: sender.recv(65_536), b""))
    # To a request that names no version of HTTP, the response has no status line.
    found = re.search(rb"^HTTP/1.. ([0-9]{3})|Error code: ([0-9]{3})", response)
    assert found is not None, response
    return int(found[1] or found[2])


def test_unsigned_request_is_refused_and_not_shown(
    remote_alice: RemoteClient, machine: AgentMachine
) -> None:
    with receiving(machine) as (process, url):
        body = json.dumps({"id": "1", "name": "x", "status": "complete", "output": {}}).encode()
        signed = sign([new_secret()], "0193", int(time.time()), body)
        assert requests.post(url, data=body, timeout=10).status_code == 400
        assert requests.post(url, data=body, headers=signed, timeout=10).status_code == 400
        assert requests.get(url, timeout=10).status_code == 501
        assert process.stderr is not None
        assert "refused a request without a valid signature" in process.stderr.readline()
        # A sender may close the connection in the middle of its body.
        with socket.create_connection(("127.0.0.1", int(url.split(":")[2].strip("/")))) as half:
            half.sendall(b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nab")
        task = remote_alice.start(callback=url)
        finish(remote_alice, task)
        assert printed(process).startswith(task["id"])


def test_callback_waits_while_the_listener_cannot_ask_for_the_secret(
    remote_alice: RemoteClient, machine: AgentMachine
) -> None:
    machine.give_up_soon()
    with Receiver() as proxy:
        proxy.answer = passed_on = losing(remote_alice, lambda number: False)
        machine.url = proxy.url
        with receiving(machine) as (process, url):
            assert process.stderr is not None
            for failure, message in (
                (play.reset(), "cannot reach"),
                (play.answer(503), "returned status 503"),
                (play.answer(404, {"Content-Type": "text/plain"}, b"page"), "returned 404"),
            ):
                proxy.answer = failure
                assert requests.post(url, data=b"{}", timeout=60).status_code == 503
                assert message in process.stderr.readline()
            proxy.answer = passed_on
            finish(remote_alice, remote_alice.start(callback=url))
            assert "signature verified" in printed(process)


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
