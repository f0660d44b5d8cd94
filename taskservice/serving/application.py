"""Runs gunicorn in this process, for `taskservice serve`."""

import sys
from collections.abc import Callable
from typing import Any, NoReturn

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter

from taskservice.config import Config
from taskservice.serving.settings import gunicorn_settings
from taskservice.terminal import exit_with_error


class PatientArbiter(Arbiter):
    """Tries again each second where the system lacks what a replacement of a worker needs."""

    def spawn_worker(self) -> int | None:
        try:
            pid: int | None = super().spawn_worker()
        except OSError as error:
            if self.worker_age <= self.num_workers:
                exit_with_error(f"can't start a worker: {error.strerror}")
            self.log.error("Can't replace a worker yet: %s", error.strerror)
            return None
        return pid


class Application(BaseApplication):
    """Takes its settings from `config` alone: no command line, file or GUNICORN_CMD_ARGS."""

    def __init__(self, make_app: Callable[[], Any], config: Config) -> None:
        self._make_app = make_app
        self._settings = gunicorn_settings(config)
        super().__init__(prog="taskservice serve")

    def load_config(self) -> None:
        assert self.cfg
        for name, value in self._settings.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        return self._make_app()

    def run(self) -> None:
        PatientArbiter(self).run()


def serve(make_app: Callable[[], Any], config: Config) -> NoReturn:
    """Serve until a signal, then exit: with 0 after SIGTERM or Ctrl-C, 1 if it can't listen.

    `make_app` is called in each worker, after the fork, for the WSGI application.
    """
    try:
        Application(make_app, config).run()
    except KeyboardInterrupt:
        # Ctrl-C before gunicorn has installed its signal handlers.
        sys.exit(130)
    sys.exit(0)
