"""How long a writer waits at most while much is pruned, given back to the disk, or backed up.

One agent appends line after line over HTTP, to a service on SQLite, while another process
works on a database of TASKS old tasks and a full log of 100 MiB.
"""

import os
import sqlite3
import tempfile
import threading
import time
from pathlib import Path

from tests.support.api_client import RemoteClient
from tests.support.service import Service

TASKS = int(os.environ.get("TASKS", "20000"))
# A thousand tasks a second are removed where the machine does nothing else.
TIMEOUT = 300 + TASKS / 100
QUIET_SECONDS = 5.0
BODY = ("x" * 199 + "\n").encode() * 50_000


class Writer(threading.Thread):
    """Appends a line at a time, and measures each."""

    def __init__(self, person: RemoteClient) -> None:
        super().__init__()
        self._person, self._done = person, threading.Event()
        self._path = f"/task/{person.start()['id']}/logs"
        self._waits: list[float] = []

    def run(self) -> None:
        while not self._done.is_set():
            began = time.perf_counter()
            self._person.request("PUT", self._path, data=b"a line\n").raise_for_status()
            self._waits.append(time.perf_counter() - began)

    def stop(self) -> str:
        self._done.set()
        self.join()
        waits = sorted(self._waits)
        middle, late = waits[len(waits) // 2], waits[len(waits) * 99 // 100]
        figures = ", ".join(f"{1000 * wait:.1f}" for wait in (middle, late, waits[-1]))
        return f"{figures} ms ({len(waits)} appends)"


def fill(person: RemoteClient, database: Path) -> None:
    """A task with a full log and many without, all of which ended long ago."""
    task = person.start(input={"text": "x" * 400})
    path = f"/task/{task['id']}"
    for _ in range(10):
        person.request("PUT", f"{path}/logs", data=BODY).raise_for_status()
    person.request("PATCH", path, json={"status": "complete"}).raise_for_status()
    connection = sqlite3.connect(database)
    connection.execute("UPDATE tasks SET finished_at = '2020-01-01T00:00:00.000Z'")
    rows = connection.execute("SELECT * FROM tasks LIMIT 0").description
    columns = ", ".join(row[0] for row in rows if row[0] != "id")
    connection.execute(
        f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {TASKS}) "
        f"INSERT INTO tasks (id, {columns}) "
        f"SELECT substr(id, 1, 20) || printf('%012x', i), {columns} FROM n CROSS JOIN tasks"
    )
    connection.commit()
    connection.close()


def measured(service: Service, key: str, *command: str) -> None:
    """Print the waits of a writer while a command runs, or while nothing does."""
    writer = Writer(RemoteClient(service.url, key))
    writer.start()
    began = time.perf_counter()
    if command:
        result = service.run(*command, timeout=TIMEOUT)
        assert result.returncode == 0, result.stderr
    else:
        time.sleep(QUIET_SECONDS)
    seconds = time.perf_counter() - began
    name = " ".join(command[:2]) or "nothing else"
    print(f"{name:14} {seconds:5.1f} s: median, 99 %, longest {writer.stop()}", flush=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data")
        with Service(data, LOG_LEVEL="warning") as service:
            alice = service.add_user()
            key = str(alice.session.headers["apikey"])
            fill(alice, data / "taskservice.db")
            service.environment["TASKSERVICE_RETENTION_DAYS"] = "30"
            measured(service, key)
            measured(service, key, "db", "backup", str(Path(folder, "backup.db")))
            measured(service, key, "prune")
            print(f"{(data / 'taskservice.db').stat().st_size / 1e6:.1f} MB are left")


if __name__ == "__main__":
    main()
