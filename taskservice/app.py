"""The application factory: the one place that knows all the others."""

from flask import Flask

from taskservice import api, dashboard, problems
from taskservice.config import Config
from taskservice.database import engine, migrations, watcher
from taskservice.operations import health, request_log
from taskservice.services import attempts
from taskservice.serving.proxies import trust_proxies


def create_app(config: Config, may_create: bool = True) -> Flask:
    """The service by these settings, on a database that is brought up to date first.

    Raises `migrations.DatabaseError` when the database cannot be used, or is not there and may
    not be made.
    """
    # An instance folder of our own: Flask's default can lie inside the virtual environment.
    app = Flask(__name__, instance_path=str(config.DATA), static_folder=None)
    app.config.from_object(config)
    # A path is what it is: otherwise `//` would be answered by a redirect, in HTML.
    app.url_map.merge_slashes = False
    app.config["MAX_CONTENT_LENGTH"] = config.MAX_BODY
    migrations.upgrade(config.DATABASE_URL, may_create=may_create)
    engine.init_app(app, config.DATABASE_URL, config.THREADS)
    watcher.init_app(app, config.THREADS)
    health.init_app(app)
    attempts.init_app(app)
    problems.init_app(app)
    request_log.init_app(app)
    api.init_app(app)
    dashboard.init_app(app)
    if config.PROXY_HOPS:
        app.wsgi_app = trust_proxies(app.wsgi_app, config.PROXY_HOPS)  # type: ignore[method-assign]
    return app
