"""Many readers of a list while many writers start tasks: each reader sees each task once."""

import threading
from collections import Counter
from pathlib import Path
from typing import Any

from tests.support.api_client import RemoteClient
from tests.support.paging import in_pages
from tests.support.service import Service

SORTS = ("-createdAt", "createdAt", "finishedAt")
TASKS_OF_A_WRITER = 10


class Writer(threading.Thread):
    """Starts tasks one after the other, and finishes some of them."""

    def __init__(self, service: Service, key: str, known: list[str]) -> None:
        super().__init__()
        self.person, self.known = RemoteClient(service.url, key), known

    def run(self) -> None:
        for number in range(TASKS_OF_A_WRITER):
            response = self.person.request("POST", "/task", json={"agentId": "summarizer"})
            task_id = response.json()["id"]
            self.known.append(task_id)
            if number % 2:
                self.person.request("PATCH", f"/task/{task_id}", json={"status": "complete"})


class Reader(threading.Thread):
    """Reads the list from its beginning to its end, until told to stop."""

    def __init__(self, service: Service, key: str, known: list[str], sort: str) -> None:
        super().__init__()
        self.person, self.known, self.sort = RemoteClient(service.url, key), known, sort
        self.stopping = threading.Event()
        self.wrong: list[str] = []
        self.rounds = 0

    def get(self, path: str) -> Any:
        return self.person.request("GET", path)

    def run(self) -> None:
        while not self.stopping.is_set():
            existing = list(self.known)
            tasks = in_pages(self.get, f"sort={self.sort}&limit=50&fields=id")
            seen = Counter(task["id"] for task in tasks)
            # By end, a task that still runs is not in the list.
            missed = set() if self.sort == "finishedAt" else set(existing) - seen.keys()
            repeated = [key for key in seen if seen[key] > 1]
            self.wrong += [f"By {self.sort}: {task_id} was skipped" for task_id in missed]
            self.wrong += [f"By {self.sort}: {task_id} came again" for task_id in repeated]
            self.rounds += 1


def test_twenty_readers_see_every_task_once_while_twenty_writers_start_them(
    database_url: str, tmp_path: Path
) -> None:
    with Service(tmp_path / "data", DATABASE_URL=database_url, WORKERS="2") as service:
        alice = service.add_user()
        known = [alice.start()["id"] for _ in range(120)]
        key = alice.key
        readers = [Reader(service, key, known, SORTS[number % 3]) for number in range(20)]
        writers = [Writer(service, key, known) for _ in range(20)]
        for thread in readers + writers:
            thread.start()
        for writer in writers:
            writer.join()
        for reader in readers:
            reader.stopping.set()
        for reader in readers:
            reader.join()
        total = len(alice.request("GET", "/task?fields=id").json())
    assert [wrong for reader in readers for wrong in reader.wrong] == []
    assert min(reader.rounds for reader in readers) >= 1
    assert total == len(known) == 120 + 20 * TASKS_OF_A_WRITER
