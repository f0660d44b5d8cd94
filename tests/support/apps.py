"""Apps for tests: a new one, or one that the tests of a process share."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from flask import Flask

from taskservice import resources
from taskservice.app import create_app
from taskservice.config import Config
from taskservice.dashboard.sign_in_throttle import Throttle
from taskservice.database import watcher
from taskservice.database.engine import dispose
from taskservice.operations import health
from taskservice.services import attempts


@contextmanager
def new_app(config: Config) -> Iterator[Flask]:
    app = create_app(config)
    yield app
    dispose(app)


class SharedApps:
    """An app by its settings; to make one costs more than most tests."""

    def __init__(self) -> None:
        self._apps: list[tuple[Config, Flask, dict[str, Any]]] = []

    def get(self, config: Config) -> Flask:
        """The app with these settings, which has forgotten the tests before."""
        for settings, app, values in self._apps:
            if replace(settings, DATA=config.DATA) == config:
                app.config.clear()
                app.config.update(values, DATA=config.DATA)
                _forget(app)
                return app
        app = create_app(config)
        self._apps.append((config, app, dict(app.config)))
        return app

    def dispose(self) -> None:
        for _, app, _ in self._apps:
            dispose(app)


def _forget(app: Flask) -> None:
    watcher.init_app(app, app.config["THREADS"])
    health.init_app(app)
    attempts.init_app(app)
    resources.provide(app, Throttle())
