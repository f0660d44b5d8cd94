"""`/mcp` of the running service: clients that leave, many at once, and a service that dies."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import requests
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from tests.support.api_client import RemoteClient
from tests.support.concurrency import copies
from tests.support.mcp import TASKS, Json, McpClient, structured
from tests.support.service import Service
from tests.support.waiting import until

# The longest wait of a call, in seconds.
WAIT = 45
CALLERS = 100


def user_with_served_tool(service: Service) -> RemoteClient:
    """A user with an agent that is a tool, and whose worker was seen just now."""
    alice = service.add_user("alice")
    alice.request("PUT", "/agent/summarizer", json={"tool": True}).raise_for_status()
    data = service.environment["TASKSERVICE_DATA"]
    url = service.environment.get("TASKSERVICE_DATABASE_URL") or f"sqlite:///{data}/taskservice.db"
    with create_engine(url, poolclass=NullPool).begin() as connection:
        connection.execute(text("UPDATE agents SET worker_seen_at = created_at"))
    return alice


def request_of(person: RemoteClient, method: str, params: Json) -> bytes:
    """A whole request of the legacy era, for a socket."""
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
    head = (
        "POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"apikey: {person.session.headers['apikey']!s}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def tasks_of(person: RemoteClient) -> list[Json]:
    tasks: list[Json] = person.request("GET", "/task").json()
    return tasks


def answered(person: RemoteClient) -> int:
    """How many requests to /mcp have been answered."""
    text = requests.get(f"{person.url}/metrics", timeout=30).text
    lines = [line for line in text.splitlines() if 'route="/mcp"' in line]
    counts = [line for line in lines if line.startswith("taskservice_requests_total")]
    return sum(int(line.rpartition(" ")[2]) for line in counts)


def test_client_that_hangs_up_frees_its_thread_and_its_task_continues(tmp_path: Path) -> None:
    with Service(tmp_path / "data", WAITS="2") as service:
        alice = user_with_served_tool(service)
        began = time.monotonic()
        for count in (1, 2):
            with socket.create_connection(("127.0.0.1", service.port)) as client:
                client.sendall(request_of(alice, "tools/call", {"name": "summarizer"}))
                until(lambda count=count: len(tasks_of(alice)) == count)  # type: ignore[misc]
        # Both slots of waits are free again, long before the wait would have ended.
        until(lambda: answered(alice) == 2)
        assert time.monotonic() - began < WAIT
        for task in tasks_of(alice):
            assert task["status"] == "running"
            alice.request("PATCH", f"/task/{task['id']}", json={"status": "complete"})
        assert [task["status"] for task in tasks_of(alice)] == ["complete"] * 2


def test_of_a_hundred_calls_eight_may_wait_and_the_rest_is_told_at_once(tmp_path: Path) -> None:
    with Service(tmp_path / "data", WAITS="8") as service:
        alice = user_with_served_tool(service)
        callers = [McpClient(person) for person in copies(alice, CALLERS)]
        with ThreadPoolExecutor(CALLERS) as pool:
            calls = [pool.submit(caller.call, "summarizer") for caller in callers]
            finished = as_completed(calls)
            at_once = [next(finished).result() for _ in range(CALLERS - 8)]
            assert {structured(result)["status"] for result in at_once} == {"running"}
            # Ordinary requests are still served.
            for task in tasks_of(alice):
                alice.request("PATCH", f"/task/{task['id']}", json={"status": "complete"})
            waited = [call.result() for call in finished]
        assert {structured(result)["status"] for result in waited} == {"complete"}
        assert len(tasks_of(alice)) == CALLERS


def test_service_that_dies_between_start_and_answer_starts_nothing_twice(service: Service) -> None:
    alice = user_with_served_tool(service)
    call = partial(
        McpClient(alice).call, "summarizer", {"a": 1}, _meta={"taskservice/idempotencyKey": "k"}
    )
    with ThreadPoolExecutor(1) as pool:
        lost = pool.submit(call)
        until(lambda: tasks_of(RemoteClient(service.url, alice.key)))
        service.kill()
        assert isinstance(lost.exception(), requests.ConnectionError)
        service.start()
        again = pool.submit(call)
        (task,) = tasks_of(alice)
        done = {"status": "complete", "output": {"sum": 15}}
        alice.request("PATCH", f"/task/{task['id']}", json=done).raise_for_status()
        assert structured(again.result())["output"] == {"sum": 15}
    assert [task["id"] for task in tasks_of(alice)] == [task["id"]]


def test_task_of_a_client_survives_the_end_of_the_service(service: Service) -> None:
    alice = user_with_served_tool(service)
    follower = McpClient(alice, TASKS)
    task_id = follower.call("summarizer")["taskId"]
    service.kill()
    service.start()
    assert follower.state(task_id)["status"] == "working"


def test_call_that_waits_is_answered_when_the_service_stops(tmp_path: Path) -> None:
    with Service(tmp_path / "data") as service:
        alice = user_with_served_tool(service)
        other = RemoteClient(service.url, alice.key)
        with McpClient(alice).calling("summarizer") as call:
            until(lambda: tasks_of(other))
            assert service.stop() == 0
            assert structured(call.result())["status"] == "running"


def test_host_of_a_large_request_is_checked_too_but_not_behind_a_proxy(tmp_path: Path) -> None:
    headers = {"Content-Type": "application/json", "Host": "tasks.example"}
    for hops, status in (("0", 403), ("1", 200)):
        with Service(tmp_path / f"data{hops}", PROXY_HOPS=hops) as service:
            alice, url = service.add_user("alice"), f"{service.url}/mcp"
            for size in (10, 100_000):
                answer = alice.session.post(url, data=sized(size), headers=headers, timeout=30)
                assert answer.status_code == status


def sized(size: int) -> bytes:
    body: Any = {"jsonrpc": "2.0", "id": 1, "method": "ping", "params": {"arguments": "x" * size}}
    return json.dumps(body).encode()


def test_large_bodies_are_taken_up_to_their_limit(two_workers: Service) -> None:
    alice = two_workers.add_user()
    kind = {"Content-Type": "application/json"}

    def post(body: Any, **headers: str) -> requests.Response:
        url = f"{two_workers.url}/mcp"
        return alice.session.post(url, data=body, headers=kind | headers, timeout=30)

    for body in (sized(1_900_000), iter([sized(1_900_000)])):
        assert post(body).json()["result"] == {}
    for body in (sized(3 * 1024 * 1024), iter([sized(3 * 1024 * 1024)])):
        refused = post(body)
        assert (refused.status_code, refused.json()["code"]) == (413, "too_large")
    unknown = post(sized(100_000), apikey="wrong")
    assert (unknown.status_code, unknown.json()["code"]) == (401, "invalid_key")
    assert unknown.headers["WWW-Authenticate"] == 'Bearer realm="taskservice"'
