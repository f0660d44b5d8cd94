"""The removal of many tasks and of a long log, and how long a writer waits during it."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import NamedTuple, TypeVar

from benchmarks.contents import Person
from benchmarks.servers import Server, prepare_server
from benchmarks.stores import Store
from tests.support.api_client import RemoteClient
from tests.support.quiet_writer import QuietWriter

Result = TypeVar("Result")
# A failure, since two minutes are the goal.
GIVE_UP_SECONDS = 900.0
FILE_PAUSE_SECONDS = 0.02
BLOCK = b"x" * 4096


class Waits(NamedTuple):
    """The longest waits in milliseconds: of a writer, and of a plain file on the same disk."""

    writer: float
    disk: float


def with_writer(writer: Person, act: Callable[[], Result]) -> tuple[Waits, Result]:
    """The longest waits during `act`, and what that returns."""
    quiet = QuietWriter(RemoteClient(writer.server.url, writer.key))
    with _plain_file(writer.server.environment["TASKSERVICE_DATA"]) as waits, quiet:
        result = act()
    return Waits(quiet.worst * 1000, max(waits) * 1000), result


@contextmanager
def _plain_file(folder: str) -> Iterator[list[float]]:
    """How long, in seconds, a file in `folder` waits for each of its writes."""
    waits, stopping = [0.0], Event()

    def write() -> None:
        with tempfile.TemporaryFile(dir=folder) as file:
            while not stopping.wait(FILE_PAUSE_SECONDS):
                began = time.perf_counter()
                os.pwrite(file.fileno(), BLOCK, 0)
                os.fsync(file.fileno())
                waits.append(time.perf_counter() - began)

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        try:
            yield waits
        finally:
            stopping.set()
        writing.result()


def prune(server: Server, days: float) -> float:
    """Remove the tasks that ended this many days ago; returns how many a second, in all."""
    began = time.perf_counter()
    printed = command(server, "prune", "--json", RETENTION_DAYS=str(days))
    return float(json.loads(printed)["tasks"] / (time.perf_counter() - began))


def remove_log(store: Store, writer: Person, task_id: str, is_quick: bool) -> float:
    """Remove the log of this task; returns the seconds until it is off the disk.

    It waits for a minute first, for those who read it, unless this `is_quick`.
    """
    log_id = store.log_id(task_id)
    began = time.perf_counter()
    writer.call("DELETE", f"/task/{task_id}?fields=id")
    if is_quick:
        store.set_back_drops()
    while not store.is_gone(log_id):
        if time.perf_counter() - began > GIVE_UP_SECONDS:
            raise RuntimeError(f"a log was not removed in {GIVE_UP_SECONDS:.0f} s")
        time.sleep(0.2)
    return time.perf_counter() - began


def command(server: Server, *arguments: str, **settings: str) -> str:
    """What a command of the service prints, run with its settings and on its CPU."""
    result = subprocess.run(
        [sys.executable, "-m", "taskservice", *arguments],
        env=server.environment | {f"TASKSERVICE_{name}": text for name, text in settings.items()},
        preexec_fn=prepare_server, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if result.returncode:
        raise RuntimeError(f"taskservice {arguments[0]} failed: {result.stderr[-200:]}")
    return result.stdout
