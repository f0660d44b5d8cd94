"""Fixtures: the service on both databases, its users, and a receiver for callbacks."""

import gc
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy.engine import make_url

from taskservice import bounded_http
from taskservice.background import timeouts
from taskservice.background.maintenance import Maintenance
from taskservice.config import Config
from taskservice.database.engine import dispose
from taskservice.operations import health
from taskservice.webhooks.destinations import Destinations
from tests.support.api_client import ApiClient, add_user
from tests.support.apps import Apps, new_app
from tests.support.certificates import Authority
from tests.support.cheap_subtests import CheapSubtests
from tests.support.clocks import Clocks
from tests.support.databases import DATABASES, Databases
from tests.support.documents import Terminal
from tests.support.fork_server import close_fork_server
from tests.support.receiver import Receiver
from tests.support.requirements import needs
from tests.support.service import Service
from tests.support.waiting import PATIENCE_SECONDS

# A shell that starts the tests in the background makes them ignore Ctrl-C, and all programs that
# they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def databases(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[Databases]:
    folder = tmp_path_factory.getbasetemp()
    # Several test processes share the parent directory.
    databases = Databases(folder, folder if worker_id == "master" else folder.parent)
    yield databases
    databases.close()


@pytest.fixture
def data_folder(tmp_path: Path) -> Path:
    """The directory of the app's data.

    Each test has its own: the last connection to a database removes the logs of that name when it
    is closed, and a thread of an earlier test may close a connection late.
    """
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest, databases: Databases, data_folder: Path) -> str:
    return databases.make(request.param, data_folder)


@pytest.fixture
def standard_config(database_url: str, data_folder: Path) -> Config:
    """Settings for most tests; loopback, where the receivers are, is allowed."""
    return Config(
        DATA=data_folder,
        DATABASE_URL=database_url,
        SECRET_KEY="a secret key for tests, long enough",
        CALLBACK_ALLOWED=Destinations.parse("external,loopback"),
        CALLBACK_TIMEOUT=30.0,
        THREADS=4,
        WAITS=2,
    ).completed()


@pytest.fixture
def config(standard_config: Config) -> Config:
    """The settings of the test's app; a test file may have its own."""
    return standard_config


@pytest.fixture(scope="session")
def apps(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[Apps]:
    folder = tmp_path_factory.getbasetemp()
    apps = Apps((folder if worker_id == "master" else folder.parent) / "templates")
    yield apps
    apps.dispose()


@pytest.fixture
def app(config: Config, standard_config: Config, apps: Apps) -> Iterator[Flask]:
    if config == standard_config and make_url(config.DATABASE_URL).get_backend_name() != "sqlite":
        yield apps.shared(config)
        return
    app = apps.new(config)
    yield app
    dispose(app)


@pytest.fixture
def app_with(config: Config) -> Iterator[Callable[..., Flask]]:
    """Makes another app on the test's database, with these settings changed."""
    with ExitStack() as stack:
        yield lambda **changes: stack.enter_context(new_app(replace(config, **changes)))


@pytest.fixture
def subtests(subtests: pytest.Subtests) -> CheapSubtests:
    return CheapSubtests(subtests)


@pytest.fixture
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the service had been running for five minutes, with steady clocks."""
    monkeypatch.setattr(timeouts, "GRACE_SECONDS", 0.0)


@pytest.fixture
def maintenance(app: Flask, no_grace: None) -> Maintenance:
    return Maintenance(app)


@pytest.fixture
def patient_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """`/readyz` waits for the database for longer, as a busy machine needs."""
    monkeypatch.setattr(health, "READY_SECONDS", PATIENCE_SECONDS)


@pytest.fixture
def clocks(app: Flask, monkeypatch: pytest.MonkeyPatch) -> Iterator[Clocks]:
    """The clocks of the app and of its database, which the test sets."""
    clocks = Clocks(app, monkeypatch)
    with clocks.shown_by_database():
        yield clocks


@pytest.fixture
def alice(app: Flask) -> ApiClient:
    """A user who owns things."""
    return add_user(app, "alice")


@pytest.fixture
def task(alice: ApiClient) -> dict[str, Any]:
    """A task that nobody has claimed, for files without their own task."""
    return alice.start()


@pytest.fixture
def bob(app: Flask) -> ApiClient:
    """Another user, with other tasks and agents."""
    return add_user(app, "bob")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    """A shell, as readers of the documents have it."""
    if shutil.which("curl") is None:
        needs("curl", "install the package curl")
    with Terminal(tmp_path) as terminal:
        yield terminal


@pytest.fixture
def service(database_url: str, tmp_path: Path) -> Iterator[Service]:
    """The service as `taskservice serve` runs it, in a separate process for this test alone."""
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
    """A running service with two worker processes; it may contain data of other tests."""
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
    """The tests' CA in SSL_CERT_FILE, as a team adds a private CA."""
    (tmp_path / "authority.pem").write_bytes(authority.pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    bounded_http.tls_context.cache_clear()
    yield
    bounded_http.tls_context.cache_clear()


def pytest_collection_finish() -> None:
    # The tests exist until the end, so the garbage collector need not check them each time.
    gc.freeze()


def pytest_sessionfinish() -> None:
    close_fork_server()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line: how many tests were skipped, and what they need."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    if reasons:
        listed = "; ".join(f"{count}: {reason}" for reason, count in reasons.most_common())
        terminalreporter.write_line(f"{reasons.total()} skipped ({listed})")
