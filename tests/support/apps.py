"""Apps for tests: a new one, a cheap copy, or one that the tests of a process share."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from flask import Flask
from jinja2 import FileSystemBytecodeCache

from taskservice import resources
from taskservice.app import create_app
from taskservice.config import Config
from taskservice.database import engine, migrations, watcher
from taskservice.operations import health
from taskservice.services import attempts


@contextmanager
def new_app(config: Config) -> Iterator[Flask]:
    app = create_app(config)
    try:
        yield app
    finally:
        engine.dispose(app)


@contextmanager
def without_routes(config: Config) -> Iterator[None]:
    """The context of an app that can only use its database."""
    app = Flask(__name__)
    app.config.from_object(config)
    migrations.upgrade(config.DATABASE_URL)
    engine.init_app(app, config.DATABASE_URL, config.THREADS)
    with app.app_context():
        try:
            yield
        finally:
            engine.dispose(app)


class Apps:
    """Apps as `create_app` makes them: to register all routes again costs more than most tests."""

    def __init__(self, templates: Path) -> None:
        """`templates` is a directory for compiled templates, which other processes may share."""
        templates.mkdir(exist_ok=True)
        self._templates = FileSystemBytecodeCache(str(templates))
        self._models: list[tuple[Config, Flask]] = []
        self._shared: dict[str, Flask] = {}

    def new(self, config: Config) -> Flask:
        """A separate app, which the caller disposes of; the database is migrated already."""
        model = self._model(config)
        app = copy.copy(model)
        app.instance_path = str(config.DATA)
        app.config = copy.copy(model.config)
        app.config.from_object(config)
        app.extensions = {resources.EXTENSION: dict(model.extensions[resources.EXTENSION])}
        app.teardown_appcontext_funcs = []
        engine.init_app(app, config.DATABASE_URL, config.THREADS)
        _forget(app)
        return app

    def shared(self, config: Config) -> Flask:
        """The app with these settings, without the state of earlier tests."""
        model = self._model(config)
        url = str(config.DATABASE_URL)
        app = self._shared.get(url) or self.new(config)
        self._shared[url] = app
        app.config.clear()
        app.config.update(model.config)
        app.config.from_object(config)
        _forget(app)
        return app

    def dispose(self) -> None:
        for app in self._shared.values():
            engine.dispose(app)

    def _model(self, config: Config) -> Flask:
        """An app with these settings, but another directory or database; it is never used."""
        for settings, app in self._models:
            if replace(settings, DATA=config.DATA, DATABASE_URL=config.DATABASE_URL) == config:
                return app
        app = create_app(config)
        app.jinja_options = {**app.jinja_options, "bytecode_cache": self._templates}
        engine.dispose(app)
        self._models.append((config, app))
        return app


def _forget(app: Flask) -> None:
    watcher.init_app(app, app.config["WAITS"])
    health.init_app(app)
    attempts.init_app(app)
