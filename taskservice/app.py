"""The application factory."""

from collections.abc import Callable
from typing import Any

from flask import Flask

from taskservice import api, dashboard, errors, mcp, resources
from taskservice.config import Config
from taskservice.database import engine, migrations, transactions, watcher
from taskservice.http_request import Request
from taskservice.operations import health, request_log
from taskservice.services import attempts
from taskservice.web.request import MAX_SMALL_BODY, trust_proxies
from taskservice.web.responses import FastResponse, LongListSlots


class Service(Flask):
    """A Flask app that has no asynchronous views."""

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        # Flask would check seven times per request whether a function is asynchronous.
        return func


def create_app(config: Config | None = None, may_create: bool = True) -> Flask:
    """Create the service and upgrade the database; by default, read settings from the environment.

    Raises `config.ConfigError` if a setting in the environment is invalid, and
    `migrations.DatabaseError` if the database cannot be used, or if it does not exist and
    `may_create` is false.
    """
    config = config or Config.from_environment(may_create=may_create)
    # Flask's default instance directory can be inside the virtual environment.
    app = Service(__name__, instance_path=str(config.DATA), static_folder=None)
    app.request_class = Request
    app.response_class = FastResponse
    app.config.from_object(config)
    # Otherwise, Flask would respond to `//` in a path with a redirect in HTML.
    app.url_map.merge_slashes = False
    app.config["MAX_CONTENT_LENGTH"] = min(MAX_SMALL_BODY, config.MAX_BODY)
    migrations.upgrade(config.DATABASE_URL, may_create=may_create)
    engine.init_app(app, config.DATABASE_URL, config.THREADS)
    app.teardown_request(transactions.end_shared_reading)
    watcher.init_app(app, config.WAITS)
    health.init_app(app)
    attempts.init_app(app)
    resources.provide(app, LongListSlots(config.THREADS))
    errors.init_app(app)
    request_log.init_app(app)
    api.init_app(app)
    mcp.init_app(app)
    dashboard.init_app(app)
    if config.PROXY_HOPS:
        app.wsgi_app = trust_proxies(app.wsgi_app, config.PROXY_HOPS)  # type: ignore[method-assign]
    return app
