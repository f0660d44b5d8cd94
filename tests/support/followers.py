"""A client that follows a task's events over a socket, and reconnects."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import requests

from tests.support.api_client import RemoteClient
from tests.support.waiting import PATIENCE_SECONDS

RETRY_SECONDS = 0.1


class Event(NamedTuple):
    """One event of a stream; `id` is empty where it has none."""

    kind: str
    id: str
    data: Any


def events(response: requests.Response) -> Iterator[Event]:
    """The events of an open stream, each as it arrives; comments are left out."""
    fields: dict[str, str] = {}
    for line in response.iter_lines(chunk_size=1):
        name, _, text = line.decode().partition(": ")
        if name:
            fields[name] = text
        elif "data" in fields:
            yield Event(fields["event"], fields.get("id", ""), json.loads(fields["data"]))
            fields = {}


def open_stream(person: RemoteClient, task: dict[str, Any], after: str = "") -> requests.Response:
    headers = {"Last-Event-ID": after} if after else {}
    path = f"/task/{task['id']}/events"
    return person.request("GET", path, headers=headers, stream=True)


class Follower(threading.Thread):
    """Follows a task to its end as a browser does; stores all lines with their numbers."""

    def __init__(self, person: RemoteClient, task: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self._person, self._task = person.copy(), task
        self.lines: list[tuple[str, str]] = []
        self.states: list[dict[str, Any]] = []
        self.connections = 0
        self.stopping = threading.Event()

    def run(self) -> None:
        while not self.stopping.is_set() and not self._has_ended():
            with suppress(requests.RequestException):
                self._follow()
            time.sleep(RETRY_SECONDS)
        self._person.session.close()

    def _has_ended(self) -> bool:
        ended = bool(self.states) and self.states[-1]["status"] != "running"
        return ended and len(self.lines) >= self.states[-1]["logCount"]

    def _follow(self) -> None:
        after = self.lines[-1][0] if self.lines else ""
        with open_stream(self._person, self._task, after) as response:
            if response.status_code == 503:
                return
            response.raise_for_status()
            self.connections += 1
            for event in events(response):
                if event.kind == "log":
                    self.lines.append((event.id, event.data))
                else:
                    self.states.append(event.data)


def numbered(first: int, last: int) -> list[str]:
    return [f"line {number}" for number in range(first, last + 1)]


def append_surely(person: RemoteClient, task: dict[str, Any], seq: int, lines: list[str]) -> None:
    """Repeat the append, which `seq` makes safe, until there is a response."""
    body = {"logs": lines, "seq": seq}
    path = f"/task/{task['id']}/logs"
    until_answered(lambda: person.request("POST", path, json=body))


def until_answered(ask: Callable[[], requests.Response]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            ask().raise_for_status()
            return
        except requests.ConnectionError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
