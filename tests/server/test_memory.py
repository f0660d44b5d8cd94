"""No key makes a worker take more than 400 MiB, whatever its largest requests have."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.api_client import RemoteClient
from tests.support.memory import MEGABYTE, memory
from tests.support.service import Service

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
