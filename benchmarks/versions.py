"""Compares this version with another commit, in turns: `python -m benchmarks.versions COMMIT`.

Each path is measured in ROUNDS turns, because a machine that is faster for a minute must not favour
one of them. Both serve on one CPU, one at a time, and the load comes from another. CPU time is
steadier where other programs use the machine too. At the end, both start in turns, and their idle
memory is measured.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from benchmarks.contents import Contents, fill
from benchmarks.load import load, request
from benchmarks.sections import slow_sync
from benchmarks.servers import Server, ours, pin_load, running

ROUNDS = int(os.environ.get("ROUNDS", "9"))
SECONDS = float(os.environ.get("SECONDS", "2"))
ROOT = Path(__file__).parents[1]
VERSION_FILE = "taskservice/_version.py"
LIVE = "GET /livez"
READS = ("GET one task", "GET one task, 304", "page of 50 tasks")
APPEND, START = "append a line", "start a task"


@dataclass(frozen=True)
class Setup:
    """How both serve, and what is measured then."""

    name: str
    paths: Sequence[str]
    clients: int = 16
    workers: int = 1
    variables: Mapping[str, str] = field(default_factory=dict)


def setups(folder: Path) -> list[Setup]:
    slow = {"LD_PRELOAD": str(slow_sync(folder))}
    return [
        Setup("8 clients", (LIVE, *READS, APPEND, START), clients=8),
        Setup("16 clients", (*READS, APPEND, START)),
        Setup("four processes", (READS[0], APPEND), workers=4),
        Setup("syncs of 2 ms", (APPEND, START), variables=slow),
    ]


@contextmanager
def worktree(commit: str, folder: Path) -> Iterator[Path]:
    """The files of another commit; they use the packages of this version."""
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--detach", str(folder), commit], check=True, capture_output=True)
    try:
        shutil.copy(ROOT / VERSION_FILE, folder / VERSION_FILE)
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def requests_of(contents: Contents) -> dict[str, list[bytes]]:
    reads = (contents.gets(), contents.conditional_gets(), contents.pages())
    return dict(zip(READS, reads, strict=True)) | {
        LIVE: [request("GET", "/livez")],
        APPEND: contents.appends(),
        START: contents.starts(),
    }


def measure(server: Server, requests: list[bytes], clients: int) -> tuple[float, float]:
    """Milliseconds of CPU time of a request, and requests a second."""
    before = server.processor_seconds()
    rate = load(server.port, requests, SECONDS, clients).rate
    return (server.processor_seconds() - before) / (rate * SECONDS) * 1000, rate


def compare(setup: Setup, path: str, servers: list[Server], requests: list[list[bytes]]) -> None:
    """Measure a path in turns, and print a row; ratios over 1 say that this version is faster."""
    used: list[list[float]] = [[], []]
    rates: list[list[float]] = [[], []]
    for turn in range(ROUNDS):
        for which in (0, 1) if turn % 2 else (1, 0):
            with servers[1 - which].paused():
                milliseconds, rate = measure(servers[which], requests[which], setup.clients)
            used[which].append(milliseconds)
            rates[which].append(rate)
    this, other = map(median, used)
    requests_ratio = median(mine / its for mine, its in zip(*rates, strict=True))
    print(
        f"{f'{path}, {setup.name}':36}{other:10.3f}{this:10.3f}{other / this:8.2f}"
        f"{median(rates[1]):10,.0f}{median(rates[0]):10,.0f}{requests_ratio:8.2f}",
        flush=True,
    )


def compare_starts(servers: list[Server]) -> None:
    """Start them in turns; print the seconds until the first answer, and the idle memory."""
    figures: list[list[tuple[float, float]]] = [[], []]
    for turn in range(ROUNDS * 2):
        for which in (0, 1) if turn % 2 else (1, 0):
            seconds = servers[which].start()
            figures[which].append((seconds, servers[which].megabytes()))
            servers[which].stop()
    for place, name in enumerate(("start, s", "memory after the start, MB")):
        this, other = (median(figure[place] for figure in one) for one in figures)
        print(f"{name:36}{other:10.3f}{this:10.3f}{other / this:8.2f}", flush=True)


def main(commit: str) -> None:
    pin_load()
    with tempfile.TemporaryDirectory() as path, worktree(commit, Path(path, "other")) as other:
        print(f"{'':36}{'other, ms':>10}{'this, ms':>10}{'ratio':>8}"
              f"{'other, /s':>10}{'this, /s':>10}{'ratio':>8}")  # fmt: skip
        checkouts = (("this", None), ("other", other))
        for setup in setups(Path(path)):
            data, workers = Path(path, setup.name), str(setup.workers)
            servers = [ours(data / name, checkout, WORKERS=workers) for name, checkout in checkouts]
            for server in servers:
                server.environment |= setup.variables
            with running(*servers):
                by_server = [requests_of(fill(server)) for server in servers]
                for name in setup.paths:
                    compare(setup, name, servers, [requests[name] for requests in by_server])
        compare_starts([ours(Path(path, "start", name), checkout) for name, checkout in checkouts])


if __name__ == "__main__":
    main(sys.argv[1])
