"""Compares this version with another checkout, in turns: `python -m benchmarks.versions CHECKOUT`.

Both serve at the same time on one processor, and each path is measured in ROUNDS turns, because a
machine that is faster for a minute must not favour one of them. The processor time of a request is
the steadier figure where other programs use the machine too. At the end, both start in turns.
"""

import os
import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.contents import Contents, fill
from benchmarks.load import load, request
from benchmarks.servers import Server, ours, pin_load, running

ROUNDS = int(os.environ.get("ROUNDS", "9"))
SECONDS = 2.0
CONNECTIONS = 8
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def served_by(checkout: Path, data: Path) -> Server:
    """`taskservice serve` of another checkout, with the Python of its virtual environment."""
    server = ours(data)
    command = [str(checkout / ".venv/bin/python"), *server.command[1:]]
    return Server(command, server.environment, server.port, server.first)


def requests_of(contents: Contents) -> dict[str, list[bytes]]:
    return {
        "GET /livez": [request("GET", "/livez")],
        "GET one task": contents.gets(),
        "GET one task, 304": contents.conditional_gets(),
        "page of 50 tasks": contents.pages(),
        "append a line": contents.appends(),
        "start a task": contents.starts(),
    }


def milliseconds_used(server: Server) -> float:
    """The processor time of all its processes."""
    stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2] for pid in server.pids()]
    ticks = sum(int(stat.split()[place]) for stat in stats for place in (11, 12))
    return ticks / TICKS_PER_SECOND * 1000


def measure(server: Server, requests: list[bytes]) -> tuple[float, float]:
    """Milliseconds of processor time of a request, and requests a second."""
    before = milliseconds_used(server)
    rate = load(server.port, requests, SECONDS, CONNECTIONS).rate
    return (milliseconds_used(server) - before) / (rate * SECONDS), rate


def main(other: Path) -> None:
    pin_load()
    with tempfile.TemporaryDirectory() as folder:
        servers = [ours(Path(folder, "this")), served_by(other, Path(folder, "other"))]
        with running(*servers):
            wanted = [requests_of(fill(server)) for server in servers]
            print(f"{'path':20}{'other, ms':>12}{'this, ms':>12}{'ratio':>8}{'requests':>10}")
            for path in wanted[0]:
                compare(path, servers, [each[path] for each in wanted])
        compare_starts(servers)


def compare_starts(servers: list[Server]) -> None:
    """Start them in turns, and print the seconds until the first answer."""
    seconds: list[list[float]] = [[], []]
    for turn in range(ROUNDS * 2):
        for which in (0, 1) if turn % 2 else (1, 0):
            seconds[which].append(servers[which].start())
            servers[which].stop()
    this, other = map(median, seconds)
    print(f"{'start, s':20}{other:12.3f}{this:12.3f}{other / this:8.2f}")


def compare(path: str, servers: list[Server], requests: list[list[bytes]]) -> None:
    """Measure a path in turns, and print a row; ratios over 1 say that this version is faster."""
    used: list[list[float]] = [[], []]
    rates: list[list[float]] = [[], []]
    for turn in range(ROUNDS):
        for which in (0, 1) if turn % 2 else (1, 0):
            milliseconds, rate = measure(servers[which], requests[which])
            used[which].append(milliseconds)
            rates[which].append(rate)
    this, other = map(median, used)
    requests_ratio = median(mine / its for mine, its in zip(*rates, strict=True))
    print(
        f"{path:20}{other:12.3f}{this:12.3f}{other / this:8.2f}{requests_ratio:10.2f}", flush=True
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
