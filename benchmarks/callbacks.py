"""How fast due webhooks are posted, and how much hanging receivers slow down GET requests."""

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from benchmarks.contents import add_person
from benchmarks.load import load, load_once
from benchmarks.servers import ours, pin_load
from taskservice.app import create_app
from taskservice.config import Config
from taskservice.database.engine import dispose
from taskservice.webhooks.destinations import Destinations
from tests.support import receiver as play
from tests.support.api_client import add_user
from tests.support.background_process import working
from tests.support.deliveries import enqueue_many
from tests.support.receiver import Receiver

DUE = int(os.environ.get("DUE", "3000"))
HANGING = 64
GET_SECONDS = 5.0


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


def quiet_and_beside_hanging(folder: Path) -> tuple[float, float]:
    """The 95th percentile of a GET in milliseconds, alone and while reports wait."""
    with (
        Receiver(answer=play.silence) as hanging,
        ours(folder / "data", THREADS="16", CALLBACK_ALLOWED="loopback") as server,
        ThreadPoolExecutor(1) as pool,
    ):
        alice = add_person(server, "alice")
        paths = [f"/task/{alice.start([], callback=hanging.url)['id']}" for _ in range(HANGING)]
        get = [alice.request("GET", paths[0])]
        reports = [alice.request("PATCH", path, b'{"status":"complete"}') for path in paths]
        quiet = load(server.port, get, GET_SECONDS, connections=1).p95
        reporting = pool.submit(load_once, server.port, reports, HANGING)
        beside = load(server.port, get, GET_SECONDS, connections=1).p95
        reporting.result()
        return quiet, beside


def main() -> None:
    pin_load()
    folder = Path(tempfile.mkdtemp())
    for processes in (1, 3):
        rate = DUE / seconds_to_post(folder / str(processes), processes)
        print(f"{'webhooks':14} {rate:8.0f} a second, by {processes} process(es) on SQLite")
    quiet, beside = quiet_and_beside_hanging(folder)
    print(f"{'get one, p95':14} {quiet:8.1f} ms quiet, {beside:.1f} ms during {HANGING} reports "
          "whose receivers hang")  # fmt: skip


if __name__ == "__main__":
    main()
