"""A service that is killed at a critical point, and a client that survives this."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import requests
from flask import Flask

from tests.support import receiver as play
from tests.support.api_client import RemoteClient
from tests.support.deliveries import columns
from tests.support.receiver import Exchange, Receiver
from tests.support.service import Service, is_port_free
from tests.support.waiting import until

# There are fewer points; a test ends at the first that is not reached.
POINTS = 300


class CrashingService(Service):
    """The service with short leases, all of whose processes die together."""

    command = (sys.executable, "-m", "tests.support.crash_points", "serve")

    def __init__(self, app: Flask, folder: Path, lease: float) -> None:
        super().__init__(
            folder / "data", DATABASE_URL=app.config["DATABASE_URL"], LOG_LEVEL="warning"
        )
        self.armed = folder / "armed"
        self.environment |= {"CRASH_ARMED": str(self.armed), "CRASH_LEASE": str(lease)}
        self.crash_at(0)

    def crash_at(self, point: int) -> None:
        """Count from 1 while `armed` exists; 0 is never reached."""
        self.environment["CRASH_AT"] = str(point)

    def kill(self) -> None:
        super().kill()
        # Its workers, for which no one here can wait, hold the port until they have ended too.
        until(lambda: is_port_free(self.port))


def failing_at_first() -> play.Behaviour:
    """Each webhook gets 500 once, and 204 from then on."""
    known = set()

    def behave(exchange: Exchange) -> None:
        webhook_id = exchange.request.headers["webhook-id"]
        play.answer(204 if webhook_id in known else 500)(exchange)
        known.add(webhook_id)

    return behave


def wait_until_all_is_delivered(app: Flask) -> None:
    """Wait until no lease is left too; a late report cancels the delivery that it replaces."""
    ends = {("delivered", None), ("cancelled", None)}
    until(lambda: set(columns(app, "state", "lease")) <= ends)


class Client:
    """Calls a service that may die at any time: ConnectionError then."""

    def __init__(self, service: Service, key: str, receiver: Receiver) -> None:
        self.service, self.receiver = service, receiver
        self.person = RemoteClient(service.url, key)
        self.first = len(receiver.requests)

    def call(self, method: str, path: str, **options: Any) -> Any:
        answer = self.person.request(method, path, **options)
        answer.raise_for_status()
        return answer.json()

    def start(self, **fields: Any) -> str:
        """The path of a new task."""
        body = {"agentId": "worker", "callback": self.receiver.url, **fields}
        return f"/task/{self.call('POST', '/task', json=body)['id']}"

    def until(self, happened: Callable[[], Any]) -> None:
        while not happened():
            assert self.service.process is not None
            if self.service.process.poll() is not None:
                raise ConnectionError
            time.sleep(0.02)

    def until_posted(self, path: str, count: int) -> None:
        task_id = path.removeprefix("/task/")
        self.until(lambda: posts(self.receiver).count(task_id) >= count)

    def until_delivered(self, path: str) -> None:
        self.until(lambda: self.call("GET", f"{path}/deliveries")[0]["state"] == "delivered")


def posts(receiver: Receiver) -> list[str]:
    """The IDs of the tasks in all received webhooks."""
    return [json.loads(request.body)["id"] for request in list(receiver.requests)]


Scenario: TypeAlias = Callable[[Client], None]


def survives(scenario: Scenario, client: Client) -> bool:
    """Whether the service is alive at the end of it."""
    try:
        scenario(client)
    except (
        requests.ConnectionError,
        # It died between the headers and the end of a response.
        requests.exceptions.ChunkedEncodingError,
        ConnectionError,
    ):
        return False
    # The service may have died after the last response.
    process = client.service.process
    return process is not None and process.poll() is None
