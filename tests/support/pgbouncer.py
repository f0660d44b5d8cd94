"""A real PgBouncer in transaction mode in front of a database of PostgreSQL."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from psycopg.conninfo import conninfo_to_dict

from tests.support.service import free_port

PGBOUNCER = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")

SETTINGS = """
[databases]
tasks = host={host} dbname={dbname} user={user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {connections}
server_round_robin = 1
"""


@contextmanager
def pgbouncer(folder: Path, url: str, connections: int) -> Iterator[str]:
    """The URL of the same database behind a PgBouncer that has this many connections to it."""
    assert PGBOUNCER
    folder.mkdir()
    settings, port = folder / "pgbouncer.ini", free_port()
    parts: dict[str, Any] = {"port": port, "connections": connections, **conninfo_to_dict(url)}
    settings.write_text(SETTINGS.format(**parts))
    # It refuses to be root, and only its owner may reach the server.
    user = ["-u", Path(parts["host"]).owner()] if os.geteuid() == 0 else []
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen([PGBOUNCER, *user, str(settings)], stdout=log, stderr=log)
    try:
        _wait(port, process, folder / "log")
        yield f"postgresql://{parts['user']}@127.0.0.1:{port}/tasks"
    finally:
        # SIGTERM would have it wait for its clients.
        process.kill()
        process.wait(timeout=10)


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 10
    while time.monotonic() < until and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise AssertionError(f"PgBouncer did not come up: {log.read_text()}")
