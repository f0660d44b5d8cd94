"""A separate PostgreSQL server, which a test may stop, kill, promote and copy to a standby."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psycopg

from tests.support.service import free_port
from tests.support.waiting import child_ids, has_ended, until

# The settings of every server; `synchronous_commit` would lose acknowledged writes if the service
# did not set it.
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "300",
    "synchronous_commit": "off",
    "fsync": "off",  # no test cuts the power
}


class PostgresqlServer:
    """A cluster in a directory; all its programs run as the owner of the directory."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder, self.programs = folder, programs
        self.data = folder / "data"
        self.port = free_port()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@{self.host}/{database}"

    def command(self, program: str) -> list[str]:
        """The command for one of PostgreSQL's programs, as the owner of the directory."""
        owner = self.folder.stat().st_uid
        # Only root may run a program as another user.
        other = (
            ["runuser", "-u", pwd.getpwuid(owner).pw_name, "--"] if owner != os.geteuid() else []
        )
        return [*other, str(self.programs / program)]

    def run(self, program: str, *arguments: str) -> None:
        """Run one of PostgreSQL's programs; it must succeed."""
        # Not a pipe: the server would inherit it, and leave it open.
        with open(self.folder / "commands.log", "ab") as log:
            command = [*self.command(program), *arguments]
            done = subprocess.run(command, cwd=self.folder, stdout=log, stderr=log, timeout=60)
        assert done.returncode == 0, (self.folder / "commands.log").read_text()

    def create(self, **settings: str) -> None:
        """Make the cluster, and start it."""
        self.run(
            "initdb", "-D", str(self.data), "-U", "postgres", "--auth=trust",
            "--encoding=UTF8", "--locale=C", "--no-sync",
        )  # fmt: skip
        self.set(**SETTINGS | settings)
        self.start()

    def set(self, **settings: str) -> None:
        """Change settings in its file, which it reads at its next start or `reload`."""
        with open(self.data / "postgresql.conf", "a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())

    def start(self) -> None:
        options = f"-p {self.port} -k {self.folder}"
        self.run(
            "pg_ctl", "-D", str(self.data), "-w", "-l", str(self.folder / "log"), "-o", options,
            "start",
        )  # fmt: skip

    def stop(self, mode: str = "fast") -> None:
        self.run("pg_ctl", "-D", str(self.data), "-w", "-m", mode, "stop")

    def reload(self) -> None:
        self.run("pg_ctl", "-D", str(self.data), "reload")

    def promote(self) -> None:
        self.run("pg_ctl", "-D", str(self.data), "-w", "promote")

    def processes(self) -> list[int]:
        """The server and its children; none if it does not run."""
        try:
            pid = int((self.data / "postmaster.pid").read_text().split()[0])
            return [pid, *child_ids(pid)]
        except FileNotFoundError:
            return []

    def signal(self, with_signal: int) -> list[int]:
        """Send a signal to all processes; returns them."""
        pids = self.processes()
        for pid in pids:
            _signal(pid, with_signal)
        return pids

    def kill(self) -> None:
        """End it as the loss of its machine would."""
        for pid in self.signal(signal.SIGKILL):
            until(partial(has_ended, pid))
        (self.data / "postmaster.pid").unlink(missing_ok=True)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url(), autocommit=True) as connection:
            return connection.execute(query).fetchall()

    def ask(self, query: str) -> Any:
        """The only value of a query."""
        ((value,),) = self.rows(query)
        return value

    def execute(self, statement: str, database: str = "postgres") -> None:
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            connection.execute(statement)


@contextmanager
def postgresql_server(programs: Path) -> Iterator[PostgresqlServer]:
    """A server that does not exist yet, in a directory that is removed at the end.

    It is not in pytest's directory, which the user of PostgreSQL can't enter.
    """
    folder = Path(tempfile.mkdtemp(prefix="postgresql-"))
    if os.geteuid() == 0:
        # The user of the tests' own server.
        shutil.chown(folder, "pgserver", "pgserver")
    server = PostgresqlServer(folder, programs)
    try:
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder)


def make_standby(standby: PostgresqlServer, primary: PostgresqlServer) -> None:
    """Copy a running server to another one, which then follows it; its name is `standby`."""
    source = f"host=127.0.0.1 port={primary.port} user=postgres application_name=standby"
    standby.run(
        "pg_basebackup", "-D", str(standby.data), "-R", "-X", "stream", "-c", "fast", "-d", source
    )
    standby.start()


def _signal(pid: int, with_signal: int) -> None:
    try:
        os.kill(pid, with_signal)
    except ProcessLookupError:
        return
