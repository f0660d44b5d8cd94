"""The WSGI application: `gunicorn -c python:taskservice.serving.gunicorn_config wsgi:app`."""

import logging
import sys

from taskservice.app import create_app
from taskservice.config import ConfigError
from taskservice.database.migrations import DatabaseError
from taskservice.operations.health import NO_BACKGROUND_WORK

try:
    app = create_app()
except (ConfigError, DatabaseError) as error:
    print(f"taskservice: {error}", file=sys.stderr)
    sys.exit(2)
# Any WSGI server can serve requests, but only these gunicorn settings start the background work.
if "taskservice.serving.gunicorn_config" not in sys.modules:
    app.config["NOTICE"] = NO_BACKGROUND_WORK
    logging.getLogger("taskservice").warning(NO_BACKGROUND_WORK)
