"""Connections that PostgreSQL ends: at each point of a request, with and without a word."""

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from typing import Any

import pytest

from taskservice.config import Config
from tests.support.api_client import ApiClient, expect, problem
from tests.support.cut_connections import FAREWELL, CutConnections, cut_connections
from tests.support.marks import only_postgresql
from tests.support.receiver import Receiver

pytestmark = only_postgresql

Write = tuple[str, str, dict[str, Any]]


@pytest.fixture(params=[b"", FAREWELL], ids=["without a word", "as it shuts down"])
def connections(database_url: str, request: pytest.FixtureRequest) -> Iterator[CutConnections]:
    with cut_connections(database_url) as connections:
        connections.farewell = request.param
        yield connections


@pytest.fixture
def config(standard_config: Config, connections: CutConnections) -> Config:
    return replace(standard_config, DATABASE_URL=connections.url).completed()


def writes_to(task: dict[str, Any]) -> dict[str, Write]:
    """Name -> method, path and options; each may be sent again and is then done once."""
    path = f"/task/{task['id']}"
    start = {"json": {"agentId": "summarizer"}, "headers": {"Idempotency-Key": "once"}}
    return {
        "start": ("POST", "/task", start),
        "append": ("POST", f"{path}/logs", {"json": {"logs": ["a line"], "seq": 1}}),
        "report": ("PATCH", path, {"json": {"status": "complete", "output": {"n": 1}}}),
    }


def test_connection_lost_at_any_time_is_503_and_each_write_is_done_once(
    alice: ApiClient, connections: CutConnections, receiver: Receiver
) -> None:
    task = alice.start(callback=receiver.url)
    for write in writes_to(task).values():
        assert send_until_done(alice, connections, write) > 10
    connections.limit = math.inf
    started = expect(alice.get("/task"), 200)
    assert [one["status"] for one in started] == ["running", "complete"]
    assert alice.task(task)["logs"] == ["a line"]
    (delivery,) = expect(alice.get(f"/task/{task['id']}/deliveries"), 200)
    assert {sent.headers["webhook-id"] for sent in receiver.requests} <= {delivery["id"]}


def send_until_done(alice: ApiClient, connections: CutConnections, write: Write) -> int:
    """End all connections after one message, then after two, until it is answered."""
    method, path, options = write
    for limit in count(1):
        connections.limit = limit
        connections.end_all()
        response = alice.request(method, path, **options)
        if response.status_code in (200, 201):
            return limit
        assert problem(response, 503)["code"] == "unavailable"
    raise AssertionError
