"""`taskservice serve` and `background`, and the service's app for the other server commands."""

import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

import click
from flask import current_app
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from taskservice import resources
from taskservice.app import create_app
from taskservice.background.maintenance import join_loops, start_loops
from taskservice.cli import options
from taskservice.config import PREFIX, Config, ConfigError, documented, unknown_names
from taskservice.database.address import shown, sqlite_file
from taskservice.database.engine import dispose
from taskservice.database.files import free_reserve, keep_owner_permissions
from taskservice.database.migrations import DatabaseError
from taskservice.errors import Problem
from taskservice.operations import health
from taskservice.operations.request_log import configure_logging, log_notices
from taskservice.services import sign_in_links, users
from taskservice.terminal import exit_with_error, notice, open_standard_files, print_line


def prepare_files() -> None:
    """Make new files private, and open closed standard streams.

    Otherwise, a file could get the descriptor of a closed stream.
    """
    open_standard_files()
    keep_owner_permissions()


def load_config(may_create: bool = False, *, serves: bool = False) -> Config:
    """The settings, with a new secret key if `may_create`; exits with 2 if a setting is invalid.

    If the process `serves`, the notices are part of its log.
    """
    prepare_files()
    if serves:
        log_notices(os.environ.get(f"{PREFIX}LOG_FORMAT", "").lower())
    for name in unknown_names():
        notice(f"{name} is not a known setting; check the spelling", logging.WARNING)
    try:
        return Config.from_environment(may_create=may_create)
    except ConfigError as error:
        exit_with_error(str(error), 2)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn an error of the database or the service into one line and a nonzero exit status."""
    try:
        yield
    except DatabaseError as error:
        exit_with_error(str(error))
    except DBAPIError as error:
        exit_with_error(f"The database refused a statement: {error.orig}")
    except Problem as problem:
        errors = problem.members.get("errors", {})
        messages = [str(message) for texts in errors.values() for message in texts]
        exit_with_error("; ".join(messages) or problem.detail)


def name_database(config: Config) -> None:
    """Print which database is used, unless it is the default one: SQLite in DATA."""
    address = make_url(config.DATABASE_URL)
    if sqlite_file(address) != config.DATA / "taskservice.db":
        notice(f"database {shown(address)}")


@contextmanager
def service_app(may_create: bool = False, makes_space: bool = False) -> Iterator[None]:
    """The service's app context, with a migrated database; errors are printed as one line.

    With `makes_space`, the reserved disk space is freed first.
    """
    config = load_config(may_create)
    database = sqlite_file(make_url(config.DATABASE_URL))
    with one_line_errors():
        if makes_space and database:
            free_reserve(database)
        app = create_app(config, may_create)
        name_database(config)
        with app.app_context():
            yield
        dispose(app)


def page_url(path: str) -> str:
    """The URL of a page of this service: on this machine, unless PUBLIC_URL is set."""
    config = current_app.config
    host, _, port = config["BIND"].rpartition(":")
    host = "127.0.0.1" if host in ("0.0.0.0", "[::]") else host  # noqa: S104 - not bound here
    local_url = (
        "http://localhost" if config["BIND"].startswith("unix:") else f"http://{host}:{port}"
    )
    return f"{config['PUBLIC_URL'] or local_url}/{path}"


def add_first_user(config: Config) -> None:
    """Add FIRST_USER to a database without users, and print how to sign in."""
    app = create_app(config)
    # Another node may add the user at the same time.
    with app.app_context(), suppress(Problem):
        if not users.list_all():
            key = users.add(config.FIRST_USER)
            link = sign_in_links.create_for(config.FIRST_USER)
            print_line(f"Sign in within 15 minutes: {page_url(f'sign-in/{link.token}')}")
            print_line(f"API key, shown only once: {key.text}")
    dispose(app)


def require_free_address(bind: str, setting: str) -> None:
    """Exit with one line that names the setting, if the service can't listen on this address."""
    if bind.startswith("unix:") or "LISTEN_FDS" in os.environ:
        # gunicorn checks a Unix socket, and inherits the sockets of systemd.
        return
    parts = urlsplit(f"//{bind}")
    host, port = parts.hostname or "", parts.port or 0
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((host, port))
    except OSError as error:
        code = 2 if isinstance(error, socket.gaierror) else 1
        exit_with_error(f"can't listen on {bind}: {error.strerror}; change it with {setting}", code)


SETTINGS = "".join(f"\n  {name}={default}\n      {text}" for name, default, text in documented())


@click.command(
    "serve",
    short_help="Run the service.",
    epilog=f"\b\nSettings, with their defaults:{SETTINGS}\n\n\b\nExamples:\n  taskservice serve\n"
    "  TASKSERVICE_BIND=0.0.0.0:8000 TASKSERVICE_DATA=/var/lib/taskservice taskservice serve",
)
def command() -> None:
    """Run the service: the API, the dashboard and the background work."""
    config = load_config(may_create=True, serves=True)
    require_free_address(config.BIND, "TASKSERVICE_BIND")
    configure_logging(config.LOG_LEVEL, config.LOG_FORMAT)
    with one_line_errors():
        if config.FIRST_USER:
            add_first_user(config)
        # The app has no open database connection, so the server processes can inherit the app.
        app = create_app(config)
    # gunicorn reads these variables when it is imported, and fails if one of them is invalid. The
    # service has its own settings instead.
    for name in ("WEB_CONCURRENCY", "FORWARDED_ALLOW_IPS", "PORT", "SENDFILE"):
        os.environ.pop(name, None)
    from taskservice.serving.settings import serve

    name_database(config)
    notice(f"data in {config.DATA}, listening on {config.BIND}")
    serve(lambda: app, config)


SIGNALS = (signal.SIGTERM, signal.SIGINT)


@options.command("taskservice background", short_help="Run only the background work.")
def background_command() -> None:
    """Run only the background work: webhooks, timeouts, retention.

    Each `serve` process does this work too, and any number of processes can share a database.
    Tasks time out only while `serve` or another WSGI server runs, since agents can report only to a
    server.
    """
    config = load_config(serves=True)
    configure_logging(config.LOG_LEVEL, config.LOG_FORMAT)
    with one_line_errors():
        app = create_app(config, may_create=False)
    name_database(config)
    # Threads inherit this mask, so only `sigwait` below receives these signals.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    health.show_running(config.DATA / health.BACKGROUND_LOCK)
    loops = start_loops(app, serves=False)
    notice(f"background work started, data in {config.DATA}")
    signal.sigwait(SIGNALS)
    resources.begin_stop()
    join_loops(loops)
    dispose(app)
