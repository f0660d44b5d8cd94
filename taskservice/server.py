"""What `gunicorn -c python:taskservice.server wsgi:app` reads: the settings of `serve`."""

import sys

from taskservice.config import Config, ConfigError
from taskservice.serving.settings import gunicorn_settings

try:
    # gunicorn takes the names of a module for its settings.
    globals().update(gunicorn_settings(Config.from_environment()))
except ConfigError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
