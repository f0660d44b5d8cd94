"""The application factory: the one place that knows all the others."""

from flask import Flask
from werkzeug.middleware.proxy_fix import ProxyFix

from taskservice import api, db, migrations, problems, telemetry
from taskservice.config import Config


def create_app(config: Config) -> Flask:
    """The service by these settings, on a database that is brought up to date first.

    Raises `migrations.DatabaseError` when the database cannot be used.
    """
    # An instance folder of our own: Flask's default can lie inside the virtual environment.
    app = Flask(__name__, instance_path=str(config.DATA), static_folder=None)
    app.config.from_object(config)
    app.config["MAX_CONTENT_LENGTH"] = config.MAX_BODY
    migrations.upgrade(config.DATABASE_URL)
    db.init_app(app, config.DATABASE_URL, config.THREADS)
    problems.init_app(app)
    telemetry.init_app(app)
    api.init_app(app)
    if config.PROXY_HOPS:
        hops = config.PROXY_HOPS
        app.wsgi_app = ProxyFix(app.wsgi_app, hops, hops, hops, x_prefix=1)  # type: ignore[method-assign]
    return app
