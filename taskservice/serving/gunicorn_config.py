"""What `gunicorn -c python:taskservice.serving.gunicorn_config wsgi:app` reads."""

from taskservice.config import Config, ConfigError
from taskservice.serving.settings import gunicorn_settings
from taskservice.terminal import give_up

try:
    # gunicorn takes the names of a module for its settings.
    globals().update(gunicorn_settings(Config.from_environment()))
except ConfigError as error:
    give_up(str(error), 2)
