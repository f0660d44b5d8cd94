"""The real service in a separate process, as users run it."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import requests

from taskservice.config import Config
from taskservice.database import migrations
from taskservice.services import users as user_service
from tests.support.api_client import RemoteClient
from tests.support.apps import without_routes
from tests.support.fork_server import ForkedPopen, run_forked
from tests.support.waiting import PATIENCE_SECONDS, child_ids, until

COMMAND = [sys.executable, "-m", "taskservice"]
START_SECONDS = 100


def environment(data: Path, **settings: str) -> dict[str, str]:
    """An environment with these settings and no others of the service."""
    clean = {name: value for name, value in os.environ.items() if "TASKSERVICE" not in name}
    # An installed service starts from stored bytecode.
    clean.pop("PYTHONDONTWRITEBYTECODE", None)
    defaults = {"DATA": str(data), "SECRET_KEY": "a secret key for tests, long enough"}
    return clean | {f"TASKSERVICE_{name}": text for name, text in (defaults | settings).items()}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def is_port_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@cache
def _migrated_database() -> bytes:
    """A database as the first start creates it, which takes half the time of that start."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "taskservice.db"
        migrations.upgrade(f"sqlite:///{path}")
        return path.read_bytes()


class Service:
    """`taskservice serve`, started by `with` and killed at its end.

    Settings are given by their names without the prefix.
    """

    command: Sequence[str] = (*COMMAND, "serve")
    # The path that responds after the start; `/livez` if the database accepts no writes.
    ready_path = "/readyz"
    # Whether the service finds a database of this version; else it creates one, as a user's does.
    has_database = True

    def __init__(self, data: Path, **settings: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = data.parent / "service.log"
        self.environment = environment(
            data, **{"BIND": f"127.0.0.1:{self.port}", "CALLBACK_ALLOWED": "loopback"} | settings
        )
        # Instead of the log, as `subprocess` has them.
        self.streams: dict[str, Any] = {}
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Service":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        # Killed workers, for which this process can't wait, hold the port until they have ended.
        until(lambda: is_port_free(self.port))
        self._make_database()
        with open(self.log, "ab") as log:
            self.process = ForkedPopen(
                self.command, env=self.environment, start_new_session=True,
                **{"stdout": log, "stderr": log} | self.streams,
            )  # fmt: skip
        self.wait_until_ready()

    def _make_database(self) -> None:
        data = Path(self.environment["TASKSERVICE_DATA"])
        on_sqlite = "TASKSERVICE_DATABASE_URL" not in self.environment
        if self.has_database and on_sqlite and not data.exists():
            data.mkdir(mode=0o700)
            (data / "taskservice.db").touch(0o600)
            (data / "taskservice.db").write_bytes(_migrated_database())

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text()
            try:
                if requests.get(self.url + self.ready_path, timeout=5).ok:
                    return
            except requests.RequestException:
                time.sleep(0.05)
        raise AssertionError(f"The service did not come up: {self.log.read_text()}")

    def stop(self, with_signal: int = signal.SIGTERM) -> int:
        """Send a signal, wait for the end, and return the exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(with_signal)
        return self.process.wait(timeout=PATIENCE_SECONDS)

    def kill(self) -> None:
        """End it at once, with all its workers, if it runs."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                # The leader of a separate process group: see `start`.
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(timeout=PATIENCE_SECONDS)

    def workers(self) -> list[int]:
        """The process IDs of the workers."""
        assert self.process is not None
        return child_ids(self.process.pid)

    def run(self, *arguments: str, timeout: float = 100) -> subprocess.CompletedProcess[str]:
        """Run another command of the service with the same settings."""
        return run_forked(
            [*COMMAND, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def add_user(self, name: str = "") -> RemoteClient:
        """A new user with a first key; created in this process, which is faster."""
        self._make_database()
        with without_routes(Config.from_environment(self.environment)):
            key = user_service.add(name or f"alice {uuid4()}").text
        return RemoteClient(self.url, key)
