"""How fast due webhooks are posted, and how much hanging receivers slow down GET requests."""

import os
import statistics
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from taskservice.app import create_app
from taskservice.config import Config
from taskservice.database.engine import dispose
from taskservice.webhooks.destinations import Destinations
from tests.support import receiver as play
from tests.support.api_client import RemoteClient, add_user
from tests.support.background_process import working
from tests.support.deliveries import enqueue_many
from tests.support.receiver import Receiver
from tests.support.service import Service

DUE = int(os.environ.get("DUE", "3000"))
HANGING = 64
GETS = 500


def seconds_to_post(folder: Path, processes: int) -> float:
    """How long this many background processes take for DUE deliveries to one fast receiver."""
    url = f"sqlite:///{folder / 'taskservice.db'}"
    allowed = Destinations.parse("loopback")
    app = create_app(Config(DATA=folder, DATABASE_URL=url, CALLBACK_ALLOWED=allowed).completed())
    with Receiver() as receiver, ExitStack() as stack:
        enqueue_many(app, add_user(app, "alice"), receiver.url, DUE)
        for _ in range(processes):
            stack.enter_context(working(app))
        # From the first to the last: without the start of the processes.
        times = [request.at for request in receiver.wait_for(DUE, timeout=DUE)]
    dispose(app)
    return times[-1] - times[0]


def percentile_95(alice: RemoteClient, path: str) -> float:
    """Milliseconds in which 95 of 100 GETs, one after another, are answered."""
    times = []
    for _ in range(GETS):
        began = time.perf_counter()
        alice.request("GET", path).raise_for_status()
        times.append(time.perf_counter() - began)
    return statistics.quantiles(times, n=20)[-1] * 1000


def quiet_and_beside_hanging(folder: Path) -> tuple[float, float]:
    with (
        Receiver(answer=play.silence) as hanging,
        Service(folder / "data", THREADS="16") as service,
    ):
        alice = service.add_user()
        tasks = [alice.start(callback=hanging.url) for _ in range(HANGING)]
        path = f"/task/{tasks[0]['id']}"
        quiet = percentile_95(alice, path)
        key = str(alice.session.headers["apikey"])

        def report(task: dict[str, Any]) -> None:
            person = RemoteClient(service.url, key)
            person.request("PATCH", f"/task/{task['id']}", json={"status": "complete"})

        reports = [threading.Thread(target=report, args=(task,)) for task in tasks]
        for thread in reports:
            thread.start()
        beside = percentile_95(alice, path)
        for thread in reports:
            thread.join()
        return quiet, beside


def main() -> None:
    folder = Path(tempfile.mkdtemp())
    for processes in (1, 3):
        rate = DUE / seconds_to_post(folder / str(processes), processes)
        print(
            f"{'webhooks':14} {rate:8.0f} a second, by {processes} background process(es) on SQLite"
        )
    quiet, beside = quiet_and_beside_hanging(folder)
    print(f"{'get one, p95':14} {quiet:8.1f} ms quiet, {beside:.1f} ms beside {HANGING} reports "
          "whose receivers hang")  # fmt: skip


if __name__ == "__main__":
    main()
