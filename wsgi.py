"""The WSGI application, for any WSGI server: `gunicorn wsgi:app`."""

import sys

from taskservice.app import create_app
from taskservice.config import ConfigError
from taskservice.database.migrations import DatabaseError

try:
    app = create_app()
except (ConfigError, DatabaseError) as error:
    print(f"taskservice: {error}", file=sys.stderr)
    sys.exit(2)
