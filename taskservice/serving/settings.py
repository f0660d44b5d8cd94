"""gunicorn's settings, for `taskservice serve` and for gunicorn run directly."""

import ctypes
import errno
import gc
import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from flask import Flask
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.config import Config as GunicornConfig
from gunicorn.glogging import Logger
from gunicorn.sock import TCP6Socket, TCPSocket, UnixSocket
from gunicorn.util import is_ipv6

from taskservice import resources
from taskservice.background.maintenance import join_loops, start_loops
from taskservice.config import Config
from taskservice.operations import metrics, request_log
from taskservice.serving.worker import Worker
from taskservice.terminal import exit_with_error

# Maximum connections of a server process, in addition to streams and waiting requests. If there are
# more, the process closes idle ones.
MAX_CONNECTIONS = 500
MEMORY_DIRECTORY = Path("/dev", "shm")
M_MMAP_THRESHOLD = -3  # of malloc.h


def gunicorn_settings(config: Config) -> dict[str, object]:
    """The values of gunicorn's settings, by name; other settings have gunicorn's defaults."""

    def pre_fork(arbiter: Arbiter, worker: Worker) -> None:
        # Prevent the garbage collector from writing to memory that the processes share.
        gc.freeze()
        # Choose the slot for the worker's metrics before the fork, so that the worker inherits it.
        # The slot of a dead worker is free again.
        taken = {other.slot for other in arbiter.WORKERS.values()}
        worker.slot = metrics.requests.use_free_slot(taken)
        worker.more_threads = config.WAITS
        worker.early_signals = arbiter.SIG_QUEUE

    class OwnLogger(Logger):
        """gunicorn's logger, in the format of the service's log."""

        def setup(self, cfg: GunicornConfig) -> None:
            super().setup(cfg)
            request_log.configure_logging(config.LOG_LEVEL, config.LOG_FORMAT, "gunicorn.error")

    return {
        "bind": config.BIND,
        # Only the service's user and group can connect to a Unix socket.
        "umask": 0o007,
        "workers": config.WORKERS,
        "threads": config.THREADS,
        "logger_class": OwnLogger,
        "worker_class": Worker,
        "worker_connections": MAX_CONNECTIONS + config.WAITS,
        "pre_fork": pre_fork,
        "post_worker_init": connect_application,
        "worker_exit": lambda _arbiter, worker: join_loops(worker.background_threads),
        "on_starting": listen,
        # The seconds after which idle connections are closed. nginx closes them after 60 s; it
        # could send a request on a connection that the service is closing.
        "keepalive": 75,
        # When the service stops, requests in progress have this many seconds to finish. Docker
        # kills the service after 10 s, as systemd does with `deploy/taskservice.service`.
        "graceful_timeout": 8,
        # The directory of gunicorn's heartbeat files, in memory, so that a slow or full disk does
        # not affect them.
        "worker_tmp_dir": str(MEMORY_DIRECTORY) if os.access(MEMORY_DIRECTORY, os.W_OK) else None,
        # Disabled, since all services of the same user would share one control socket.
        "control_socket_disable": True,
        "limit_request_line": 8190,
        # Only the application reads X-Forwarded-*, since it knows PROXY_HOPS.
        "forwarded_allow_ips": "",
        "secure_scheme_headers": {},
        "forwarder_headers": "",
    }


def return_freed_memory() -> None:
    """Return the memory of large bodies to the system, instead of reserving it for each thread."""
    # Only glibc has mallopt. By default, glibc raises the threshold when large blocks are freed.
    with suppress(AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 256 * 1024)


def connect_application(worker: Worker) -> None:
    """Start the background loops if the application is this service."""
    return_freed_memory()
    app = worker.app.wsgi()
    if isinstance(app, Flask) and resources.EXTENSION in app.extensions:
        worker.background_threads = start_loops(app, serves=True)


def listen(arbiter: Arbiter) -> None:
    """Open the listening sockets, or print one line with the reason and exit.

    The exit status is 2 if the host name can't be resolved, otherwise 1. gunicorn itself would try
    five times.
    """
    if arbiter.master_pid or "LISTEN_FDS" in os.environ:
        # The sockets are inherited from systemd, or from the process that this process replaces.
        return
    for address in arbiter.cfg.address:
        try:
            if isinstance(address, str):
                kind = UnixSocket
                # gunicorn would remove a socket at this path, even the socket of a running program.
                with socket.socket(socket.AF_UNIX) as client:
                    if client.connect_ex(address) == 0:
                        raise OSError(errno.EADDRINUSE, "another program listens there")
            else:
                kind = TCP6Socket if is_ipv6(address[0]) else TCPSocket
            arbiter.LISTENERS = [*arbiter.LISTENERS, kind(address, arbiter.cfg, arbiter.log)]
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            code = 2 if isinstance(error, socket.gaierror) else 1
            shown = address if isinstance(address, str) else f"{address[0]}:{address[1]}"
            exit_with_error(f"can't listen on {shown}: {reason}; change TASKSERVICE_BIND", code)


def serve(make_app: Callable[[], Any], config: Config) -> NoReturn:
    """Serve until a signal arrives, then exit with 0. If the service can't listen, exit as in
    `listen`.
    """

    class Application(BaseApplication):
        """Takes settings from `config` only, not from a command line, file or GUNICORN_CMD_ARGS."""

        def load_config(self) -> None:
            for name, value in gunicorn_settings(config).items():
                self.cfg.set(name, value)

        def load(self) -> Any:
            # Each worker runs this after the fork.
            return make_app()

    try:
        Application(prog="taskservice serve").run()
    except KeyboardInterrupt:
        # Ctrl-C was pressed before gunicorn installed its signal handlers.
        sys.exit(130)
    sys.exit(0)
