"""No key makes a worker take more than 400 MiB, whatever its largest requests have."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.api_client import API, RemoteClient
from tests.support.concurrency import at_once
from tests.support.memory import MEGABYTE, memory
from tests.support.service import Service
from tests.support.waiting import PATIENCE_SECONDS

MAX_MEMORY = 400 * MEGABYTE
Json = dict[str, Any]


@pytest.fixture
def own_service(tmp_path: Path) -> Iterator[Service]:
    with Service(tmp_path / "data") as service:
        yield service


def agent_key(service: Service) -> RemoteClient:
    """A key that is narrowed to one agent."""
    alice = service.add_user()
    alice.request("PUT", "/agent/summarizer").raise_for_status()
    body = {"name": "agent", "agentId": "summarizer"}
    key = alice.request("POST", "/key", json=body).json()["key"]
    return RemoteClient(service.url, key)


def test_schemas_full_of_patterns_take_no_memory(own_service: Service) -> None:
    agent = agent_key(own_service)
    for number in range(30):
        for count in (605, 50):
            patterns = [{"pattern": f"^.{{1,99}}{number}_{n}$"} for n in range(count)]
            schema: Json = {"type": "object", "properties": {"x": {"anyOf": patterns}}}
            while len(json.dumps(schema, separators=(",", ":"))) > 16 * 1024:
                patterns.pop()
            agent.request("PUT", "/agent/summarizer", json={"inputSchema": schema})
            body = {"agentId": "summarizer", "input": {"x": "a"}}
            started = agent.request("POST", "/task", json=body)
            started.raise_for_status()
            agent.request("POST", f"/task/{started.json()['id']}/rerun")
    assert memory(own_service, "VmHWM") < MAX_MEMORY


def test_numbers_of_long_names_take_no_memory(own_service: Service) -> None:
    agent = agent_key(own_service)
    numbers = {f"n{n}": n for n in range(100)}
    for number in range(16):
        task = agent.start()
        output = {f"{number}" + "k" * 1_040_000: numbers}
        body = {"status": "complete", "output": output}
        agent.request("PATCH", f"/task/{task['id']}", json=body).raise_for_status()
        assert agent.request("GET", "/agent/summarizer/numbers").json() == {"paths": []}
    assert memory(own_service, "VmHWM") < MAX_MEMORY


def test_large_pages_are_not_kept(own_service: Service) -> None:
    alice = own_service.add_user()
    task = alice.start(claim=True)
    body = {"status": "complete", "output": {"text": "'" * 1_000_000}}
    alice.request("PATCH", f"/task/{task['id']}", json=body).raise_for_status()
    link = alice.request("POST", f"/task/{task['id']}/link", json={}).json()["url"]
    for number in range(50):
        page = alice.session.get(f"{link}?tab={number}", timeout=30)
        assert page.status_code == 200
        assert len(page.content) > 4 * MEGABYTE
        if number == 5:
            before = memory(own_service, "VmRSS")
    assert memory(own_service, "VmRSS") - before < 100 * MEGABYTE


def filled(begin: bytes, item: bytes, end: bytes, size: int = 2 * MEGABYTE) -> bytes:
    """A body of at most this size; `%d` in the item becomes a number."""
    items: list[bytes] = []
    size -= len(begin) + len(end)
    while size > len(item) + 10:
        items.append(item.replace(b"%d", b"%06d" % len(items)))
        size -= len(items[-1])
    return begin + b"".join(items) + end


START, INPUT = "/task", b'{"agentId":"summarizer","input":{"x":'
JSON, FORM = "application/json", "application/x-www-form-urlencoded"
# Path, type and body of what takes the most memory for its size.
LARGEST = {
    "arrays in arrays": (START, JSON, filled(INPUT + b"[", b"[" * 50 + b"]" * 50 + b",", b"0]}}")),
    "arrays, not too many": (START, JSON, filled(INPUT + b"[", b"[],", b"0]}}", 640_000)),
    "objects": (START, JSON, filled(INPUT + b"[", b'{"a":1},', b"0]}}")),
    "members": (START, JSON, filled(INPUT + b"{", b'"%d":1,', b'"x":1}}}')),
    "members, not too many": (START, JSON, filled(INPUT + b"{", b'"%d":1,', b'"x":1}}}', 655_000)),
    "strings": (START, JSON, filled(INPUT + b"[", '"é€",'.encode(), b"0]}}")),
    "lines": ("/task/{id}/logs", JSON, filled(b'{"logs":[', b'"ab",', b'""]}', 10 * MEGABYTE)),
    "lines, not too many": (
        "/task/{id}/logs", JSON, filled(b'{"logs":[', b'"ab",', b'""]}', 3_400_000)
    ),
    "text": ("/task/{id}/logs", "text/plain", b"\n" * 10 * MEGABYTE),
    "a call": ("/mcp", JSON, filled(
        b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"arguments":{', b'"%d":1,', b'"x":1}}}'
    )),
    "a form": ("/sign-in", FORM, filled(b"a=b", b"&%d=", b"")),
}  # fmt: skip


def test_the_largest_bodies_at_once_take_no_memory(
    own_service: Service, subtests: pytest.Subtests
) -> None:
    people = [own_service.add_user(name) for name in ("ann", "ben", "cleo", "dan")]
    tasks = [person.start() for person in people]

    def send(number: int, path: str, content_type: str, body: bytes) -> int:
        person = people[number % len(people)]
        path = path.format(id=tasks[number % len(people)]["id"])
        url = own_service.url + (path if path in ("/mcp", "/sign-in") else f"{API}{path}")
        headers = {"apikey": person.session.headers["apikey"], "Content-Type": content_type}
        return requests.post(url, body, headers=headers, timeout=PATIENCE_SECONDS).status_code

    for name, (path, content_type, body) in LARGEST.items():
        with subtests.test(name):
            sends = [partial(send, number, path, content_type, body) for number in range(16)]
            for status in at_once(sends):
                assert status in (200, 201, 400, 403, 413, 422, 503)
            assert requests.get(f"{own_service.url}/livez", timeout=PATIENCE_SECONDS).ok
            assert memory(own_service, "VmHWM") < MAX_MEMORY
