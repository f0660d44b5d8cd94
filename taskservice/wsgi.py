"""The WSGI application for servers other than `taskservice serve`: `taskservice.wsgi:app`."""

import logging
import sys

from taskservice.app import create_app
from taskservice.config import Config, ConfigError
from taskservice.database.migrations import DatabaseError
from taskservice.operations.health import (
    BACKGROUND_LOCK,
    NO_BACKGROUND_WORK,
    SERVER_LOCK,
    is_running,
    show_running,
)
from taskservice.operations.request_log import configure_logging
from taskservice.terminal import exit_with_error

# Any WSGI server can serve requests, but only the gunicorn settings of the service start the
# background work.
works_in_background = "taskservice.serving.gunicorn_config" in sys.modules
try:
    config = Config.from_environment()
    if not works_in_background:
        configure_logging(config.LOG_LEVEL, config.LOG_FORMAT)
    app = create_app(config)
except (ConfigError, DatabaseError) as error:
    exit_with_error(str(error), 2)
if not works_in_background:
    show_running(config.DATA / SERVER_LOCK)
    app.config["NOTICE"] = NO_BACKGROUND_WORK
    if not is_running(config.DATA / BACKGROUND_LOCK):
        logging.getLogger(__name__).warning(NO_BACKGROUND_WORK)
