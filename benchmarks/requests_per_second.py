"""Requests per second of get, append and list beside a bare Flask view; cold start; memory.

Each figure is the median of interleaved rounds. The service is pinned to one processor and
the load to another where there are two. Believe the ratios, not the single figures.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import requests

from benchmarks.load import request
from tests.support.service import COMMAND, environment, free_port

ROUNDS = int(os.environ.get("ROUNDS", "3"))
SECONDS = float(os.environ.get("SECONDS", "4"))
CONNECTIONS = 16
PINNED = (os.cpu_count() or 1) > 1
SERVE_BARE = (
    "from taskservice.config import Config; from taskservice.serving.application import serve; "
    "from benchmarks.bare import app; serve(lambda: app, Config.from_environment())"
)


class Server:
    """A server under test: started, timed until its first answer, and measured."""

    def __init__(self, command: list[str], folder: Path, path: str) -> None:
        self.port = free_port()
        self._command, self._path = command, path
        bind = f"127.0.0.1:{self.port}"
        self.environment = environment(folder, BIND=bind, LOG_LEVEL="warning")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> float:
        """Start it; returns the seconds until its first answer."""
        began = time.perf_counter()
        self.process = subprocess.Popen(self._command, env=self.environment)
        if PINNED:
            os.sched_setaffinity(self.process.pid, {0})
        while True:
            try:
                requests.get(f"http://127.0.0.1:{self.port}{self._path}", timeout=5)
                return time.perf_counter() - began
            except requests.ConnectionError:
                time.sleep(0.005)

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        self.process.wait()

    def megabytes(self) -> float:
        """Memory of all its processes, what they share counted once (PSS)."""
        assert self.process is not None
        pids = [self.process.pid, *_children(self.process.pid)]
        total = 0
        for pid in pids:
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
        return total / 1024

    def rate(self, data: bytes) -> float:
        """Requests per second of this request."""
        command = [sys.executable, "-m", "benchmarks.load", str(self.port)]
        pinned = ["taskset", "-c", "1"] if PINNED else []
        result = subprocess.run(
            [*pinned, *command, str(CONNECTIONS), str(SECONDS)],
            input=data, capture_output=True, check=True,
        )  # fmt: skip
        return float(result.stdout)


def _children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()]


def prepare(service: Server, folder: Path) -> dict[str, bytes]:
    """A reader with 50 tasks of 5 lines, a writer; the requests that are measured."""
    reader, writer = add_user(service, "reader"), add_user(service, "writer")
    api = f"http://127.0.0.1:{service.port}/api/v1"
    session = requests.Session()
    session.headers["apikey"] = reader
    tasks = []
    for _ in range(50):
        task = session.post(f"{api}/task", json={"agentId": "bench"}).json()["id"]
        lines = {"logs": [f"line {number}" for number in range(5)]}
        session.post(f"{api}/task/{task}/logs", json=lines).raise_for_status()
        tasks.append(task)
    grows = requests.post(f"{api}/task", json={"agentId": "bench"}, headers={"apikey": writer})
    path = "/api/v1/task"
    line = b'{"logs":["a line"]}'
    return {
        "get one": request("GET", f"{path}/{tasks[0]}", reader),
        "append a line": request("POST", f"{path}/{grows.json()['id']}/logs", writer, line),
        "start": request("POST", path, writer, b'{"agentId":"bench"}'),
        "list 50": request("GET", path, reader),
    }


def add_user(service: Server, name: str) -> str:
    """Add a user who has an agent `bench`; returns the key."""
    command = [*COMMAND, "user", "add", name]
    added = subprocess.run(
        command, env=service.environment, capture_output=True, text=True, check=True
    )
    key = added.stdout.strip()
    agent = f"http://127.0.0.1:{service.port}/api/v1/agent/bench"
    requests.put(agent, headers={"apikey": key}, timeout=10).raise_for_status()
    return key


def main() -> None:
    folder = Path(tempfile.mkdtemp())
    bare = Server([sys.executable, "-c", SERVE_BARE], folder / "bare", "/")
    service = Server([*COMMAND, "serve"], folder / "service", "/livez")
    service.start()
    service.stop()
    starts: dict[str, list[float]] = {"bare": [], "service": []}
    for _ in range(ROUNDS):
        for name, server in (("bare", bare), ("service", service)):
            starts[name].append(server.start())
            server.stop()
    bare.start()
    service.start()
    wanted = prepare(service, folder)
    rates: dict[str, list[float]] = {name: [] for name in ["bare view", *wanted]}
    for _ in range(ROUNDS):
        rates["bare view"].append(bare.rate(request("GET", "/")))
        for name, data in wanted.items():
            rates[name].append(service.rate(data))
    memory = bare.megabytes(), service.megabytes()
    bare.stop()
    service.stop()
    yardstick = statistics.median(rates["bare view"])
    for name, values in rates.items():
        rate = statistics.median(values)
        print(f"{name:14} {rate:8.0f} requests/s   {rate / yardstick:5.2f} of a bare view")
    first, second = (statistics.median(starts[name]) for name in ("bare", "service"))
    print(f"{'cold start':14} {second:8.2f} s            {second / first:5.2f} of bare Flask")
    print(f"{'memory':14} {memory[1]:8.0f} MB           {memory[1] / memory[0]:5.2f} of bare Flask")


if __name__ == "__main__":
    main()
