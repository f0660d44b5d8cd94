"""A real PgBouncer in transaction mode in front of a database of PostgreSQL."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.support.documents import block_in
from tests.support.service import free_port, is_port_free
from tests.support.waiting import until

PGBOUNCER = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")

SETTINGS = """
[databases]
tasks = {server}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
{recommended}
default_pool_size = {connections}
server_round_robin = 1
"""


class PgBouncer:
    """It has this many connections to the database at `url`, whose host is a socket's directory."""

    def __init__(self, folder: Path, url: str, connections: int) -> None:
        assert PGBOUNCER
        folder.mkdir()
        parts: dict[str, Any] = conninfo_to_dict(url)
        self._log, self._port = folder / "log", free_port()
        recommended = block_in("operate", "pgbouncer")
        values = {"server": make_conninfo(**parts), "port": self._port, "connections": connections,
                  "recommended": recommended}  # fmt: skip
        settings = folder / "pgbouncer.ini"
        settings.write_text(SETTINGS.format(**values))
        # It refuses to run as root, and only its owner may connect to the server.
        user = ["-u", Path(str(parts["host"])).owner()] if os.geteuid() == 0 else []
        self._command = [PGBOUNCER, *user, str(settings)]
        self.url = f"postgresql://{parts['user']}@127.0.0.1:{self._port}/tasks"

    def start(self) -> None:
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        until(lambda: not is_port_free(self._port) or self._process.poll() is not None)
        assert self._process.poll() is None, self._log.read_text()

    def kill(self) -> None:
        # After SIGTERM it would wait for its clients.
        self._process.kill()
        self._process.wait(timeout=10)


@contextmanager
def pgbouncer(folder: Path, url: str, connections: int) -> Iterator[PgBouncer]:
    bouncer = PgBouncer(folder, url, connections)
    bouncer.start()
    try:
        yield bouncer
    finally:
        bouncer.kill()
